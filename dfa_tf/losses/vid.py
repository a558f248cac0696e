"""Variational information distillation: a gaussian model of the teacher's features, given the student's.

References:
    Ahn, Hu, Damianou, Lawrence, Dai (2019), Variational Information Distillation for Knowledge Transfer, CVPR,
    arXiv 1904.05835: the gaussian with a variance for each channel.
"""

import math
from typing import ClassVar

import keras
import tensorflow as tf
from keras import layers

from dfa_tf.config import Tap
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.connectors import same_resolution
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.layers import convolve
from dfa_tf.networks.pairing import pair_groups


class VariationalDistillation(Method):
    """The negative log likelihood of each group's last teacher feature, without the constant 0.5 log 2 pi."""

    taps: ClassVar[tuple[Tap, ...]] = ("output",)
    reads = ("last_blocks",)

    def __init__(self, student: FeatureModel, teacher: FeatureModel, initial_variance: float, epsilon: float) -> None:
        super().__init__("vid")
        pairs = pair_groups(student, teacher)
        self.epsilon = epsilon
        self.regressors = [_regressor(ours.channels, theirs.channels, f"regressor{i}") for i, (ours, theirs) in enumerate(pairs, start=1)]
        # Softplus of this, plus epsilon, is the initial variance.
        start = keras.initializers.Constant(math.log(math.expm1(initial_variance - epsilon)))
        self.scales = [
            self.add_weight(shape=(theirs.channels,), initializer=start, name=f"scale{i}") for i, (_, theirs) in enumerate(pairs, start=1)
        ]

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        terms = {}
        for i, (ours, theirs) in enumerate(zip(student.at("output"), teacher.at("output"), strict=True)):
            feature, target = same_resolution(ours[-1], theirs[-1])
            mean = tf.cast(self.regressors[i](feature), tf.float32)
            variance = tf.math.softplus(self.scales[i].value) + self.epsilon
            surprise = 0.5 * (tf.math.squared_difference(mean, target) / variance + tf.math.log(variance))
            terms[f"vid/group{i + 1}"] = tf.reduce_mean(surprise, axis=[1, 2, 3])
        return terms


def _regressor(source: int, target: int, name: str) -> keras.Model:
    """Three 1x1 convolutions with ReLU between them, from one width to another."""
    feature = layers.Input((None, None, source))
    x = layers.ReLU()(convolve(feature, target, 1, name=f"{name}_conv1"))
    x = layers.ReLU()(convolve(x, target, 1, name=f"{name}_conv2"))
    return keras.Model(feature, convolve(x, target, 1, name=f"{name}_conv3"), name=name)


def build(student: FeatureModel, teacher: FeatureModel, *, initial_variance: float = 5.0, epsilon: float = 1e-5) -> VariationalDistillation:
    """The likelihood of the teacher's features under a regression from the student's.

    The term is 0.5 ((mu(S) - T)^2 / var + log var), the mean over the elements of each example; the paper sums. mu has no BatchNorm,
    and its inner layers are as wide as the teacher. Mean and mu are as in RepDistiller, whose weight 1 is recommended. The variance is
    learned, one for each channel. Where resolutions differ, the finer feature is pooled to the coarser. The term is negative where the
    variance is small.

    Args:
        student: the output of its last block of each group is read.
        teacher: the same for the teacher.
        initial_variance: of each channel, above epsilon.
        epsilon: the least variance, above 0.

    Raises:
        UserError: if the variances are out of range, or the groups do not pair.
    """
    if not 0 < epsilon < initial_variance < math.inf:
        raise UserError(f"vid needs 0 < epsilon < initial_variance. Received: epsilon={epsilon}, initial_variance={initial_variance}")
    return VariationalDistillation(student, teacher, float(initial_variance), float(epsilon))
