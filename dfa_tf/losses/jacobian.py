"""Jacobian matching: the student's output learns to depend on each pixel as the teacher's does.

References:
    Srinivas, Fleuret (2018), Knowledge Transfer with Jacobian Matching, ICML, arXiv 1803.00443: Proposition 1 (matching Jacobians is
    distillation with noise on the input), section 4 (the output of the correct class alone), Eq. 10 (Jacobians of unit length).
"""

from typing import ClassVar, Literal

import keras
import tensorflow as tf

from dfa_tf.methods import Batch, Method
from dfa_tf.methods.distances import normalised_squared_distance
from dfa_tf.networks.batchnorm import twice_differentiable
from dfa_tf.networks.features import FeatureModel, Features


class JacobianMatching(Method):
    """|| J_s/||J_s|| - J_t/||J_t|| ||^2 per example, in 0..4, with J the derivative of the correct class's logit by the pixels."""

    needs: ClassVar[tuple[Literal["images"], ...]] = ("images",)
    reads = ()

    def __init__(self, student: FeatureModel, teacher: FeatureModel) -> None:
        super().__init__("jacobian")
        self._student, self._teacher = student, teacher

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        chosen = tf.one_hot(batch.classes, self._student.num_classes)
        ours = _jacobian(self._student, batch.images, chosen, training=True)
        theirs = tf.stop_gradient(_jacobian(self._teacher, batch.images, chosen, training=False))
        return {"jacobian": normalised_squared_distance(ours, theirs)}


def _jacobian(network: FeatureModel, images: tf.Tensor, chosen: tf.Tensor, training: bool) -> tf.Tensor:
    """The derivative of the sum of the chosen logits by the pixels, `[B, H, W, C]`."""
    # BatchNorm's moving statistics must not move a second time in the same step: a stateless scope discards assignments.
    with keras.StatelessScope(), twice_differentiable(network.model), tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = tf.cast(network.model(images, training=training), tf.float32)
        total = tf.reduce_sum(logits * chosen)
    return tape.gradient(total, images)


def build(student: FeatureModel, teacher: FeatureModel) -> JacobianMatching:
    """The Jacobian of the correct class's logit, one for each example.

    For distillation on the same data the paper takes the squared distance of the Jacobians of the outputs (Proposition 1), but only for
    the correct class, because the Jacobians of all classes cost too much. Their length is in logits per pixel value, and so depends on
    how each network scales its input. Here they have unit length, as in the paper for the attention maps that it matches between tasks
    (Eq. 10), and the weight is 1. Knowledge-Distillation-Zoo uses unit length too, but takes the mean over the pixels, with weight 20.

    The student runs in training mode, so that its Jacobian includes the path through the batch statistics. The teacher runs in
    inference mode. Both run once more, forward and backward, and the student's backward pass is itself differentiated: a step costs
    several times as much as with other methods.

    Args:
        student: logits `[B, num_classes]`.
        teacher: the same for the teacher.
    """
    return JacobianMatching(student, teacher)
