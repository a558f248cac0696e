"""Neuron selectivity transfer: the value by hand, at other resolutions too, zero for channels that agree, and the paper's weight."""

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


def channels(*maps: object) -> np.ndarray:
    """One example, of one row, from the activation maps of its channels."""
    return np.array(maps, np.float32).T[np.newaxis, np.newaxis]


@pytest.fixture
def method(tiny: Callable[..., FeatureModel]) -> Method:
    return plugins.build("losses", "nst", tiny(), tiny(6, 2))


def test_the_value_by_hand_in_each_group(method: Method) -> None:
    # At unit length (1, 0) and (0.6, 0.8), against (0, 1).
    student, teacher = channels([5, 0], [6, 8]), channels([0, -2])
    # Kernels among the student's: 1, 0.6^2, 0.6^2, 1; among the teacher's: 1; between them: 0, 0.8^2.
    expected = (2 + 2 * 0.36) / 4 + 1 - 2 * 0.64 / 2
    terms = method(of(student, teacher), of(teacher, student), BATCH)
    assert list(terms) == ["nst/group1", "nst/group2"]
    np.testing.assert_allclose(terms["nst/group1"], [expected], rtol=1e-5)
    np.testing.assert_allclose(terms["nst/group2"], [expected], rtol=1e-5)


def test_channels_that_select_the_same_places_have_no_distance(method: Method) -> None:
    # Neither the number of channels nor their length or sign counts.
    terms = method(of(channels([3, 4], [-6, -8])), of(channels([0.3, 0.4])), BATCH)
    np.testing.assert_allclose(terms["nst/group1"], [0.0], atol=1e-6)


def test_examples_are_compared_each_by_itself(method: Method) -> None:
    one, other = channels([1, 0]), channels([0, 1])
    terms = method(of(np.concatenate([one, one])), of(np.concatenate([one, other])), BATCH)
    np.testing.assert_allclose(terms["nst/group1"], [0.0, 2.0], atol=1e-6)


def test_the_larger_feature_is_averaged_down_to_the_smaller(method: Method) -> None:
    # Two rows, (2, 0) and (4, 8), whose means are (3, 4): at unit length (0.6, 0.8).
    student = [[[[2.0], [0.0]], [[4.0], [8.0]]]]
    np.testing.assert_allclose(method(of(student), of(channels([1, 0])), BATCH)["nst/group1"], [1 + 1 - 2 * 0.36], rtol=1e-5)


def test_a_dead_channel_has_a_finite_gradient(method: Method) -> None:
    feature = tf.constant(channels([0, 0], [1, 0]))
    with tf.GradientTape() as tape:
        tape.watch(feature)
        term = method(of(feature), of(channels([0, 1])), BATCH)["nst/group1"]
    # Of the student's kernels one of four is 1.
    np.testing.assert_allclose(term, [1 / 4 + 1], rtol=1e-5)
    np.testing.assert_allclose(tape.gradient(term, feature), np.zeros([1, 1, 2, 2]), atol=1e-6)


def test_the_weight_is_fifty_unless_given(tiny: Callable[..., FeatureModel]) -> None:
    student, teacher = tiny(seed=1), tiny(6, 2, seed=2)
    method = plugins.build("losses", "nst", student, teacher)
    logs = step(Distiller(student, teacher, {"nst": method}, ce_weight=0.0))
    assert logs["total_loss"] == pytest.approx(50 * (logs["nst/group1"] + logs["nst/group2"]), rel=1e-5)


def test_networks_whose_groups_do_not_pair_are_refused(tiny: Callable[..., FeatureModel]) -> None:
    single = FeatureModel.from_model(tiny().model, [["group1_block1"]])
    with pytest.raises(UserError, match="the same number of layer groups"):
        plugins.build("losses", "nst", single, tiny())
