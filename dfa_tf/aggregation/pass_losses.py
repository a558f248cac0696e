"""The losses of the search over the groups of one pass."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from dfa_tf.aggregation.bridge import Bridge
from dfa_tf.config import SearchConfig
from dfa_tf.methods import Batch
from dfa_tf.methods.classification import cross_entropy, replica_share, weighted_mean
from dfa_tf.networks.features import Features


class Losses(NamedTuple):
    """A loss and its terms.

    Attributes:
        loss: a scalar.
        terms: scalars by name, without their weights; a term of one group has a name such as `"group2/st"`.
    """

    loss: tf.Tensor
    terms: dict[str, tf.Tensor]


class PassLosses:
    """The losses of both updates: of the weights on the training half, of beta on the search half.

    Args:
        bridge: the variables and terms of the search.
        config: of the search.
        groups: indices of the groups that the pass searches.
    """

    def __init__(self, bridge: Bridge, config: SearchConfig, groups: Sequence[int]) -> None:
        self._bridge, self._config, self._groups = bridge, config, groups

    def student_features(self, batch: Batch) -> Features | None:
        """Features of the student in training mode, up to the last group that needs them."""
        return self._bridge.student_features(batch.images, self._groups)

    def of_weights(self, teacher: Features, batch: Batch) -> Losses:
        """The loss of the student's weights and the connectors."""
        student = self.student_features(batch)
        loss, terms = self._of_groups(student, teacher, batch)
        if student is not None and self._config.objective == "student":
            ce = weighted_mean(cross_entropy(batch.labels, student.logits), batch.weights, replica_share(batch.labels))
            loss, terms = loss + ce, {**terms, "ce": ce}
        return Losses(loss, terms)

    def of_beta(self, student: Features | None, teacher: Features, batch: Batch) -> Losses:
        """The loss of beta, with its regulariser."""
        loss, terms = self._of_groups(student, teacher, batch)
        regulariser = self._bridge.regulariser(self._config.regulariser, self._groups)
        return Losses(loss + self._config.lambda_ * regulariser, {"regulariser": regulariser, **terms})

    def _of_groups(self, student: Features | None, teacher: Features, batch: Batch) -> Losses:
        losses, means = [], {}
        share = replica_share(batch.labels)
        for group in self._groups:
            terms = self._bridge.group_terms(group, student, teacher, batch.labels)
            losses.append(self._bridge.combine(terms, batch.weights, share))
            means.update({f"group{group + 1}/{name}": weighted_mean(term, batch.weights, share) for name, term in terms.items()})
        return Losses(tf.add_n(losses), means)
