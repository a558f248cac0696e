"""The bridge loss of the aggregation search: student-to-teacher and teacher-to-student paths.

References:
    Guan et al. (2020), Differentiable Feature Aggregation Search for Knowledge Distillation, section 3.3.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from dfa_tf.aggregation.weights import Aggregation, candidate_weights, entropy
from dfa_tf.config import SearchConfig
from dfa_tf.methods.classification import cross_entropy, weighted_mean
from dfa_tf.methods.distances import feature_distance, group_factor, group_margins, normalised_squared_distance
from dfa_tf.networks.connectors import connector
from dfa_tf.networks.features import Extractor, FeatureModel, Features
from dfa_tf.networks.pairing import pair_groups

# The terms of each objective that belong to a group; `student` adds the cross-entropy of the student itself.
_TERMS = {"bridge": ("st", "ts"), "st": ("st",), "ts": ("ts",), "student": ("fd",)}


class Bridge:
    """The variables of the search and its loss terms.

    All BatchNorm layers on both paths use the statistics of the batch. Both paths update the moving statistics, and neither reads them:
    the student of the search is not kept.

    Attributes:
        aggregations: one layer per group; each holds its group's beta.
        terms: names of the terms of a group under the objective.
        weights: gamma of each term.
        networks: the student and the connectors.
        weight_variables: of the student and the connectors, called w in the paper.
    """

    def __init__(self, teacher: FeatureModel, student: FeatureModel, config: SearchConfig, *, seed: int) -> None:
        pairs = pair_groups(student, teacher)
        random = np.random.default_rng(seed)
        self.aggregations = [
            Aggregation(random.normal(0, config.beta_init, len(theirs.blocks)), standardise=config.standardise) for _, theirs in pairs
        ]
        self.terms = _TERMS[config.objective]
        self.weights = {"st": config.gamma_st, "ts": config.gamma_ts, "fd": config.gamma_fd}
        self._distance = config.distance
        self._student = student
        self._extractors: dict[int | None, Extractor] = {}
        self._margins = [group_margins(group, teacher.tap) for group in teacher.groups]
        self._to_teacher, self._to_student, self._tails = [], [], []
        for i, (ours, theirs) in enumerate(pairs):
            if "ts" in self.terms:
                self._to_student.append(connector(theirs.shape, ours.shape, name=f"to_student{i + 1}"))
                self._tails.append(student.tail(i))
            if self.terms != ("ts",):
                self._to_teacher.append(connector(ours.shape, theirs.shape, name=f"to_teacher{i + 1}"))
        self.networks = [student.model, *self._to_teacher, *self._to_student]
        self.weight_variables: list[keras.Variable] = [variable for model in self.networks for variable in model.trainable_variables]

    def student_features(self, images: tf.Tensor, groups: Sequence[int] | None = None) -> Features | None:
        """Features of the student in training mode, computed only as deep as the terms of the groups need; None if no term reads them."""
        if self.terms == ("ts",):
            return None
        # `fd` comes with the cross-entropy of the student itself, which needs the whole network.
        up_to_group = None if groups is None or "fd" in self.terms else max(groups)
        if up_to_group not in self._extractors:
            self._extractors[up_to_group] = self._student.extractor(up_to_group=up_to_group)
        return self._extractors[up_to_group](images, training=True)

    def group_terms(self, group: int, student: Features | None, teacher: Features, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        """The terms of one group, each per example.

        Args:
            group: its index.
            student: features of the student, from `student_features`.
            teacher: features of the frozen teacher.
            labels: classes, integers `[B]`, or soft labels, float32 `[B, num_classes]`.

        Returns:
            Float32 `[B]` by name: `st` (Eq. 11), `ts` (Eq. 10), or `fd`, the group's part of the feature
            distance of Eq. 3.
        """
        layer, candidates = self.aggregations[group], teacher.groups[group]
        aggregation = layer(candidates)
        terms = {}
        if student is not None:
            feature = self._to_teacher[group](student.groups[group][-1], training=True)
            if "st" in self.terms:
                terms["st"] = normalised_squared_distance(feature, aggregation)
            else:
                weights = candidate_weights(candidates, layer.alpha, standardise=layer.standardise)
                margin = tf.linalg.matmul(weights, self._margins[group])[:, tf.newaxis, tf.newaxis]
                factor = group_factor(self._distance, group, len(self.aggregations))
                terms["fd"] = factor * feature_distance(self._distance, feature, aggregation, margin)
        if "ts" in self.terms:
            entering = self._to_student[group](aggregation, training=True)
            terms["ts"] = cross_entropy(labels, self._tails[group](entering, training=True))
        return terms

    def combine(self, terms: dict[str, tf.Tensor], sample_weights: tf.Tensor | None = None, share: tf.Tensor | None = None) -> tf.Tensor:
        """sum of gamma times the mean of each term (Eq. 12), a scalar; terms without gamma are left out and get no gradient.

        Args:
            terms: from `group_terms`.
            sample_weights: float32 `[B]`, or None if all examples count equally.
            share: of this replica, from `classification.replica_share`.
        """
        means = {name: weighted_mean(term, sample_weights, share) for name, term in terms.items() if self.weights[name]}
        return tf.add_n([self.weights[name] * mean for name, mean in means.items()])

    def regulariser(self, kind: str, groups: Sequence[int]) -> tf.Tensor:
        """R, summed over groups: `squared_norm` of beta, `entropy` of alpha (it drives towards one candidate), or 0."""
        layers = [self.aggregations[group] for group in groups]
        if kind == "squared_norm":
            return tf.add_n([tf.reduce_sum(tf.square(layer.beta.value)) for layer in layers])
        if kind == "entropy":
            return tf.add_n([entropy(layer.alpha) for layer in layers])
        return tf.constant(0.0)
