"""DIST: the student's predictions need only correlate with the teacher's, within each example and within each class.

References:
    Huang, You, Wang, Qian, Xu (2022), Knowledge Distillation from A Stronger Teacher, arXiv 2205.10536, Eq. 6 to 10.
"""

import tensorflow as tf

from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features


class RelationMatching(Method):
    """beta T^2 (1 - r), with Pearson's r over the classes of each example, and gamma T^2 (1 - r) over the examples of each class."""

    reads = ("logits",)

    def __init__(self, beta: float, gamma: float, temperature: float) -> None:
        super().__init__("dist")
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        ours, theirs = tf.nn.softmax(student.logits / self.temperature), tf.nn.softmax(teacher.logits / self.temperature)
        square = self.temperature**2
        return {
            "dist/inter": self.beta * square * (1 - _correlation(ours, theirs, axis=1)),
            "dist/intra": self.gamma * square * (1 - tf.reduce_mean(_correlation(ours, theirs, axis=0))),
        }


def _correlation(one: tf.Tensor, other: tf.Tensor, axis: int) -> tf.Tensor:
    """Pearson's correlation, -1..1; 0 where one of the two does not vary."""
    one, other = (x - tf.reduce_mean(x, axis=axis, keepdims=True) for x in (one, other))
    # l2_normalize takes norms as at least 1e-6: otherwise a class of constant probability would divide 0 by 0.
    return tf.reduce_sum(tf.math.l2_normalize(one, axis=axis) * tf.math.l2_normalize(other, axis=axis), axis=axis)


def build(
    student: FeatureModel, teacher: FeatureModel, *, beta: float = 2.0, gamma: float = 2.0, temperature: float = 1.0
) -> RelationMatching:
    """Relations instead of values.

    The recommended weight is 1, because the terms include beta and gamma: `dist/inter`, per example, and `dist/intra`, a scalar, the
    mean over the classes. Relations within a class are computed over the batch: on several devices over each one's part. The factor T^2
    is from the authors' code. The listing in the paper lacks it; at T = 1 both agree.

    Args:
        student: logits `[B, num_classes]`.
        teacher: the same for the teacher.
        beta: weight of the relations between classes (inter), 0 or more; 2 as in the paper.
        gamma: weight of the relations within a class (intra), 0 or more; 2 as in the paper.
        temperature: T, above 0; 1 as in the paper on ImageNet. The paper takes 4 on CIFAR-100.

    Raises:
        UserError: if T is not above 0, or a weight is below 0.
    """
    if not temperature > 0:
        raise UserError(f"the temperature of dist must be above 0. Received: {temperature}")
    for name, weight in (("beta", beta), ("gamma", gamma)):
        if not weight >= 0:
            raise UserError(f"{name} of dist must be 0 or more. Received: {weight}")
    return RelationMatching(float(beta), float(gamma), float(temperature))
