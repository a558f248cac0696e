"""Plug-ins found by file name: networks, distillation methods and data sets.

A plug-in is a module of `dfa_tf/models`, `dfa_tf/losses` or `dfa_tf/data` with a function `build(...)`
whose keyword-only arguments are its options. Its public names are the keys of its `VARIANTS`, each
mapped to options of `build`; without `VARIANTS`, the file's own name with no options.
"""

import ast
import functools
import importlib
import inspect
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from dfa_tf.errors import UserError, nearest, shortened

KINDS = ("models", "losses", "data")
_FILLED_IN = {"image_shape", "num_classes", "student", "teacher", "aggregation", "data_dir"}


@functools.cache
def _table(kind: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Every public name of a kind, mapped to its module and its options of `build`.

    `VARIANTS` is evaluated alone, from the module's source, so that names can be checked before TensorFlow is imported.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of plug-in. Received: {kind!r}. {nearest(kind, KINDS)}")
    table = {}
    for path in sorted((Path(__file__).parent / kind).iterdir()):
        source = path / "__init__.py" if path.is_dir() else path
        if path.stem.startswith("_") or source.suffix != ".py" or not source.exists():
            continue
        tree = ast.parse(source.read_text(encoding="utf-8"))
        if not any(isinstance(node, ast.FunctionDef) and node.name == "build" for node in tree.body):
            continue
        for name, options in _variants(tree, {path.stem: {}}).items():
            table[name] = (f"dfa_tf.{kind}.{path.stem}", options)
    return table


def _variants(tree: ast.Module, default: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "VARIANTS" for target in targets):
            expression = ast.Expression(node.value)  # type: ignore[attr-defined]
            variants: dict[str, dict[str, Any]] = eval(compile(expression, "VARIANTS", "eval"))
            return variants
    return default


def names(kind: str) -> list[str]:
    """The public names of a kind of plug-in, sorted.

    Args:
        kind: `"models"`, `"losses"` or `"data"`.

    Raises:
        UserError: if the kind is unknown.

    Examples:
        >>> names("data")
        ['bundled', 'cifar100', 'cinic10', 'image_folder', 'tfds']
    """
    return sorted(_table(kind))


def check(kind: str, name: str) -> None:
    """Raises UserError, with the nearest names, unless `name` is a plug-in of this kind."""
    if name not in _table(kind):
        raise UserError(f"unknown name in {kind}. Received: {shortened(name)}. {nearest(name, _table(kind))}")


def builder(kind: str, name: str) -> functools.partial[Any]:
    """The function that builds the plug-in `name`, with its variant's options filled in.

    Raises:
        UserError: if the name is unknown.
    """
    check(kind, name)
    module, options = _table(kind)[name]
    return functools.partial(importlib.import_module(module).build, **options)


def build(kind: str, name: str, *positional: Any, **options: Any) -> Any:
    """Builds the plug-in `name`.

    Args:
        kind: `"models"`, `"losses"` or `"data"`.
        name: one of `names(kind)`.
        *positional: the positional arguments of this kind of plug-in (for losses: student and teacher).
        **options: keyword arguments of the plug-in's `build`.

    Returns:
        For models a `keras.Model`, for losses a `dfa_tf.methods.Method`, for data a `dfa_tf.splits.Source`.

    Raises:
        UserError: if the name or an option is unknown, or a value does not fit.
    """
    function, accepted = builder(kind, name), arguments(kind, name)
    _refuse_unknown(name, options, accepted)
    try:
        return function(*positional, **options)
    except UserError:
        raise
    except (OSError, TypeError, ValueError, ZeroDivisionError) as error:
        # Mostly a wrong value or path in an option; the cause stays chained for the author of the plug-in.
        raise UserError(f"{name} cannot be built with these options. {type(error).__name__}: {error}") from error


def check_options(kind: str, name: str, options: Iterable[str]) -> None:
    """Raises UserError, with the nearest options, unless users may set these options of the plug-in `name`."""
    _refuse_unknown(name, options, option_names(kind, name))


def _refuse_unknown(name: str, options: Iterable[str], accepted: Collection[str]) -> None:
    for option in options:
        if option not in accepted:
            raise UserError(f"unknown option of {name}. Received: {shortened(option)}. {nearest(option, accepted)}")


def arguments(kind: str, name: str) -> list[str]:
    """The arguments of a plug-in's `build` that its variant leaves open."""
    function = builder(kind, name)
    return [argument for argument in inspect.signature(function.func).parameters if argument not in function.keywords]


def option_names(kind: str, name: str) -> list[str]:
    """Those of its `arguments` that users set; the stages fill in the others."""
    return [argument for argument in arguments(kind, name) if argument not in _FILLED_IN]
