"""Activation boundaries (AB): the student's neurons learn to be active where the teacher's are.

References:
    Heo et al. (2019), Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons, AAAI, arXiv 1811.03233:
    the alternative loss with its connector; factors and weight as in the authors' code, github.com/bhheo/AB_distillation.
"""

from typing import ClassVar

import tensorflow as tf

from dfa_tf.config import Tap
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method, Phase
from dfa_tf.networks.connectors import connector
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.pairing import pair_groups


class ActivationBoundary(Method):
    """The alternative loss of each group's last pre-activation, per example, times 1 / 2^(G - i) in group i of G.

    With margin mu, and s the student's pre-activation through a connector, an element contributes max(0, mu - s)^2 where the teacher's
    neuron is active, and max(0, mu + s)^2 elsewhere.
    """

    taps: ClassVar[tuple[Tap, ...]] = ("pre_activation",)
    reads = ("last_blocks",)
    recommended_weight = 3e-3

    def __init__(self, student: FeatureModel, teacher: FeatureModel, margin: float, first_phase: float) -> None:
        super().__init__("activation_boundary")
        pairs = pair_groups(student, teacher)
        if first_phase:
            self.phases = (Phase(first_phase, 0.0, 1.0), Phase(1 - first_phase, 1.0, 0.0, other_weight=1.0))
        self.margin = margin
        self.connectors = [connector(ours.shape, theirs.shape, name=f"connector{i}") for i, (ours, theirs) in enumerate(pairs, start=1)]

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        terms = {}
        groups = zip(self.connectors, student.at("pre_activation"), teacher.at("pre_activation"), strict=True)
        for i, (connect, ours, theirs) in enumerate(groups, start=1):
            feature = tf.cast(connect(ours[-1], training=True), tf.float32)
            side = tf.where(theirs[-1] > 0, 1.0, -1.0)
            distance = tf.reduce_sum(tf.square(tf.nn.relu(self.margin - side * feature)), axis=[1, 2, 3])
            terms[f"activation_boundary/group{i}"] = distance / 2 ** (len(self.connectors) - i)
        return terms


def build(student: FeatureModel, teacher: FeatureModel, *, margin: float = 1.0, first_phase: float = 0.25) -> ActivationBoundary:
    """Boundaries of the neurons of each group's last pre-activation.

    In the first phase this loss alone trains the student and the connectors, without cross-entropy. After it the loss has weight 0, and
    the cross-entropy and the other methods train the student, as in the paper: add `kd` to the methods. Without a first phase the loss
    is an ordinary term in all epochs.

    Margin, factors and weight are those of the authors' code on CIFAR-10, and of RepDistiller. Both omit the connector where the widths
    agree; this method always has one. A first phase of a quarter of the epochs is this project's choice. RepDistiller's takes 30 epochs
    before 240 others; Knowledge-Distillation-Zoo's takes the first 50.

    Args:
        student: its last block of each group learns the boundaries.
        teacher: its last block of each group has them.
        margin: mu, above 0.
        first_phase: fraction of the epochs, from 0 to below 1.

    Raises:
        UserError: if the groups do not pair, or margin or fraction are out of range.
    """
    if not margin > 0:
        raise UserError(f"the margin of activation_boundary must be above 0. Received: {margin}")
    if not 0 <= first_phase < 1:
        raise UserError(f"the first_phase of activation_boundary is a fraction of the epochs, from 0 to below 1. Received: {first_phase}")
    return ActivationBoundary(student, teacher, float(margin), first_phase)
