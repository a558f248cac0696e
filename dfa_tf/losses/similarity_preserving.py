"""Similarity-preserving distillation: examples that are similar for the teacher become similar for the student.

References:
    Tung, Mori (2019), Similarity-Preserving Knowledge Distillation, ICCV, arXiv 1907.09682, section 3.1.
"""

from typing import ClassVar, Literal, get_args

import tensorflow as tf

from dfa_tf.config import Tap
from dfa_tf.errors import UserError, nearest
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.pairing import pair_groups

Groups = Literal["last", "all"]


class SimilarityPreserving(Method):
    """|| G_t - G_s ||_F^2 / B^2 of the similarities G of the examples of a batch: a scalar for each group.

    With A the features of a batch as rows, G is A A^T with rows of unit length.
    """

    taps: ClassVar[tuple[Tap, ...]] = ("output",)
    recommended_weight = 3000.0

    def __init__(self, student: FeatureModel, teacher: FeatureModel, groups: Groups) -> None:
        super().__init__("similarity_preserving")
        count = len(pair_groups(student, teacher))
        self.reads = ("last_blocks",) if groups == "all" else (f"group{count}/last_block",)
        self._first = 0 if groups == "all" else count - 1

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        pairs = list(zip(student.at("output"), teacher.at("output"), strict=True))
        terms = {}
        for i, (ours, theirs) in enumerate(pairs[self._first :], start=self._first + 1):
            difference = tf.math.squared_difference(_similarities(ours[-1]), _similarities(theirs[-1]))
            terms[f"similarity_preserving/group{i}"] = tf.reduce_mean(difference)
        return terms


def _similarities(feature: tf.Tensor) -> tf.Tensor:
    flat = tf.reshape(feature, [tf.shape(feature)[0], -1])
    return tf.math.l2_normalize(tf.linalg.matmul(flat, flat, transpose_b=True), axis=1)


def build(student: FeatureModel, teacher: FeatureModel, *, groups: Groups = "last") -> SimilarityPreserving:
    """Similarities of the examples in a batch, from the last block's output of a group.

    The weight 3000 is the paper's gamma on CIFAR-10, and that of the common implementations. The author of DFA uses it too, but over
    all groups and the stem's output. On several devices the examples of each device are compared among themselves.

    Args:
        student: its groups may have any shape.
        teacher: the same for the teacher.
        groups: `"last"`, as in the paper, or `"all"`, one term each.

    Raises:
        UserError: if the groups do not pair, or `groups` is unknown.
    """
    if groups not in get_args(Groups):
        raise UserError(f"unknown groups of similarity_preserving. Received: {groups!r}. {nearest(str(groups), get_args(Groups))}")
    return SimilarityPreserving(student, teacher, groups)
