"""Callbacks that follow a training: its progress, and the numbers of each epoch."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import keras

from dfa_tf.process import status
from dfa_tf.process.status import ReportStep
from dfa_tf.storage.files import write_text
from dfa_tf.training.divergence import check_finite

_SECONDS_BETWEEN_READS = 0.5
_NO_LOSSES = {"learning_rate", "gradient_norm"}
_EVALUATED = ("validation_accuracy", "test_accuracy")


class ProgressCallback(keras.callbacks.Callback):
    """Reports each step of `fit`, and its epoch.

    Args:
        report: called with steps done, steps in all, and the latest numbers that were read: reading them waits for the device. They
            are the losses, those of the groups of a method together, and the accuracies.
        epochs: in all.
        steps: in an epoch.
        done: steps that were made before.
    """

    def __init__(self, report: ReportStep, epochs: int, steps: int, done: int = 0) -> None:
        super().__init__()
        self._report, self._epochs, self._steps, self._done = report, epochs, steps, done
        self._numbers: dict[str, float] = {}
        self._evaluated: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._read = -math.inf
        self._epoch, self._is_traced = "", False

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self._is_traced = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = f"epoch {epoch + 1}/{self._epochs}"
        status.begin(self._epoch if self._is_traced else f"preparing the first step of {self._epoch}")

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if not self._is_traced:
            self._is_traced = True
            status.begin(self._epoch)
        self._done += self.model.steps_per_execution
        if time.monotonic() - self._read >= _SECONDS_BETWEEN_READS:
            self._read = time.monotonic()
            self._evaluated |= {name: self._ended[name] for name in _EVALUATED if name in self._ended}
            self._numbers = _shown(logs or {}) | self._evaluated
        self._report(self._done, self._epochs * self._steps, self._numbers)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._ended = {} if logs is None else logs  # the callbacks behind this one add to it what they evaluate


def _shown(logs: Mapping[str, float]) -> dict[str, float]:
    """The numbers of a step that a display has room for."""
    numbers: dict[str, float] = {}
    for name in sorted(logs.keys() - _NO_LOSSES, key=lambda name: (name != "total_loss", name != "accuracy", name)):
        method = name.partition("/")[0]
        numbers[method] = numbers.get(method, 0.0) + float(logs[name])
    return numbers


class MetricsLog(keras.callbacks.Callback):
    """Keeps the numbers of each epoch, and writes them as lines of a JSON Lines file.

    Args:
        path: of the file, rewritten after each epoch; None writes nothing.

    Attributes:
        rows: the numbers of each epoch.
    """

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []
        self._path = path

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        numbers = {name: float(value) for name, value in (logs or {}).items()}
        check_finite(numbers, f"in epoch {epoch + 1}: lower the learning rate")
        self.rows.append({"epoch": epoch + 1, **numbers})
        if self._path is not None:
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))
