"""Differentiable Feature Aggregation (DFA) search for knowledge distillation, in Keras and TensorFlow.

Public names are loaded when they are first used: importing the package, or reading a configuration,
does not load TensorFlow.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "AggregationWeights": "aggregation",
    "Config": "config",
    "Distiller": "distiller",
    "FeatureModel": "features",
    "Features": "features",
    "Method": "methods",
    "UserError": "errors",
    "compress": "compression",
    "distil": "distillation",
    "ensemble": "ensemble",
    "search": "search",
    "source": "sources",
    "split": "splits",
}  # by public name, its module

__all__ = [
    "AggregationWeights",
    "Config",
    "Distiller",
    "FeatureModel",
    "Features",
    "Method",
    "UserError",
    "compress",
    "distil",
    "ensemble",
    "plugins",
    "search",
    "source",
    "split",
]


class _Package(ModuleType):
    """Keeps `dfa_tf.search` the function: importing the module of that name would else put it in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOMES.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name == "plugins":
        return importlib.import_module("dfa_tf.plugins")
    if name not in _HOMES:
        raise AttributeError(f"module 'dfa_tf' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dfa_tf.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


sys.modules[__name__].__class__ = _Package
