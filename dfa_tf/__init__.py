"""Differentiable Feature Aggregation (DFA) search for knowledge distillation, in Keras and TensorFlow.

The packages of this folder are layers, each of which imports only from those above it in this list:

    process        the running process: status line, signals, several workers, start of TensorFlow
    storage        the run directory, and atomic files
    config         the configuration of a run
    display        progress, tables, pages, figures
    images         images, labels, splits, augmentation
    networks       Keras classifiers: graphs, layer groups, features
    data, models   plug-ins: data sets and network families
    methods        the base class of distillation methods, and distances of features
    training       what both stages share: strategies, updates, evaluation, checkpoints
    aggregation    stage 1: the aggregation weights and their search
    losses         plug-ins: distillation methods
    distillation   stage 2: the Distiller and its training
    export         students in other formats
    reporting      reports of finished runs
    pipeline       the stages in order; compress, compare, tune

Public names are loaded at first use: importing the package, or reading a configuration, does not load
TensorFlow. `__init__.pyi` lists the module of each public name.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_SHORT_NAMES = {
    "dfa_tf.distiller": "dfa_tf.distillation.distiller",
    "dfa_tf.features": "dfa_tf.networks.features",
    "dfa_tf.graph": "dfa_tf.networks.graph",
    "dfa_tf.interruption": "dfa_tf.process.interruption",
    "dfa_tf.layers": "dfa_tf.networks.layers",
    "dfa_tf.sources": "dfa_tf.images.sources",
    "dfa_tf.splits": "dfa_tf.images.splits",
}
"""Modules that the documentation imports by a short name, without their package."""


class _ShortNames(MetaPathFinder, Loader):
    """Imports these modules by their short names too: `from dfa_tf.splits import Images`."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in _SHORT_NAMES else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(_SHORT_NAMES[module.__name__])


sys.meta_path.append(_ShortNames())
