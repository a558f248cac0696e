"""FitNets: the student's middle layers learn to predict a hint from the teacher's middle layers.

References:
    Romero et al. (2015), FitNets: Hints for Thin Deep Nets, ICLR, arXiv 1412.6550, Eq. 3 and Algorithm 1.
"""

from typing import ClassVar

import tensorflow as tf

from dfa_tf.config import Tap
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method, Phase
from dfa_tf.methods.distances import squared_distance
from dfa_tf.networks.connectors import connector
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.pairing import pair_groups


class FitNet(Method):
    """1/2 || r(s) - t ||^2 per example, with s and t the last outputs of one group and r a learned regressor."""

    taps: ClassVar[tuple[Tap, ...]] = ("output",)
    recommended_weight = 1e-3

    def __init__(self, student: FeatureModel, teacher: FeatureModel, hint: int, first_phase: float) -> None:
        super().__init__("fitnet")
        ours, theirs = pair_groups(student, teacher)[hint - 1]
        if first_phase:
            self.phases = (Phase(first_phase, 0.0, 1.0), Phase(1 - first_phase, 1.0, 0.0, other_weight=1.0))
        self._hint = hint - 1
        self.reads = (f"group{hint}/last_block",)
        self.regressor = connector(ours.shape, theirs.shape, name="regressor")

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        feature = self.regressor(student.at("output")[self._hint][-1], training=True)
        return {"fitnet": 0.5 * squared_distance(feature, teacher.at("output")[self._hint][-1])}


def build(student: FeatureModel, teacher: FeatureModel, *, hint: int | None = None, first_phase: float = 0.25) -> FitNet:
    """A hint from one layer group, its last block's output.

    In the first phase the hint alone trains the regressor and the student up to the guided group, without cross-entropy. After it the
    hint has weight 0, and the cross-entropy and the other methods train the student: add `kd` to the methods, as in the paper. Without
    a first phase the hint is an ordinary term in all epochs.

    In the paper Eq. 3 is the only term, without a weight, and has another optimizer. It is a sum over the elements of the feature: in a
    trial (WRN-10-1, hint of 16x16x64) SGD with a learning rate of 0.1 diverged at weight 1. The recommended weight is 1e-3, as in OFD
    for such sums. The common implementations (RepDistiller) differ: mean over the elements, weight 100, no first phase. The paper's
    regressor ends in the hint's activation, and reduces resolution by an unpadded kernel; here the regressor is
    `dfa_tf.networks.connectors.connector`. The paper's first phase lasts until the validation error no longer falls; a quarter of the
    epochs is this project's choice.

    Args:
        student: its group is guided.
        teacher: its group gives the hint.
        hint: index of the group, from 1; None takes the middle one, (G + 1) // 2 of G.
        first_phase: fraction of the epochs, from 0 to below 1.

    Raises:
        UserError: if the groups do not pair, there is no such group, or the fraction is out of range.
    """
    count = len(student.groups)
    hint = (count + 1) // 2 if hint is None else hint
    if hint not in range(1, count + 1):
        raise UserError(f"the hint of fitnet is the index of a layer group, 1..{count}. Received: {hint}")
    if not 0 <= first_phase < 1:
        raise UserError(f"the first_phase of fitnet is a fraction of the epochs, from 0 to below 1. Received: {first_phase}")
    return FitNet(student, teacher, hint, first_phase)
