"""The user's callbacks: checked before a training, and shown its numbers under Keras' names."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from dfa_tf.config import TrainConfig
from dfa_tf.errors import UserError, nearest
from dfa_tf.images.splits import Splits

_BOTH = ("accuracy", "loss")
_KERAS_NAMES = {"total_loss": "loss", **{f"validation_{what}": f"val_{what}" for what in _BOTH}}


def check_callbacks(callbacks: Sequence[Any], train: TrainConfig, *, validation: bool) -> None:
    """Finds, before the training, callbacks that would fail or have no effect.

    Args:
        callbacks: of the user, for `fit`.
        train: the schedule.
        validation: whether there are validation images.

    Raises:
        UserError: if one of them is not a Keras callback, monitors missing validation images, or sets a learning rate that the schedule
            sets; or the best epoch is to be kept without validation images.
    """
    if train.choose_best and not validation:
        raise UserError(
            "the best epoch is chosen by validation images, and never by the test set: give some, as validation=(images, labels) or "
            "a share of the training set, data.validation_fraction=0.1. Received: train.choose_best=true without any"
        )
    for callback in callbacks:
        name = type(callback).__name__
        if not isinstance(callback, keras.callbacks.Callback):
            raise UserError(f"callbacks must be instances of keras.callbacks.Callback. Received: {callback!r}")
        monitor = str(getattr(callback, "monitor", ""))
        if monitor.startswith("val") and not validation:
            raise UserError(f"{name} monitors {monitor!r}, which needs validation images: give some. Received: none")
        if isinstance(callback, keras.callbacks.ReduceLROnPlateau | keras.callbacks.LearningRateScheduler) and train.schedule != "constant":
            raise UserError(
                f"{name} sets the learning rate, which the schedule does too: set train.schedule=constant. Received: {train.schedule!r}"
            )


class KerasNames(keras.callbacks.Callback):
    """Shows the numbers of an epoch under Keras' usual names too, to the callbacks after it.

    These are `loss` for `total_loss`, and `val_loss` and `val_accuracy`. A callback in mode `auto` takes its direction from the name:
    upwards for names that end in `accuracy`, else downwards.

    Args:
        callbacks: those after it.
        network: the trained one; callbacks may monitor its metrics.
        splits: the data; their validation and test sets are evaluated too.

    Raises:
        UserError: if a callback monitors a number that the training does not have.
    """

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback], network: keras.Model, splits: Splits) -> None:
        super().__init__()
        parts = [name for name, part in (("test", splits.test), ("validation", splits.validation)) if len(part)]
        names = [*(metric.name for metric in network.metrics), *(f"{part}_{what}" for part in parts for what in _BOTH)]
        known = {*names, *(_KERAS_NAMES[name] for name in names if name in _KERAS_NAMES)}
        for callback in callbacks:
            monitor = getattr(callback, "monitor", None)
            if monitor is not None and monitor not in known:
                raise UserError(
                    f"{type(callback).__name__} must monitor a number of the training. Received: {monitor!r}. {nearest(monitor, known)}"
                )
            if getattr(callback, "mode", None) == "auto" and monitor is not None:
                callback.mode = "max" if monitor.endswith("accuracy") else "min"

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if logs is not None:
            logs.update({_KERAS_NAMES[name]: value for name, value in logs.items() if name in _KERAS_NAMES})


class BestEpoch(keras.callbacks.Callback):
    """Holds the weights of the epoch with the best accuracy on the validation split; of equal ones, the first.

    Args:
        network: its weights are held.

    Attributes:
        accuracy: the best one so far.
        weights: the network's, at the end of that epoch.
    """

    def __init__(self, network: keras.Model) -> None:
        super().__init__()
        self._network = network
        self.accuracy = -np.inf
        self.weights: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        accuracy = (logs or {}).get("validation_accuracy", -np.inf)
        if accuracy > self.accuracy:
            self.accuracy, self.weights = accuracy, self._network.get_weights()

    def restore(self) -> None:
        """Puts these weights back into the network."""
        self._network.set_weights(self.weights)
