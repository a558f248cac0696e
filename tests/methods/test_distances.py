"""Distances and margins by hand, guards, and gradients against finite differences."""

import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf.errors import UserError
from dfa_tf.methods.classification import cross_entropy
from dfa_tf.methods.distances import (
    OFD_FACTOR,
    feature_distance,
    group_factor,
    margin_distance,
    normalised_squared_distance,
    relu_margin,
    squared_distance,
)


def norm(gamma: Sequence[float] | None, beta: Sequence[float] | None) -> keras.layers.BatchNormalization:
    channels = len(gamma or beta or [0.0])
    layer = keras.layers.BatchNormalization(scale=gamma is not None, center=beta is not None)
    layer.build((None, 1, 1, channels))
    if gamma is not None:
        layer.gamma.assign(gamma)
    if beta is not None:
        layer.beta.assign(beta)
    return layer


def mean_of_negatives(mean: float, deviation: float) -> float:
    """E[x | x < 0] of a gaussian, integrated numerically."""
    x = np.linspace(mean - 12 * deviation, 0, 400_001)
    density = np.exp(-0.5 * ((x - mean) / deviation) ** 2)
    return float(np.trapezoid(x * density, x) / np.trapezoid(density, x))


def differences(function: Callable[[np.ndarray], tf.Tensor], at: np.ndarray, eps: float = 1e-2) -> np.ndarray:
    """Central differences of a scalar function of an array."""
    gradient = np.zeros(at.size)
    for i in range(at.size):
        step = eps * np.eye(at.size)[i].reshape(at.shape)
        gradient[i] = (float(function((at + step).astype(np.float32))) - float(function((at - step).astype(np.float32)))) / (2 * eps)
    return gradient.reshape(at.shape)


def test_squared_distance_is_summed_over_the_elements() -> None:
    student = tf.constant([1.0, 2.0, 0.0, 0.0], shape=(2, 1, 2, 1))
    teacher = tf.constant([0.0, 4.0, 3.0, -1.0], shape=(2, 1, 2, 1))
    np.testing.assert_array_equal(squared_distance(student, teacher), [1 + 4, 9 + 1])


def test_normalised_distance_compares_directions() -> None:
    # (3, 4) / 5 = (0.6, 0.8) and (1, 0); then the same direction; then opposite ones.
    student = tf.constant([3.0, 4.0, 1.0, 2.0, 1.0, 1.0], shape=(3, 1, 2, 1))
    teacher = tf.constant([9.0, 0.0, 10.0, 20.0, -5.0, -5.0], shape=(3, 1, 2, 1))
    np.testing.assert_allclose(normalised_squared_distance(student, teacher), [0.4**2 + 0.8**2, 0.0, 4.0], atol=1e-6)


def test_normalised_distance_of_zeros_is_finite() -> None:
    student = tf.zeros([1, 2, 2, 1])
    with tf.GradientTape() as tape:
        tape.watch(student)
        distance = normalised_squared_distance(student, tf.ones([1, 2, 2, 1]))
    np.testing.assert_allclose(distance, [1.0], rtol=1e-6)
    assert np.isfinite(tape.gradient(distance, student)).all()


def test_margin_distance_counts_only_where_there_is_something_to_learn() -> None:
    cases = [
        # (student, teacher, margin, counted)
        (2.0, 1.0, -1.0, (2 - 1) ** 2),  # positive target
        (-3.0, 1.0, -1.0, (-3 - 1) ** 2),  # positive target, student far below
        (0.5, -0.2, -1.0, (0.5 + 0.2) ** 2),  # negative target above the margin, student above it
        (0.5, -7.0, -1.0, (0.5 + 1) ** 2),  # teacher below the margin: the target is the margin
        (-0.5, -7.0, -1.0, (-0.5 + 1) ** 2),  # student between margin and 0
        (-2.0, -7.0, -1.0, 0.0),  # student already below the margin
        (-0.9, -0.5, -1.0, 0.0),  # student already below a negative target
        (-1.0, 0.0, -1.0, 0.0),  # a target of 0 is not positive
    ]
    student, teacher, margin, counted = (np.array(column, np.float32) for column in zip(*cases, strict=True))
    single = margin_distance(student[:, None, None, None], teacher[:, None, None, None], margin[:, None, None, None])
    np.testing.assert_allclose(single, counted, rtol=1e-6)
    together = margin_distance(student[None, None, None], teacher[None, None, None], margin)
    np.testing.assert_allclose(together, [counted.sum()], rtol=1e-6)


