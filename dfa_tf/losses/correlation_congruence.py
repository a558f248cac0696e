"""Correlation congruence: the similarities of the examples of a batch under a gaussian kernel.

References:
    Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang (2019), Correlation Congruence for Knowledge Distillation, ICCV, arXiv 1904.01802,
    section 3: L_CC, with the gaussian kernel by its Taylor series.
"""

import math

import keras
import tensorflow as tf

from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features


class CorrelationCongruence(Method):
    """The squared difference of the student's and the teacher's correlations, averaged over the pairs of a batch."""

    reads = ("embedding",)
    recommended_weight = 100.0

    def __init__(self, student_width: int, teacher_width: int, gamma: float, order: int) -> None:
        super().__init__("correlation_congruence")
        # The powers start at 1: the power 0 is a constant, which cancels in the difference.
        self.factors = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(1, order + 1)]
        self.connector = None
        if student_width != teacher_width:
            self.connector = keras.layers.Dense(teacher_width, dtype="float32", name="connector")
            self.connector.build((None, student_width))

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        embedding = student.embedding if self.connector is None else self.connector(student.embedding)
        difference = self._correlations(embedding) - self._correlations(teacher.embedding)
        return {"correlation_congruence": tf.reduce_mean(tf.square(difference))}

    def _correlations(self, embedding: tf.Tensor) -> tf.Tensor:
        """`[B, D]` to `[B, B]`: exp(-gamma ||e_i - e_j||^2) of unit vectors, up to the order of the series, without its constant."""
        unit = tf.math.l2_normalize(embedding, axis=1)
        cosine = tf.matmul(unit, unit, transpose_b=True)
        return tf.add_n([factor * cosine**p for p, factor in enumerate(self.factors, start=1)])


def build(student: FeatureModel, teacher: FeatureModel, *, gamma: float = 0.4, order: int = 2) -> CorrelationCongruence:
    """The kernel of the embeddings within a batch.

    The kernel is the paper's gaussian kernel, exp(-2 gamma) sum over p up to `order` of (2 gamma)^p / p! (e_i . e_j)^p. It assumes unit
    vectors, so embeddings are normalised, as in Knowledge-Distillation-Zoo; its weight, 100, is recommended. torchdistill's weight for
    ImageNet, 0.003, is for embeddings that are not normalised: their kernel is not bounded by 1. RepDistiller's 0.02 is for another
    term, the product of the differences of neighbours in the batch. Where the embeddings differ in width, a Dense layer maps the
    student's to the teacher's width; the teacher's does not change. The term is a statistic of the batch: on several devices each one
    computes it on its own part.

    Args:
        student: its embedding `[B, D]` is the input of its last Dense layer.
        teacher: the same for the teacher; its D may differ.
        gamma: of the kernel, above 0.
        order: P of the series, at least 1.

    Raises:
        UserError: if gamma or the order is out of range, or a network has no embedding.
    """
    if not 0 < gamma < math.inf:
        raise UserError(f"gamma of correlation_congruence must be above 0. Received: {gamma}")
    if not isinstance(order, int) or order < 1:
        raise UserError(f"the order of correlation_congruence must be a whole number of at least 1. Received: {order}")
    widths = [network.embedding_width("correlation_congruence") for network in (student, teacher)]
    return CorrelationCongruence(widths[0], widths[1], gamma, order)
