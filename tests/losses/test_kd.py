"""Soft targets: the value by hand with its T^2, zero for equal logits, and a gradient to the student alone."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.methods.classification import cross_entropy
from dfa_tf.networks.features import FeatureModel, Features

BATCH = Batch(tf.zeros([2, 8, 8, 1]), tf.constant([0, 1]), tf.constant([0, 1], tf.int64))


def of(logits: object) -> Features:
    return Features(tf.convert_to_tensor(logits, tf.float32), (), None, {})


def method(tiny: Callable[..., FeatureModel], **options: float) -> Method:
    return plugins.build("losses", "kd", tiny(), tiny(), **options)


def test_the_value_by_hand_with_temperature_squared(tiny: Callable[..., FeatureModel]) -> None:
    # At T = 2 the teacher's probabilities are (1/4, 3/4) and the student's (1/2, 1/2); then equal ones.
    teacher = of([[0.0, 2 * np.log(3)], [5.0, 1.0]])
    student = of([[0.0, 0.0], [6.0, 2.0]])
    terms = method(tiny, temperature=2.0)(student, teacher, BATCH)
    divergence = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
    assert list(terms) == ["kd"]
    np.testing.assert_allclose(terms["kd"], [2**2 * divergence, 0.0], rtol=1e-5, atol=1e-6)


def test_the_temperature_is_four_by_default(tiny: Callable[..., FeatureModel]) -> None:
    student, teacher = of([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]]), of([[3.0, -1.0, 0.0], [0.0, 5.0, 0.0]])

    def softened(logits: tf.Tensor) -> np.ndarray:
        exponentials = np.exp(logits.numpy() / 4)
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    p, q = softened(teacher.logits), softened(student.logits)
    np.testing.assert_allclose(method(tiny)(student, teacher, BATCH)["kd"], 16 * (p * np.log(p / q)).sum(axis=1), rtol=1e-5)


def test_equal_logits_give_zero_and_no_gradient(tiny: Callable[..., FeatureModel]) -> None:
    logits = tf.constant([[1.0, -2.0, 0.5], [0.0, 3.0, 3.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = method(tiny)(of(logits), of(tf.stop_gradient(logits)), BATCH)["kd"]
    np.testing.assert_allclose(value, [0, 0], atol=1e-6)
    np.testing.assert_allclose(tape.gradient(value, logits), np.zeros([2, 3]), atol=1e-6)


def test_the_gradient_is_temperature_times_the_difference_of_probabilities(tiny: Callable[..., FeatureModel]) -> None:
    logits = tf.constant([[0.0, 0.0], [0.0, 0.0]])
    teacher = of([[0.0, 2 * np.log(3)], [0.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = method(tiny, temperature=2.0)(of(logits), teacher, BATCH)["kd"]
    # d/ds of T^2 KL is T (q - p).
    np.testing.assert_allclose(tape.gradient(value, logits), [[2 * (0.5 - 0.25), 2 * (0.5 - 0.75)], [0, 0]], atol=1e-6)


def test_at_one_degree_it_is_cross_entropy_less_the_teacher_s_entropy(tiny: Callable[..., FeatureModel]) -> None:
    student, teacher = of([[0.3, -1.0], [2.0, 0.1]]), of([[1.0, 0.0], [-1.0, 1.0]])
    p = tf.nn.softmax(teacher.logits)
    expected = cross_entropy(p, student.logits) - cross_entropy(p, teacher.logits)
    np.testing.assert_allclose(method(tiny, temperature=1.0)(student, teacher, BATCH)["kd"], expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_above_zero(temperature: float, tiny: Callable[..., FeatureModel]) -> None:
    with pytest.raises(UserError, match="temperature of kd must be above 0"):
        method(tiny, temperature=temperature)


def test_an_unknown_option_is_refused(tiny: Callable[..., FeatureModel]) -> None:
    with pytest.raises(UserError, match="'temprature'. Did you mean 'temperature'"):
        method(tiny, temprature=4.0)
