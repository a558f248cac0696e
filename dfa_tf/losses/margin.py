"""Overhaul of feature distillation (OFD): the teacher's last features, before the ReLU, through a margin ReLU.

References:
    Heo, Kim, Yun, Park, Kwak, Choi (2019), A Comprehensive Overhaul of Feature Distillation, ICCV, arXiv 1904.01866, sections 3.1 to 3.3.
"""

from typing import ClassVar

import tensorflow as tf

from dfa_tf.config import Tap
from dfa_tf.methods import Batch, Method
from dfa_tf.methods.distances import group_factor, group_margins, margin_distance
from dfa_tf.networks.connectors import connector
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.pairing import pair_groups


class Margin(Method):
    """The partial L2 of each group's last student feature, through a connector, to the margin ReLU of the teacher's."""

    taps: ClassVar[tuple[Tap, ...]] = ("pre_activation",)
    reads = ("last_blocks",)

    def __init__(self, student: FeatureModel, teacher: FeatureModel) -> None:
        super().__init__("margin")
        pairs = pair_groups(student, teacher)
        self.connectors = [connector(ours.shape, theirs.shape, name=f"connector{i}") for i, (ours, theirs) in enumerate(pairs, start=1)]
        self.margins = [group_margins(group, "pre_activation")[-1] for group in teacher.groups]

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        terms = {}
        for i, (ours, theirs) in enumerate(zip(student.at("pre_activation"), teacher.at("pre_activation"), strict=True)):
            feature = self.connectors[i](ours[-1], training=True)
            factor = group_factor("margin", i, len(self.connectors))
            terms[f"margin/group{i + 1}"] = factor * margin_distance(feature, theirs[-1], self.margins[i])
        return terms


def build(student: FeatureModel, teacher: FeatureModel) -> Margin:
    """OFD: `dfa` with the weights (0, ..., 0, 1) and the distance `"margin"`, always at the pre-activation tap.

    The term of group i of G is a sum over the elements times 1e-3 / 2^(G - i), and weight 1 is recommended: both as in
    the authors' code for CIFAR-100. The connectors are 1x1 convolutions with BatchNorm; they resize first where the groups differ in
    resolution. The authors' teacher uses the statistics of each batch (`teacher.batchnorm`).

    Args:
        student: its last block of each group is matched.
        teacher: the same for the teacher.

    Raises:
        UserError: if the groups do not pair.
    """
    return Margin(student, teacher)
