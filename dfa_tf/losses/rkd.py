"""Relational knowledge distillation: the distances between the examples of a batch, and the angles among any three.

References:
    Park, Kim, Lu, Cho (2019), Relational Knowledge Distillation, CVPR, arXiv 1904.05068, section 3.2.
"""

import math

import keras
import tensorflow as tf

from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features

# Pairs at a smaller squared distance count as one point, as in the authors' code.
_SAME = 1e-12


class RelationalDistillation(Method):
    """The Huber losses between the student's and the teacher's distances and angles."""

    reads = ("embedding",)

    def __init__(self, distance: float, angle: float) -> None:
        super().__init__("rkd")
        self.distance = distance
        self.angle = angle

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        distances, angles = _relations(student.embedding)
        teacher_distances, teacher_angles = _relations(teacher.embedding)
        return {
            "rkd/distance": self.distance * tf.reduce_mean(keras.losses.huber(teacher_distances, distances)),
            "rkd/angle": self.angle * tf.reduce_mean(keras.losses.huber(teacher_angles, angles)),
        }


def _relations(embedding: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Distances and angles of embeddings `[B, D]`.

    Returns:
        `[B, B]`, distances divided by their mean (0 from an example to itself), and `[B, B, B]`, at `[i, j, k]` the cosine of the angle
        at example i between j and k (0 where i is j or k).
    """
    differences = embedding[:, tf.newaxis] - embedding[tf.newaxis]
    squared = tf.reduce_sum(tf.square(differences), axis=2)
    # At distance 0 the root and the direction have no gradient. Such pairs are left out; otherwise it would be NaN or huge.
    apart = squared > _SAME
    inverse = tf.where(apart, tf.math.rsqrt(tf.maximum(squared, _SAME)), 0.0)
    distances = squared * inverse
    mean = tf.math.divide_no_nan(tf.reduce_sum(distances), tf.reduce_sum(tf.cast(apart, tf.float32)))
    directions = differences * inverse[:, :, tf.newaxis]
    return tf.math.divide_no_nan(distances, mean), tf.matmul(directions, directions, transpose_b=True)


def build(student: FeatureModel, teacher: FeatureModel, *, distance: float = 25.0, angle: float = 50.0) -> RelationalDistillation:
    """Relations between the embeddings within a batch: RKD-DA.

    The terms are means over all B^2 pairs and B^3 triples, as in the authors' code; the paper sums over those of distinct examples. The
    terms include the paper's weights, 25 and 50, so that the recommended weight is 1, as in RepDistiller. They are statistics of the
    batch: on several devices each one computes them on its own part. Memory grows as B^2 (B + D).

    Args:
        student: its embedding `[B, D]` is the input of its last Dense layer.
        teacher: the same for the teacher; its D may differ.
        distance: weight of the distances, at least 0.
        angle: weight of the angles, at least 0.

    Raises:
        UserError: if a weight is negative or not finite, both are 0, or a network has no embedding.
    """
    for name, weight in (("distance", distance), ("angle", angle)):
        if not 0 <= weight < math.inf:
            raise UserError(f"the weight {name} of rkd must be at least 0. Received: {weight}")
    if distance == angle == 0:
        raise UserError("one of the weights distance and angle of rkd must be above 0. Received: 0 for both")
    for network in (student, teacher):
        network.embedding_width("rkd")
    return RelationalDistillation(float(distance), float(angle))
