"""Imports point one way, read from the syntax trees; the package shows its public names and no others."""

import ast
import importlib
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dfa_tf

ROOT = Path(dfa_tf.__file__).parent.parent
FOLDERS = {"dfa_tf": ROOT / "dfa_tf", "dfa_tf.bin": ROOT / "bin", "dfa_tf.configs": ROOT / "configs"}
PLUGINS = tuple(f"dfa_tf.{kind}" for kind in ("data", "losses", "models"))

# A package imports from itself and from those before it. Experiments are no layer: they import `config` and `configs.families`.
ORDER = [
    *("errors", "plugins", "process", "storage", "config", "display", "images", "networks", "data", "models", "methods", "training"),
    *("aggregation", "losses", "distillation", "export", "reporting", "pipeline", "bin"),
]
WITHOUT_TENSORFLOW = ("errors", "plugins", "process", "storage", "config")


def find_modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    modules = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            modules[".".join(parts).removesuffix(".__init__")] = path
    return modules


MODULES = find_modules()


def package(module: str) -> str:
    """The package of `dfa_tf` that a module is in; of a module of `dfa_tf` itself its own name."""
    return module.split(".")[1] if "." in module else ""


def rank(module: str) -> int | None:
    """The place of a module's package in the order; None where it has none."""
    return ORDER.index(package(module)) if package(module) in ORDER else None


def imports(module: str) -> Iterator[str]:
    """What a module imports, wherever in the file: modules of the package by their whole name."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)


def inner_imports(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] == "dfa_tf"}


def foreign_imports(module: str) -> set[str]:
    """Packages that are neither of Python's own library nor this one."""
    return {name.split(".")[0] for name in imports(module)} - sys.stdlib_module_names - {"dfa_tf"}


def of(prefix: str) -> list[str]:
    return [module for module in MODULES if module.startswith(prefix)]


# Imports


def test_every_module_has_a_place() -> None:
    lost = {package(module) for module in MODULES if rank(module) is None} - {"", "configs"}
    assert lost == set(), f"place {lost} in ORDER of {Path(__file__).name}, as low as what it imports allows"


def test_every_place_is_taken() -> None:
    assert {package(module) for module in MODULES} - {"", "configs"} == set(ORDER)


def test_only_what_every_package_needs_lies_in_none() -> None:
    """A module of `dfa_tf` itself would be one more thing to look for in a second flat folder."""
    assert [path.stem for path in sorted((ROOT / "dfa_tf").glob("*.py"))] == ["__init__", "errors", "plugins"]


def test_the_modules_of_the_guide_are_read() -> None:
    """The other tests would pass over an empty list."""
    assert {"dfa_tf.config.schema", "dfa_tf.models.wide_resnet", "dfa_tf.bin.run", "dfa_tf.configs.bundled"} <= set(MODULES)
    assert {"dfa_tf.errors", "dfa_tf.plugins"} <= inner_imports("dfa_tf.config.sections")


@pytest.mark.parametrize("module", [module for module in MODULES if rank(module) is not None])
def test_imports_point_one_way(module: str) -> None:
    upward = [name for name in inner_imports(module) if (there := rank(name)) is None or there > rank(module)]
    assert upward == [], f"{module} must not import {upward}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter({module: inner_imports(module) - {module} for module in MODULES}).prepare()


def test_plug_ins_are_reached_by_name_only() -> None:
    users = {
        module: [name for name in inner_imports(module) if name.startswith(PLUGINS) and not name.startswith(f"{module}.")]
        for module in MODULES
    }
    assert {module: names for module, names in users.items() if names} == {}, "use plugins.build(kind, name)"


def test_the_package_itself_imports_nothing_at_once() -> None:
    assert inner_imports("dfa_tf") == set()
    assert foreign_imports("dfa_tf") == {"lazy_loader"}


@pytest.mark.parametrize("module", of("dfa_tf.configs."))
def test_experiments_import_nothing_but_the_configuration_and_their_families(module: str) -> None:
    assert "dfa_tf.config" in inner_imports(module) <= {"dfa_tf.config", "dfa_tf.configs.families"}
    assert foreign_imports(module) == set()


def test_flags_live_in_the_binaries_only() -> None:
    users = {module for module in MODULES if "absl" in foreign_imports(module)}
    assert users
    assert [module for module in users if not module.startswith("dfa_tf.bin")] == []


@pytest.mark.parametrize("module", [name for name in MODULES if package(name) in WITHOUT_TENSORFLOW and name != "dfa_tf.process.startup"])
def test_what_a_mistaken_configuration_needs_loads_no_tensorflow(module: str) -> None:
    assert foreign_imports(module) <= {"pydantic"}


def test_no_installed_package_is_called_bin_or_configs() -> None:
    """In a wheel these folders are `dfa_tf.bin` and `dfa_tf.configs`."""
    assert [module for module in MODULES if foreign_imports(module) & {"bin", "configs", "tests"}] == []


# Public names


def test_every_public_name_resolves() -> None:
    assert len(dfa_tf.__all__) == len(set(dfa_tf.__all__))
    assert [name for name in dfa_tf.__all__ if getattr(dfa_tf, name, None) is None] == []


def test_the_package_shows_its_public_names_only() -> None:
    for module in MODULES:
        if rank(module) is not None and not module.startswith("dfa_tf.bin"):
            importlib.import_module(module)
    assert sorted(dir(dfa_tf)) == sorted(dfa_tf.__all__)
    names: dict[str, object] = {}
    exec("from dfa_tf import *", names)
    assert set(names) - {"__builtins__"} == set(dfa_tf.__all__)


@pytest.mark.parametrize("module", sorted(dfa_tf._SHORT_NAMES))
def test_a_module_goes_by_the_short_name_that_the_documentation_shows(module: str) -> None:
    assert importlib.import_module(module) is importlib.import_module(dfa_tf._SHORT_NAMES[module])


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="No dfa_tf attribute serach"):
        _ = dfa_tf.serach