def test_the_named_distances_are_those_functions() -> None:
    student, teacher = (tf.constant(np.random.default_rng(seed).normal(size=(2, 3, 3, 2)), tf.float32) for seed in (0, 1))
    margin = tf.constant([-0.3, -0.8])
    np.testing.assert_array_equal(feature_distance("margin", student, teacher, margin), margin_distance(student, teacher, margin))
    np.testing.assert_array_equal(feature_distance("l2", student, teacher, margin), squared_distance(student, teacher))
    normalised = normalised_squared_distance(student, teacher)
    np.testing.assert_array_equal(feature_distance("l2_normalised", student, teacher, margin), normalised)


def test_an_unknown_distance_is_refused() -> None:
    with pytest.raises(UserError, match="'l2_normalized'. Did you mean 'l2_normalised'"):
        feature_distance("l2_normalized", tf.zeros([1, 1, 1, 1]), tf.zeros([1, 1, 1, 1]), tf.zeros([1]))  # type: ignore[arg-type]


def test_group_factors_halve_towards_the_image() -> None:
    assert OFD_FACTOR == 1e-3
    np.testing.assert_allclose([group_factor("margin", group, 3) for group in range(3)], [1e-3 / 4, 1e-3 / 2, 1e-3])
    np.testing.assert_allclose([group_factor("l2", group, 2) for group in range(2)], [1e-3 / 2, 1e-3])
    assert [group_factor("l2_normalised", group, 3) for group in range(3)] == [1, 1, 1]


def test_margin_is_the_mean_of_the_negatives_of_the_batchnorm_s_gaussian() -> None:
    table = [(0.0, 1.0), (0.5, 1.0), (-1.0, 0.5), (2.0, 1.0), (-3.0, 1.0), (0.3, 2.5), (0.01, 0.02)]
    means, deviations = zip(*table, strict=True)
    expected = [mean_of_negatives(mean, deviation) for mean, deviation in table]
    np.testing.assert_allclose(expected[0], -math.sqrt(2 / math.pi), rtol=1e-6)  # the half-normal's mean is known
    np.testing.assert_allclose(relu_margin(norm(deviations, means), len(table)), expected, rtol=1e-4)
    # The scale may be negative: what counts is its size.
    np.testing.assert_allclose(relu_margin(norm([-d for d in deviations], means), len(table)), expected, rtol=1e-4)


def test_margin_where_hardly_anything_is_negative_is_three_deviations() -> None:
    # Phi(-3.2) = 0.0007 and Phi(-3) = 0.0013: the border of 0.001 lies between them.
    margins = relu_margin(norm([1.0, 2.0, 1.0], [3.2, 20.0, 3.0]), 3)
    np.testing.assert_allclose(margins, [-3.0, -6.0, mean_of_negatives(3.0, 1.0)], rtol=1e-3)


def test_margin_of_a_scale_of_zero_is_the_mean_or_zero() -> None:
    np.testing.assert_allclose(relu_margin(norm([0.0, 0.0, 0.0], [-0.7, 0.0, 0.4]), 3), [-0.7, 0.0, 0.0])


def test_margin_without_scale_or_centre() -> None:
    np.testing.assert_allclose(relu_margin(norm(None, [0.5, -1.0]), 2), [mean_of_negatives(0.5, 1), mean_of_negatives(-1.0, 1)], rtol=1e-4)
    np.testing.assert_allclose(relu_margin(norm([0.5, 2.0], None), 2), [mean_of_negatives(0, 0.5), mean_of_negatives(0, 2.0)], rtol=1e-4)
    np.testing.assert_allclose(relu_margin(norm(None, None), 1), [mean_of_negatives(0, 1)], rtol=1e-4)


