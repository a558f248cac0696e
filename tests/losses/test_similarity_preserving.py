"""Similarity-preserving distillation: the value by hand, which groups are read, and the paper's weight."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from steps import step

from dfa_tf import plugins
from dfa_tf.distillation.distiller import Distiller
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features

BATCH = Batch(tf.zeros([2, 8, 8, 1]), tf.constant([0, 1]), tf.constant([0, 1], tf.int64))
# Two examples at right angles: G = A A^T is the identity.
APART = [[[[1.0, 0.0]]], [[[0.0, 1.0]]]]
# Two examples along one line: G = ((9, 12), (12, 16)), whose rows are both (0.6, 0.8) at unit length.
ALIKE = [[[[3.0], [0.0]]], [[[4.0], [0.0]]]]
# (1 - 0.6)^2 + 0.8^2 in the first row, 0.6^2 + (1 - 0.8)^2 in the second, by 2^2.
DISTANCE = (0.8 + 0.4) / 4


def of(*groups: object) -> Features:
    """Features of one block a group, behind a block that must not be read."""
    blocks = [tf.convert_to_tensor(group, tf.float32) for group in groups]
    return Features(tf.zeros([2, 10]), (), None, {"output": tuple((tf.fill(block.shape, np.nan), block) for block in blocks)})


def method(tiny: Callable[..., FeatureModel], **options: object) -> Method:
    return plugins.build("losses", "similarity_preserving", tiny(), tiny(6, 2), **options)


def test_the_value_of_the_last_group_by_hand(tiny: Callable[..., FeatureModel]) -> None:
    terms = method(tiny)(of(ALIKE, APART), of(APART, ALIKE), BATCH)
    assert list(terms) == ["similarity_preserving/group2"]
    assert terms["similarity_preserving/group2"].shape == ()
    np.testing.assert_allclose(terms["similarity_preserving/group2"], DISTANCE, rtol=1e-5)


def test_all_groups_are_read_where_asked_for(tiny: Callable[..., FeatureModel]) -> None:
    terms = method(tiny, groups="all")(of(ALIKE, APART), of(APART, APART), BATCH)
    assert list(terms) == ["similarity_preserving/group1", "similarity_preserving/group2"]
    np.testing.assert_allclose(terms["similarity_preserving/group1"], DISTANCE, rtol=1e-5)
    np.testing.assert_allclose(terms["similarity_preserving/group2"], 0.0, atol=1e-7)


def test_features_of_zeros_have_a_finite_gradient(tiny: Callable[..., FeatureModel]) -> None:
    feature = tf.zeros([2, 1, 2, 3])
    with tf.GradientTape() as tape:
        tape.watch(feature)
        terms = method(tiny)(of(feature, feature), of(ALIKE, ALIKE), BATCH)
    # The teacher's four similarities, 0.6 and 0.8 in each row, against none.
    np.testing.assert_allclose(terms["similarity_preserving/group2"], 2 / 4, rtol=1e-5)
    np.testing.assert_array_equal(tape.gradient(terms["similarity_preserving/group2"], feature), np.zeros([2, 1, 2, 3]))


def test_the_weight_is_three_thousand_unless_given(tiny: Callable[..., FeatureModel]) -> None:
    student, teacher = tiny(seed=1), tiny(6, 2, seed=2)
    method = plugins.build("losses", "similarity_preserving", student, teacher)
    logs = step(Distiller(student, teacher, {"similarity_preserving": method}, ce_weight=0.0))
    assert logs["total_loss"] == pytest.approx(3000 * logs["similarity_preserving/group2"], rel=1e-5)


def test_networks_whose_groups_do_not_pair_are_refused(tiny: Callable[..., FeatureModel]) -> None:
    single = FeatureModel.from_model(tiny().model, [["group1_block1"]])
    with pytest.raises(UserError, match="the same number of layer groups"):
        plugins.build("losses", "similarity_preserving", single, tiny())


def test_unknown_groups_are_refused(tiny: Callable[..., FeatureModel]) -> None:
    with pytest.raises(UserError, match="unknown groups of similarity_preserving. Received: 'lats'. Did you mean 'last'"):
        method(tiny, groups="lats")
