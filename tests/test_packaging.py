"""The contents of a wheel: one version, all packages and templates, types of the public names."""

import ast
import tomllib
from importlib.metadata import version
from pathlib import Path

import dfa_tf

PACKAGE = Path(dfa_tf.__file__).parent
SETTINGS = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_version_is_said_in_one_place() -> None:
    assert "version" in SETTINGS["project"]["dynamic"]
    assert SETTINGS["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "dfa_tf.__version__"}
    assert version("dfa_tf") == dfa_tf.__version__


def test_types_are_shipped() -> None:
    shipped = {path.name for pattern in SETTINGS["tool"]["setuptools"]["package-data"]["dfa_tf"] for path in PACKAGE.glob(pattern)}
    assert {"py.typed", "__init__.pyi"} <= shipped


def test_templates_are_shipped() -> None:
    folder, data = PACKAGE / "display", SETTINGS["tool"]["setuptools"]["package-data"]["dfa_tf.display"]
    shipped = {path for pattern in data for path in folder.glob(pattern)}
    templates = set((folder / "templates").iterdir())
    assert {path.name for path in templates} >= {"base.html", "report.html", "table.html"}
    assert templates <= shipped


def test_every_package_is_shipped() -> None:
    folders = {".".join(["dfa_tf", *path.relative_to(PACKAGE).parts[:-1]]) for path in PACKAGE.rglob("__init__.py")}
    assert sorted(SETTINGS["tool"]["setuptools"]["packages"]) == sorted({*folders, "dfa_tf.bin", "dfa_tf.configs"})


def test_type_checkers_see_every_public_name() -> None:
    body = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8")).body
    imported = [alias.asname for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(filter(None, imported)) == sorted(dfa_tf.__all__)