def test_margin_without_a_batchnorm_is_minus_one() -> None:
    np.testing.assert_array_equal(relu_margin(None, 3), [-1.0, -1.0, -1.0])


def test_margins_are_never_positive_nor_nan() -> None:
    random = np.random.default_rng(0)
    gamma, beta = random.normal(0, 2, 500), random.normal(0, 5, 500)
    gamma[:10], gamma[10:20] = 0, 1e-12
    margins = relu_margin(norm(gamma.tolist(), beta.tolist()), 500).numpy()
    assert np.isfinite(margins).all()
    assert (margins <= 0).all()


@pytest.mark.parametrize("name", ["l2", "l2_normalised", "margin"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    random = np.random.default_rng(3)
    student = random.normal(size=(2, 2, 2, 2)).astype(np.float32)
    teacher = tf.constant(random.normal(size=(2, 2, 2, 2)), tf.float32)
    margin = tf.constant([-0.4, -0.9])

    def loss(value: np.ndarray) -> tf.Tensor:
        return tf.reduce_sum(feature_distance(name, tf.constant(value), teacher, margin) * [1.0, 2.0])  # type: ignore[arg-type]

    variable = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        value = tf.reduce_sum(feature_distance(name, variable, teacher, margin) * [1.0, 2.0])  # type: ignore[arg-type]
    gradient = tape.gradient(value, variable).numpy()
    np.testing.assert_allclose(gradient, differences(loss, student, 1e-3), rtol=1e-2, atol=1e-2)
    assert np.abs(gradient).max() > 0.1


def test_cross_entropy_of_classes_and_soft_labels() -> None:
    logits = tf.constant([[0.0, np.log(3.0)], [0.0, 0.0]])
    # The probabilities are (1/4, 3/4) and (1/2, 1/2).
    np.testing.assert_allclose(cross_entropy(tf.constant([1, 0]), logits), [-np.log(0.75), np.log(2)], rtol=1e-6)
    soft = tf.constant([[0.1, 0.9], [1.0, 0.0]])
    by_hand = [-0.1 * np.log(0.25) - 0.9 * np.log(0.75), np.log(2)]
    np.testing.assert_allclose(cross_entropy(soft, logits), by_hand, rtol=1e-6)
    np.testing.assert_allclose(cross_entropy(tf.one_hot([1, 0], 2), logits), cross_entropy(tf.constant([1, 0]), logits), rtol=1e-6)


def test_smoothing_spreads_a_share_of_the_label_over_all_classes() -> None:
    logits = tf.constant([[0.0, np.log(3.0)]])
    # Of probabilities (1/4, 3/4), the label (0, 1) becomes (0.1, 0.9) at 0.2, and (0.4, 0.6) becomes (0.42, 0.58).
    np.testing.assert_allclose(cross_entropy(tf.constant([1]), logits, 0.2), [-0.1 * np.log(0.25) - 0.9 * np.log(0.75)], rtol=1e-6)
    soft = tf.constant([[0.4, 0.6]])
    np.testing.assert_allclose(cross_entropy(soft, logits, 0.2), [-0.42 * np.log(0.25) - 0.58 * np.log(0.75)], rtol=1e-6)


def test_cross_entropy_is_taken_in_float32() -> None:
    value = cross_entropy(tf.constant([0]), tf.constant([[1.0, 1.0]], tf.bfloat16))
    assert value.dtype == tf.float32
    np.testing.assert_allclose(value, [np.log(2)], rtol=1e-6)


def test_cross_entropy_s_gradient_is_that_of_finite_differences() -> None:
    logits = np.array([[0.3, -1.0, 0.5], [2.0, 0.1, -0.4]], np.float32)
    labels = tf.constant([2, 1])
    variable = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        value = tf.reduce_sum(cross_entropy(labels, variable))
    expected = differences(lambda at: tf.reduce_sum(cross_entropy(labels, tf.constant(at))), logits)
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-2, atol=1e-3)
