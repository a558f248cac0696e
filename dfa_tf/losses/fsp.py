"""Flow of the solution procedure (FSP): how the features change between two layers, as inner products of their channels.

References:
    Yim, Joo, Bae, Kim (2017), A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
    Learning, CVPR 2017, Eq. 1 and 2.
    Tian, Krishnan, Isola (2020), Contrastive Representation Distillation, arXiv 1910.10699: RepDistiller, its code.
"""

from typing import ClassVar, Literal, get_args

import keras
import tensorflow as tf

from dfa_tf.config import Tap
from dfa_tf.errors import UserError, nearest
from dfa_tf.methods import Batch, Method, Phase
from dfa_tf.networks.connectors import connector, same_resolution
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.pairing import pair_groups

Flow = Literal["within", "between"]


class FlowOfSolution(Method):
    """Mean squared difference of the FSP matrices of student and teacher, per example."""

    taps: ClassVar[tuple[Tap, ...]] = ("output",)

    def __init__(self, student: FeatureModel, teacher: FeatureModel, flow: Flow, first_phase: float) -> None:
        super().__init__("fsp")
        pairs = pair_groups(student, teacher)
        if first_phase:
            self.phases = (Phase(first_phase, 0.0, 1.0), Phase(1 - first_phase, 1.0, 0.0, other_weight=1.0))
        self.recommended_weight = 1.0 if first_phase else 50.0
        # The features that are read, as (group, block), and the flows between them, as positions among these.
        if flow == "within":
            self._read = tuple((i, block) for i in range(len(pairs)) for block in (0, -1))
            self._flows = tuple((2 * i, 2 * i + 1) for i in range(len(pairs)))
        else:
            self._read = tuple((i, -1) for i in range(len(pairs)))
            self._flows = tuple((i, i + 1) for i in range(len(pairs) - 1))
        self.reads = tuple(f"group{i + 1}/{'block1' if j == 0 else 'last_block'}" for i, j in self._read)
        self.connectors = []
        for number, (i, _) in enumerate(self._read, start=1):
            ours, theirs = pairs[i]
            if ours.channels == theirs.channels:
                self.connectors.append(keras.layers.Identity(dtype="float32"))
            else:
                # It keeps the student's resolution: the matrices have no spatial dimensions that must agree.
                target = (ours.height, ours.width, theirs.channels)
                self.connectors.append(connector(ours.shape, target, name=f"connector{number}"))

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        ours = [student.at("output")[i][j] for i, j in self._read]
        ours = [tf.cast(connect(feature, training=True), tf.float32) for connect, feature in zip(self.connectors, ours, strict=True)]
        theirs = [teacher.at("output")[i][j] for i, j in self._read]
        terms = {}
        for group, (first, last) in enumerate(self._flows, start=1):
            difference = flow_matrix(ours[first], ours[last]) - flow_matrix(theirs[first], theirs[last])
            terms[f"fsp/group{group}"] = tf.reduce_mean(tf.square(difference), axis=[1, 2])
        return terms


def flow_matrix(first: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """The FSP matrix (Eq. 1): inner products of the channels of two features, divided by the number of positions.

    Args:
        first: `[B, H, W, C]`.
        last: `[B, H', W', C']`; where resolutions differ, both are brought to the lower one.

    Returns:
        `[B, C, C']`.
    """
    first, last = same_resolution(first, last)
    return tf.einsum("bhwi,bhwj->bij", first, last) / (first.shape[1] * first.shape[2])


def build(student: FeatureModel, teacher: FeatureModel, *, flow: Flow | None = None, first_phase: float = 0.5) -> FlowOfSolution:
    """Matches the FSP matrices of the student to those of the teacher.

    A flow's term is the mean over the entries of the matrix, as in RepDistiller; the paper's Eq. 2 is their sum, with a
    factor that it does not state. In the paper and in RepDistiller, student and teacher must agree in channels. This method adds a
    learned connector (1x1 convolution and BatchNorm) for each group where they differ; it brings each student feature that is read to
    the teacher's channels.

    Args:
        student: its block outputs are read.
        teacher: the same for the teacher.
        flow: `"within"`: from the first to the last block of each group, as in the paper; `"between"`: from the last block
            of a group to that of the next, at the lower resolution of the two, as in RepDistiller (which counts the
            stem as a group); term i then belongs to groups i and i + 1. None takes `"within"` if every group of both networks has more
            than one block, else `"between"`.
        first_phase: fraction of the epochs, from 0 to below 1. In it FSP alone trains the student; after it the cross-entropy and the
            other methods do, without FSP. 0.5 as in the paper, where each phase has 21,000 iterations; RepDistiller has 30 epochs and
            then 240. Without a first phase FSP is an ordinary term in all epochs.

    Returns:
        A method with recommended weight 1, or 50 without a first phase (the factor in RepDistiller's script).

    Raises:
        UserError: if an option is out of its range, the groups do not pair, or there is no such flow in the networks.
    """
    if flow is not None and flow not in get_args(Flow):
        raise UserError(f"unknown flow of fsp. Received: {flow!r}. {nearest(flow, get_args(Flow))}")
    if not 0 <= first_phase < 1:
        raise UserError(f"the first_phase of fsp is a fraction of the epochs, from 0 to below 1. Received: {first_phase}")
    inside = all(len(group.blocks) > 1 for network in (student, teacher) for group in network.groups)
    if flow == "within" and not inside:
        raise UserError("flow='within' of fsp needs groups of two blocks or more. Received: a group of one; take flow='between'")
    flow = flow or ("within" if inside else "between")
    if flow == "between" and len(student.groups) < 2:
        raise UserError(f"flow='between' of fsp needs two groups or more. Received: {len(student.groups)} in {student.model.name!r}")
    return FlowOfSolution(student, teacher, flow, first_phase)
