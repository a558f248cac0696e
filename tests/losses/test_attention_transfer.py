"""Attention transfer: the value by hand at equal and other resolutions, no difference for a scaled feature, and the author's weight."""

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


def of(*groups: object) -> Features:
    """Features of one block a group, behind a block that must not be read."""
    blocks = [tf.convert_to_tensor(group, tf.float32) for group in groups]
    return Features(tf.zeros([2, 10]), (), None, {"output": tuple((tf.fill(block.shape, np.nan), block) for block in blocks)})


@pytest.fixture
def method(tiny: Callable[..., FeatureModel]) -> Method:
    return plugins.build("losses", "attention_transfer", tiny(), tiny(6, 2))


def test_the_value_by_hand_in_each_group(method: Method) -> None:
    # Of two channels the means of the squares are (6 + 0) / 2 = 3 and (4 + 4) / 2 = 4: at unit length (0.6, 0.8).
    student = [[[[6**0.5, 0.0], [2.0, -2.0]]], [[[1.0, 1.0], [0.0, 0.0]]]]
    # Of one channel: (1, 0), twice. The second example agrees with the student's.
    teacher = [[[[-3.0], [0.0]]], [[[5.0], [0.0]]]]
    terms = method(of(student, teacher), of(teacher, teacher), BATCH)
    assert list(terms) == ["attention_transfer/group1", "attention_transfer/group2"]
    mean = ((0.6 - 1) ** 2 + 0.8**2) / 2
    np.testing.assert_allclose(terms["attention_transfer/group1"], [mean, 0.0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(terms["attention_transfer/group2"], [0.0, 0.0], atol=1e-7)


def test_the_larger_map_is_averaged_down_to_the_smaller(method: Method) -> None:
    # Squares of two rows, ((2, 0), (4, 8)), whose means are (3, 4).
    student = np.sqrt([[[[2.0], [0.0]], [[4.0], [8.0]]]])
    teacher = [[[[1.0], [0.0]]]]
    expected = ((0.6 - 1) ** 2 + 0.8**2) / 2
    terms = method(of(student, teacher), of(teacher, student), BATCH)
    np.testing.assert_allclose(terms["attention_transfer/group1"], [expected], rtol=1e-5)
    np.testing.assert_allclose(terms["attention_transfer/group2"], [expected], rtol=1e-5)


def test_a_feature_of_zeros_has_a_finite_gradient(method: Method) -> None:
    feature = tf.zeros([1, 2, 2, 3])
    with tf.GradientTape() as tape:
        tape.watch(feature)
        terms = method(of(feature), of(tf.ones([1, 2, 2, 5])), BATCH)
    # The teacher's map is (1/2, 1/2, 1/2, 1/2) at unit length.
    np.testing.assert_allclose(terms["attention_transfer/group1"], [0.25], rtol=1e-5)
    np.testing.assert_array_equal(tape.gradient(terms["attention_transfer/group1"], feature), np.zeros([1, 2, 2, 3]))


def test_the_weight_is_a_thousand_unless_given(tiny: Callable[..., FeatureModel]) -> None:
    student, teacher = tiny(seed=1), tiny(6, 2, seed=2)
    method = plugins.build("losses", "attention_transfer", student, teacher)
    logs = step(Distiller(student, teacher, {"attention_transfer": method}, ce_weight=0.0))
    expected = 1000 * (logs["attention_transfer/group1"] + logs["attention_transfer/group2"])
    assert logs["total_loss"] == pytest.approx(expected, rel=1e-5)


def test_networks_whose_groups_do_not_pair_are_refused(tiny: Callable[..., FeatureModel]) -> None:
    single = FeatureModel.from_model(tiny().model, [["group1_block1"]])
    with pytest.raises(UserError, match="the same number of layer groups"):
        plugins.build("losses", "attention_transfer", single, tiny())
