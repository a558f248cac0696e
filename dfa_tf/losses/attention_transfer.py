"""Attention transfer: the student looks where the teacher looks.

References:
    Zagoruyko, Komodakis (2017), Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via
    Attention Transfer, ICLR, arXiv 1612.03928, section 3.1, Eq. 2.
"""

from typing import ClassVar

import tensorflow as tf

from dfa_tf.config import Tap
from dfa_tf.methods import Batch, Method
from dfa_tf.methods.distances import normalised_squared_distance
from dfa_tf.networks.connectors import same_resolution
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.pairing import pair_groups


class AttentionTransfer(Method):
    """Mean square of the difference of both attention maps at unit length, per group and example.

    The attention map of a feature is the mean over its channels of the squares, `[B, H, W]`.
    """

    taps: ClassVar[tuple[Tap, ...]] = ("output",)
    reads = ("last_blocks",)
    recommended_weight = 1000.0

    def __init__(self, student: FeatureModel, teacher: FeatureModel) -> None:
        super().__init__("attention_transfer")
        pair_groups(student, teacher)

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        terms = {}
        for i, (ours, theirs) in enumerate(zip(student.at("output"), teacher.at("output"), strict=True), start=1):
            one, other = same_resolution(_attention(ours[-1]), _attention(theirs[-1]))
            places = one.shape[1] * one.shape[2]
            terms[f"attention_transfer/group{i}"] = normalised_squared_distance(one, other) / places
        return terms


def _attention(feature: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(feature), axis=-1, keepdims=True)


def build(student: FeatureModel, teacher: FeatureModel) -> AttentionTransfer:
    """Attention maps of the last block's output in each group.

    The authors' code and the common implementations compute the same: the mean over the positions of the map, with weight 1000. Eq. 2
    of the paper writes beta / 2 times the sum over the groups of the norm of the difference, with beta = 1000 divided by the numbers of
    positions and examples. The author of DFA instead takes 60 / 2 times the sum of mean squared differences of L2-normalised channel
    sums, without squares.

    Args:
        student: its groups may have any number of channels.
        teacher: the same for the teacher. Where resolutions differ, the larger map is averaged down (RepDistiller averages the feature).

    Raises:
        UserError: if the groups do not pair.
    """
    return AttentionTransfer(student, teacher)
