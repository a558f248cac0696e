"""Probabilistic knowledge transfer: the probabilities that an example picks another one of the batch as its neighbour.

References:
    Passalis, Tefas (2018), Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV, arXiv 1803.10837,
    section 3, with the cosine kernel.
"""

import tensorflow as tf

from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features

# The authors' code too adds it inside the logarithm: an opposite example has probability 0.
_EPSILON = 1e-7


class ProbabilisticTransfer(Method):
    """KL(P || Q) of the teacher's neighbour probabilities P and the student's Q, as the mean over the pairs of the batch."""

    reads = ("embedding",)
    recommended_weight = 30000.0

    def __init__(self) -> None:
        super().__init__("pkt")

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        ours, theirs = _probabilities(student.embedding), _probabilities(teacher.embedding)
        return {"pkt": tf.reduce_mean(theirs * tf.math.log((theirs + _EPSILON) / (ours + _EPSILON)))}


def _probabilities(embedding: tf.Tensor) -> tf.Tensor:
    """`[B, D]` to `[B, B]`: row i is proportional to (1 + cos(e_i, e_j)) / 2."""
    unit = tf.math.l2_normalize(embedding, axis=1)
    # Rounding takes the cosine of opposite vectors below -1.
    similarity = tf.maximum((1 + tf.matmul(unit, unit, transpose_b=True)) / 2, 0.0)
    return similarity / tf.reduce_sum(similarity, axis=1, keepdims=True)


def build(student: FeatureModel, teacher: FeatureModel) -> ProbabilisticTransfer:
    """The similarities of the embeddings within a batch, as probabilities.

    Each row runs over all examples of the batch, the example itself included, and the term is the mean over the B^2
    pairs, both as in the authors' code; the paper leaves the example out and sums. The recommended weight 30000 is
    RepDistiller's, for this definition. The term is a statistic of the batch: on several devices each one computes it on its own part.

    Args:
        student: its embedding `[B, D]` is the input of its last Dense layer.
        teacher: the same for the teacher; its D may differ.

    Raises:
        UserError: if a network has no embedding.
    """
    for network in (student, teacher):
        network.embedding_width("pkt")
    return ProbabilisticTransfer()
