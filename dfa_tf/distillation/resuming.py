"""Resumes `fit` where it was interrupted, even in the middle of an epoch."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dfa_tf.distillation.callbacks import BestEpoch
from dfa_tf.distillation.distiller import Distiller
from dfa_tf.process import interruption, workers
from dfa_tf.training.callbacks import MetricsLog
from dfa_tf.training.checkpoints import Checkpoints, Value


class ResumingCallback(keras.callbacks.Callback):
    """Saves the state of a Distiller at the configured steps and after each epoch, and restores the saved one.

    `fit` runs whole epochs only. To finish an interrupted epoch, this callback ends the first epoch of the call early. It comes after
    callbacks that exchange the weights at the ends of epochs, and before the user's.

    Args:
        checkpoints: of the stage.
        log: holds the numbers of the finished epochs, which are part of the state.
        steps: in an epoch.
        best: holds the best epoch so far, which is part of the state too.

    Attributes:
        step: updates so far, including those before the interruption.
    """

    def __init__(self, checkpoints: Checkpoints, log: MetricsLog, steps: int, best: BestEpoch | None = None) -> None:
        super().__init__()
        self._checkpoints, self._log, self._steps, self._best = checkpoints, log, steps, best
        self._saved = checkpoints.latest()
        self._cut = False
        self.step = 0
        if self._saved is not None:
            self.step = self._saved.step
            log.rows += self._saved.notes["history"]
            if best is not None:
                best.accuracy, best.weights = self._saved.notes["best_accuracy"], self._saved.arrays("best")

    def restore(self, distiller: Distiller) -> None:
        """Restores the saved state, if there is one, to a Distiller whose optimizer is built."""
        if self._saved is not None:
            for part in ("networks", "optimizer"):
                self._saved.assign(part, _parts(distiller)[part])

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._saved is not None:
            # Here, because `fit` sets the metrics to zero when an epoch begins.
            self._saved.assign(_metrics_of(workers.number()), _local(self.model))
            self._saved = None
            self._cut = self.step % self._steps > 0
        elif self.step:
            self._save()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.step += self.model.steps_per_execution
        if self.step % self._steps == 0:
            # The state is saved when the next epoch begins and the numbers of this one are known.
            self.model.stop_training = self.model.stop_training or self._cut
        elif self._checkpoints.wanted(self.step, self.model.steps_per_execution):
            self.model.watch.check()  # a state that is not finite is not worth saving
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._cut:
            self.model.stop_training = self._cut = False

    def _save(self) -> None:
        parts = _parts(self.model)
        notes: dict[str, Any] = {"history": self._log.rows}
        if self._best is not None:
            parts["best"], notes["best_accuracy"] = self._best.weights, self._best.accuracy
        numbers = np.array([variable.numpy() for variable in _local(self.model)], np.float32)
        for number, content in enumerate(workers.exchange(numbers.tobytes())):
            parts[_metrics_of(number)] = list(np.frombuffer(content, np.float32))
        self._checkpoints.save(self.step, parts, notes)
        if interruption.requested():
            raise KeyboardInterrupt


def _parts(distiller: Distiller) -> dict[str, Sequence[Value]]:
    return {"networks": distiller.state_variables, "optimizer": distiller.optimizer.variables}


def _metrics_of(worker: int) -> str:
    """The part of a checkpoint that holds the metrics of this worker's replicas."""
    return f"metrics{worker or ''}"


def _local(distiller: Distiller) -> list[tf.Variable]:
    """Each local replica's own part of the metrics: a sum over its examples. A sum over replicas would be rounded differently."""
    local = distiller.distribute_strategy.experimental_local_results
    return [part for metric in distiller.metrics for variable in metric.variables for part in local(variable.value)]
