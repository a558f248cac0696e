"""Distillation with a feature aggregation: stage 2 of DFA.

References:
    Guan et al. (2020), Differentiable Feature Aggregation Search for Knowledge Distillation, Eq. 2 to 4.
    Heo et al. (2019), A Comprehensive Overhaul of Feature Distillation: the distance `margin`.
"""

from typing import get_args

import numpy as np
import tensorflow as tf

from dfa_tf.aggregation.weights import AggregationWeights, aggregate, candidate_weights
from dfa_tf.config import Distance
from dfa_tf.errors import UserError, nearest
from dfa_tf.methods import Batch, Method
from dfa_tf.methods.distances import feature_distance, group_factor, group_margins
from dfa_tf.networks.connectors import connector
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.pairing import pair_groups


class FeatureAggregation(Method):
    """The distance of each group's last student feature to the teacher's aggregation, through a connector."""

    def __init__(self, student: FeatureModel, teacher: FeatureModel, aggregation: AggregationWeights, distance: Distance) -> None:
        super().__init__("dfa")
        aggregation.check(teacher)
        pairs = pair_groups(student, teacher)
        self.distance = distance
        self.recommended_weight = 25.0 if distance == "l2_normalised" else 1.0
        self.aggregation = aggregation
        self.connectors = [connector(ours.shape, theirs.shape, name=f"connector{i}") for i, (ours, theirs) in enumerate(pairs, start=1)]
        # A candidate of weight 0 is left out, so that nothing has to compute it.
        self.used = [np.flatnonzero(group.alpha).tolist() for group in aggregation.groups]
        self.reads = tuple(f"group{i}/block{j + 1}" for i, used in enumerate(self.used, start=1) for j in used)
        self.margins = [group_margins(group, teacher.tap)[used] for group, used in zip(teacher.groups, self.used, strict=True)]

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        terms = {}
        for i, blocks in enumerate(teacher.groups):
            candidates = [blocks[j] for j in self.used[i]]
            alpha = tf.constant([self.aggregation.groups[i].alpha[j] for j in self.used[i]], tf.float32)
            weights = candidate_weights(candidates, alpha, standardise=self.aggregation.standardise)
            target = aggregate(candidates, weights)
            feature = self.connectors[i](student.groups[i][-1], training=True)
            # The margin of an aggregation is the aggregation of the margins, so that one-hot alphas give OFD exactly.
            margin = tf.linalg.matmul(weights, self.margins[i])[:, tf.newaxis, tf.newaxis]
            factor = group_factor(self.distance, i, len(self.connectors))
            terms[f"dfa/group{i + 1}"] = factor * feature_distance(self.distance, feature, target, margin)
        return terms


def build(
    student: FeatureModel, teacher: FeatureModel, *, aggregation: AggregationWeights | None = None, distance: Distance = "margin"
) -> FeatureAggregation:
    """Feature distillation with fixed aggregation weights.

    Args:
        student: its last block of each group is matched.
        teacher: its blocks of each group are aggregated.
        aggregation: the weights; None takes the last block of each group, which with `"margin"` is OFD.
        distance: `"margin"` (partial L2 to the margin ReLU of the aggregation) and `"l2"` are sums over the
            elements times 1e-3 / 2^(G - i) in group i of G, as in OFD, and weight 1 is recommended;
            `"l2_normalised"` (between vectors of unit length, 0..4 per group) has no factor, and its
            recommended weight is 25: tune it for other networks on a validation split.

    Raises:
        UserError: if the weights are for another teacher, the groups do not pair, or the distance is unknown.
    """
    if distance not in get_args(Distance):
        raise UserError(f"unknown distance. Received: {distance!r}. {nearest(distance, get_args(Distance))}")
    return FeatureAggregation(student, teacher, aggregation or AggregationWeights.by_rule("last", teacher), distance)
