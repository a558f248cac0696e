"""Neuron selectivity transfer: the student's channels learn to select the positions that the teacher's select.

References:
    Huang, Wang (2017), Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, arXiv 1707.01219, section 4.
"""

from typing import ClassVar

import tensorflow as tf

from dfa_tf.config import Tap
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.connectors import same_resolution
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.pairing import pair_groups


class NeuronSelectivityTransfer(Method):
    """Squared maximum mean discrepancy (MMD) of both sets of channels, per group and example.

    A channel is its activation map, flattened, at unit length. With the kernel k(x, y) = (x^T y)^2, the term is the mean of k over
    all pairs of the student's channels, plus the mean over all pairs of the teacher's, minus twice the mean over the pairs of one of each.
    """

    taps: ClassVar[tuple[Tap, ...]] = ("output",)
    reads = ("last_blocks",)
    recommended_weight = 50.0

    def __init__(self, student: FeatureModel, teacher: FeatureModel) -> None:
        super().__init__("nst")
        pair_groups(student, teacher)

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        terms = {}
        for i, (ours, theirs) in enumerate(zip(student.at("output"), teacher.at("output"), strict=True), start=1):
            one, other = (_channels(feature) for feature in same_resolution(ours[-1], theirs[-1]))
            terms[f"nst/group{i}"] = _mean_kernel(one, one) + _mean_kernel(other, other) - 2 * _mean_kernel(one, other)
        return terms


def _channels(feature: tf.Tensor) -> tf.Tensor:
    """`[B, H * W, C]`, each channel at unit length."""
    return tf.math.l2_normalize(tf.reshape(feature, [tf.shape(feature)[0], -1, feature.shape[-1]]), axis=1)


def _mean_kernel(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(tf.linalg.matmul(one, other, transpose_a=True)), axis=[1, 2])


def build(student: FeatureModel, teacher: FeatureModel) -> NeuronSelectivityTransfer:
    """Activation maps of the last block's output in each group, with the paper's polynomial kernel (d = 2, c = 0).

    The weight 50 is the paper's lambda for this kernel. As in the common implementations (RepDistiller) it multiplies the sum over all
    groups; the paper writes lambda / 2, and on CIFAR matches the last group alone.

    Args:
        student: its groups may have any number of channels.
        teacher: the same for the teacher. Where resolutions differ, the larger feature is averaged down to the smaller.

    Raises:
        UserError: if the groups do not pair.
    """
    return NeuronSelectivityTransfer(student, teacher)
