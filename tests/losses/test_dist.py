"""DIST: both relations by hand, blind to scale and offset of the probabilities, safe where nothing varies."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features

Pair = tuple[FeatureModel, FeatureModel]
BATCH = Batch(tf.zeros([2, 8, 8, 1]), tf.constant([0, 1]), None)

# Less their mean of 1/3 and times 30, the rows are (5, -1, -4), (-4, 5, -1) and (-1, 5, -4), (-4, -1, 5), all of squared length 42:
# within both rows the products add up to 6, and r is 6/42 = 1/7.
# Over the two examples a class goes up or down: down, up, up for the student; down, down, up for the teacher: r is 1, -1, 1.
STUDENT = [[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]]
TEACHER = [[0.3, 0.5, 0.2], [0.2, 0.3, 0.5]]


@pytest.fixture(scope="module")
def pair(tiny: Callable[..., FeatureModel]) -> Pair:
    return tiny(4, 1, seed=1), tiny(6, 2, seed=2)


def of(logits: object) -> Features:
    return Features(tf.convert_to_tensor(logits, tf.float32), (), None, {})


def method(pair: Pair, **options: float) -> Method:
    return plugins.build("losses", "dist", *pair, **options)


def test_both_relations_by_hand_with_weights_of_two_at_temperature_one(pair: Pair) -> None:
    built = method(pair)
    terms = built(of(np.log(STUDENT)), of(np.log(TEACHER)), BATCH)
    assert list(terms) == ["dist/inter", "dist/intra"]
    np.testing.assert_allclose(terms["dist/inter"], [2 * (1 - 1 / 7)] * 2, rtol=1e-5)
    assert terms["dist/intra"].shape == ()
    np.testing.assert_allclose(terms["dist/intra"], 2 * (1 - (1 - 1 + 1) / 3), rtol=1e-5)
    assert built.recommended_weight == 1


def test_weights_and_temperature_squared_are_inside(pair: Pair) -> None:
    terms = method(pair, beta=3.0, gamma=5.0, temperature=4.0)(of(4 * np.log(STUDENT)), of(4 * np.log(TEACHER)), BATCH)
    np.testing.assert_allclose(terms["dist/inter"], [3 * 16 * 6 / 7] * 2, rtol=1e-5)
    np.testing.assert_allclose(terms["dist/intra"], 5 * 16 * 2 / 3, rtol=1e-5)


def test_a_student_whose_probabilities_are_a_line_in_the_teacher_s_has_nothing_to_learn(pair: Pair) -> None:
    teacher = np.random.default_rng(0).dirichlet(np.ones(10), 6)
    terms = method(pair)(of(np.log(0.3 * teacher + 0.07)), of(np.log(teacher)), BATCH)
    np.testing.assert_allclose(terms["dist/inter"], np.zeros(6), atol=1e-5)
    np.testing.assert_allclose(terms["dist/intra"], 0, atol=1e-5)


@pytest.mark.parametrize("logits", [np.zeros((3, 10)), np.ones((1, 10)), np.random.default_rng(0).normal(size=(1, 10))])
def test_where_nothing_varies_values_and_gradients_are_finite(logits: np.ndarray, pair: Pair) -> None:
    """The same probability for all classes; a batch of one example."""
    student, teacher = tf.constant(logits, tf.float32), of(np.random.default_rng(1).normal(size=logits.shape))
    with tf.GradientTape() as tape:
        tape.watch(student)
        terms = method(pair)(of(student), teacher, BATCH)
        total = tf.reduce_mean(terms["dist/inter"]) + terms["dist/intra"]
    np.testing.assert_allclose(terms["dist/intra"], 2, rtol=1e-5)  # no correlation
    assert np.isfinite(total)
    assert np.isfinite(tape.gradient(total, student)).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": 0.0}, "temperature of dist must be above 0. Received: 0.0"),
        ({"beta": -1.0}, "beta of dist must be 0 or more. Received: -1.0"),
        ({"gamma": float("nan")}, "gamma of dist must be 0 or more. Received: nan"),
        ({"alpha": 1.0}, "unknown option of dist. Received: 'alpha'"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, float], told: str, pair: Pair) -> None:
    with pytest.raises(UserError, match=told):
        method(pair, **options)
