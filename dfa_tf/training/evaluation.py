"""One evaluator for everything that turns raw pixels into logits or probabilities."""

import functools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dfa_tf.config import TrainConfig
from dfa_tf.images.splits import Split, Splits
from dfa_tf.methods.classification import correct, cross_entropy
from dfa_tf.process.status import doing

Predictor = Callable[[tf.Tensor], tf.Tensor | np.ndarray]
"""Raw pixels, float32 `[B, H, W, C]`, to logits `[B, num_classes]`."""
BATCH_SIZE = 256


class Evaluation(NamedTuple):
    """Attributes: share of correct predictions, 0..1; mean cross-entropy in nats."""

    accuracy: float
    loss: float


def predictor(model: keras.Model) -> Predictor:
    """A Keras classifier in inference mode, traced once for batches of any size."""
    # A partial, not a lambda: TensorFlow takes functions of the same code for one that is traced over and over, and warns.
    return tf.function(functools.partial(model, training=False), input_signature=[tf.TensorSpec(model.inputs[0].shape, tf.float32)])


def evaluate(predict: Predictor, split: Split) -> Evaluation:
    """Accuracy and loss over a whole split. Every image counts once, whatever its sample weight.

    The correct class of a soft label is its most probable one.

    Args:
        predict: raw pixels to logits.
        split: not empty.
    """
    accuracy, loss = keras.metrics.Mean(), keras.metrics.Mean()
    for batch in split.once(BATCH_SIZE):
        logits = predict(batch["images"])
        accuracy.update_state(correct(batch["labels"], logits))
        loss.update_state(cross_entropy(batch["labels"], logits))
    return Evaluation(float(accuracy.result()), float(loss.result()))


def top_classes(predict: Predictor, split: Split) -> np.ndarray:
    """The most probable class of each image of a split, integers `[n]`."""
    return np.concatenate([np.argmax(predict(batch["images"]), axis=1) for batch in split.once(BATCH_SIZE)])


def is_chance(accuracy: float, num_classes: int, images: int) -> bool:
    """Whether an accuracy, 0..1, is that of guessing: less than two standard errors of guesses above 1/classes."""
    chance = 1 / num_classes
    return accuracy < chance + 2 * math.sqrt(chance * (1 - chance) / images)


def images_per_second(predictors: dict[str, Predictor], images: tf.Tensor | np.ndarray, *, repetitions: int = 15) -> dict[str, float]:
    """Inference speed of several predictors, measured in turns in one run: the median of the repetitions.

    Args:
        predictors: by name.
        images: a batch of raw pixels, `[B, H, W, C]`.
        repetitions: of the batch, for each predictor.
    """
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    for repetition in range(repetitions + 2):
        for name, predict in predictors.items():
            start = time.perf_counter()
            np.asarray(predict(images))
            if repetition >= 2:  # the first ones trace and warm up
                seconds[name].append(time.perf_counter() - start)
    return {name: len(images) / float(np.median(values)) for name, values in seconds.items()}


class EvaluationCallback(keras.callbacks.Callback):
    """Adds accuracy and loss on the test set and the validation split, where these exist, to an epoch's logs.

    Args:
        model: the model to evaluate.
        splits: the data.
        train: sets how often; the last epoch is always evaluated.

    Attributes:
        predict: the model, as `evaluate` takes it.
    """

    def __init__(self, model: keras.Model, splits: Splits, train: TrainConfig) -> None:
        super().__init__()
        self.predict = predictor(model)
        self._splits = {name: part for name, part in (("test", splits.test), ("validation", splits.validation)) if len(part)}
        self._every, self._last = train.evaluate_every, train.epochs

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if logs is not None and ((epoch + 1) % self._every == 0 or epoch + 1 == self._last):
            self.evaluate_into(logs)

    def evaluate_into(self, logs: dict[str, float]) -> None:
        """Adds the model's current accuracy and loss, unless the logs have them already."""
        for name, part in self._splits.items():
            if f"{name}_accuracy" not in logs:
                with doing(f"evaluating on the {name} images"):
                    logs[f"{name}_accuracy"], logs[f"{name}_loss"] = evaluate(self.predict, part)
