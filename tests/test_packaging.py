"""What a wheel says of itself: one version, and the types of the public names."""

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
    shipped = {path for pattern in SETTINGS["tool"]["setuptools"]["package-data"]["dfa_tf"] for path in PACKAGE.glob(pattern)}
    templates = set((PACKAGE / "templates").iterdir())
    assert {path.name for path in templates} >= {"base.html", "report.html", "table.html"}
    assert templates <= shipped


def test_type_checkers_see_every_public_name_at_its_home() -> None:
    body = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8")).body
    imported = {alias.asname: node.module for node in body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(imported) == sorted(dfa_tf.__all__)
    homes = {name: f"dfa_tf.{home}" for name, home in dfa_tf._HOMES.items()} | {"plugins": "dfa_tf"}
    assert imported == homes
