"""Variational information distillation: the likelihood by hand, its minimum, resolutions, and the gradient."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features

Tiny = Callable[..., FeatureModel]
BATCH = Batch(tf.zeros([2, 8, 8, 1]), tf.constant([0, 1]), None)


def of(*groups: np.ndarray) -> Features:
    """The features of the last blocks, behind others that are not to be read."""
    read = tuple((tf.constant(feature + 100, tf.float32), tf.constant(feature, tf.float32)) for feature in groups)
    return Features(tf.zeros([2, 10]), read, None, {"output": read})


def plain(method: Method, *, scale: dict[str, list[float]] | None = None, middle: float = 1.0) -> Method:
    """With regressors of unit matrices, the middle one times a factor, and with scales where given."""
    for variable in method.trainable_variables:
        if variable.path.endswith("kernel"):
            factor = middle if "conv2" in variable.path else 1.0
            variable.assign(factor * np.eye(*variable.shape[2:])[np.newaxis, np.newaxis])
        elif scale and variable.name in scale:
            variable.assign(scale[variable.name])
    return method


def filled(shape: tuple[int, ...], one: float, other: float) -> np.ndarray:
    return np.stack([np.full(shape, one), np.full(shape, other)])


def test_the_value_by_hand_at_the_initial_variance_of_five(tiny: Tiny) -> None:
    method = plain(plugins.build("losses", "vid", tiny(2), tiny(2)))
    student = of(filled((8, 8, 2), 1, -7), filled((4, 4, 4), 2, 0))
    teacher = of(filled((8, 8, 2), 4, 4), filled((4, 4, 4), 2, 1))
    terms = method(student, teacher, BATCH)
    assert list(terms) == ["vid/group1", "vid/group2"]
    # The ReLU between the convolutions makes 0 of -7. Differences 3 and 4, then 0 and 1.
    for name, squares in (("vid/group1", [9, 16]), ("vid/group2", [0, 1])):
        np.testing.assert_allclose(terms[name], [0.5 * (square / 5 + math.log(5)) for square in squares], rtol=1e-5)


def test_each_channel_has_a_variance_of_its_own_that_is_softplus_and_epsilon(tiny: Tiny) -> None:
    # softplus(ln(e^v - 1)) = v: variances 1 + 0.5 and 2 + 0.5.
    scale = {"scale1": [math.log(math.e - 1), math.log(math.e**2 - 1)]}
    method = plain(plugins.build("losses", "vid", tiny(2), tiny(2), epsilon=0.5), scale=scale)
    shapes = (8, 8, 2), (4, 4, 4)
    terms = method(of(*(filled(shape, 1, 1) for shape in shapes)), of(*(filled(shape, 4, 1) for shape in shapes)), BATCH)
    logs = math.log(1.5) + math.log(2.5)
    np.testing.assert_allclose(terms["vid/group1"], [0.5 * (9 / 1.5 + 9 / 2.5 + logs) / 2, 0.5 * logs / 2], rtol=1e-5)


def test_the_initial_variance_is_an_option(tiny: Tiny) -> None:
    method = plain(plugins.build("losses", "vid", tiny(2), tiny(2), initial_variance=2.0, epsilon=1.0))
    same = of(filled((8, 8, 2), 1, 1), filled((4, 4, 4), 1, 1))
    np.testing.assert_allclose(method(same, same, BATCH)["vid/group1"], [0.5 * math.log(2)] * 2, rtol=1e-5)


def test_a_relu_stands_behind_the_first_convolution_and_the_second(tiny: Tiny) -> None:
    method = plain(plugins.build("losses", "vid", tiny(2), tiny(2)), middle=-1.0)
    # What is negative the first makes 0, and what is positive the second, behind the change of the sign.
    terms = method(of(filled((8, 8, 2), 2, -3), filled((4, 4, 4), 0, 0)), of(filled((8, 8, 2), 1, 1), filled((4, 4, 4), 0, 0)), BATCH)
    np.testing.assert_allclose(terms["vid/group1"], [0.5 * (1 / 5 + math.log(5))] * 2, rtol=1e-5)


def test_where_resolutions_differ_the_finer_feature_is_pooled(tiny: Tiny) -> None:
    network = tiny(2)
    fine, coarse = (FeatureModel.from_model(network.model, [[name]]) for name in ("group1_block1", "group2_block1"))
    student = np.tile(np.array([[1.0, 3.0], [5.0, 7.0]])[:, :, np.newaxis], (4, 4, 2))[np.newaxis]  # each 2x2 has the mean 4
    for pair, ours, theirs in (
        ((fine, coarse), student, np.full((1, 4, 4, 4), 4.0)),
        ((coarse, fine), np.full((1, 4, 4, 4), 4.0), student),
    ):
        method = plain(plugins.build("losses", "vid", *pair))
        surprise = 0.5 * math.log(5)
        # From two channels to four, the identity leaves the other two at 0, 4 from the target.
        expected = surprise + 0.5 * 16 / 5 / 2 if pair[0] is fine else surprise
        np.testing.assert_allclose(method(of(ours), of(theirs), BATCH)["vid/group1"], [expected], rtol=1e-5)


def test_the_weight_is_repdistiller_s_and_what_the_blocks_hand_on_is_read(tiny: Tiny) -> None:
    method = plugins.build("losses", "vid", tiny(2), tiny(2))
    assert method.recommended_weight == 1
    assert tuple(method.taps) == ("output",)


def test_regressors_are_three_convolutions_without_bias_as_wide_as_the_teacher(tiny: Tiny) -> None:
    method = plugins.build("losses", "vid", tiny(4), tiny(6))
    shapes = [tuple(variable.shape) for variable in method.trainable_variables]
    wide, deep = [(1, 1, 4, 6), (1, 1, 6, 6), (1, 1, 6, 6)], [(1, 1, 8, 12), (1, 1, 12, 12), (1, 1, 12, 12)]
    assert sorted(shapes) == sorted([(6,), (12,), *wide, *deep])


@pytest.mark.parametrize("options", [{"epsilon": 0.0}, {"initial_variance": 1e-6}, {"initial_variance": float("nan")}])
def test_variances_out_of_range_are_refused(tiny: Tiny, options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="vid needs 0 < epsilon < initial_variance. Received: epsilon="):
        plugins.build("losses", "vid", tiny(2), tiny(2), **options)


def test_networks_with_another_number_of_groups_are_refused(tiny: Tiny) -> None:
    single = FeatureModel.from_model(tiny(4).model, [["group1_block1"]])
    with pytest.raises(UserError, match="the same number of layer groups. Received: 1 in 'tiny_4_1' and 2 in 'tiny_6_1'"):
        plugins.build("losses", "vid", single, tiny(6))
