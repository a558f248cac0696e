"""The numbers of a Distiller's steps, as means over an epoch."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from dfa_tf.methods.classification import correct, cross_entropy


class StepMetrics:
    """Means of the terms, the accuracy, the learning rate and the gradient's norm; and separately those of `evaluate`.

    Args:
        terms: names of the methods' terms.
    """

    def __init__(self, terms: Sequence[str]) -> None:
        names = ["total_loss", "cross_entropy", *terms, "accuracy", "learning_rate"]
        self._training = [keras.metrics.Mean(name=name) for name in names]
        self._norm = keras.metrics.Mean(name="gradient_norm")
        self._evaluation = [keras.metrics.Mean(name=name) for name in ("cross_entropy", "accuracy")]

    def training(self, *, with_gradient: bool) -> list[keras.metrics.Metric]:
        """The metrics of training steps; that of the gradient's norm only if a step sees the whole gradient."""
        return [*self._training, self._norm] if with_gradient else self._training

    @property
    def evaluation(self) -> list[keras.metrics.Metric]:
        """The metrics of `evaluate`: cross-entropy and accuracy."""
        return self._evaluation

    def evaluated(self, labels: tf.Tensor, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """Adds a batch to the metrics of `evaluate`, and returns them."""
        return updated(self._evaluation, {"cross_entropy": cross_entropy(labels, logits), "accuracy": correct(labels, logits)})


def updated(metrics: Sequence[keras.metrics.Metric], numbers: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Adds a step's numbers to the metrics of the same names, and returns the means."""
    for metric in metrics:
        metric.update_state(numbers[metric.name])
    return {metric.name: metric.result() for metric in metrics}
