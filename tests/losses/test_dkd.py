"""Decoupled distillation: both parts by hand, together soft targets, safe for confident networks."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features

Pair = tuple[FeatureModel, FeatureModel]


@pytest.fixture(scope="module")
def pair(tiny: Callable[..., FeatureModel]) -> Pair:
    return tiny(4, 1, seed=1), tiny(6, 2, seed=2)


def of(logits: object) -> Features:
    return Features(tf.convert_to_tensor(logits, tf.float32), (), None, {})


def batch(labels: object) -> Batch:
    return Batch(tf.zeros([len(labels), 8, 8, 1]), tf.constant(labels), None)  # type: ignore[arg-type]


def method(pair: Pair, **options: float) -> Method:
    return plugins.build("losses", "dkd", *pair, **options)


def test_both_parts_by_hand_with_temperature_squared(pair: Pair) -> None:
    # At T = 2 the teacher's probabilities are (1/2, 1/4, 1/4) and the student's (1/4, 1/4, 1/2).
    teacher = of(2 * np.log([[1 / 2, 1 / 4, 1 / 4]] * 2))
    student = of(2 * np.log([[1 / 4, 1 / 4, 1 / 2]] * 2))
    terms = method(pair, temperature=2.0, alpha=3.0, beta=5.0)(student, teacher, batch([0, 1]))
    assert list(terms) == ["dkd/target", "dkd/non_target"]
    # Class 0 against the others is (1/2, 1/2) and (1/4, 3/4); class 1 against the others is (1/4, 3/4) for both.
    target = 1 / 2 * np.log((1 / 2) / (1 / 4)) + 1 / 2 * np.log((1 / 2) / (3 / 4))
    np.testing.assert_allclose(terms["dkd/target"], [3 * 2**2 * target, 0], rtol=1e-5, atol=1e-5)
    # Among classes 1 and 2: (1/2, 1/2) and (1/3, 2/3). Among classes 0 and 2: (2/3, 1/3) and (1/3, 2/3).
    first = 1 / 2 * np.log((1 / 2) / (1 / 3)) + 1 / 2 * np.log((1 / 2) / (2 / 3))
    second = 2 / 3 * np.log(2) + 1 / 3 * np.log(1 / 2)
    np.testing.assert_allclose(terms["dkd/non_target"], [5 * 2**2 * first, 5 * 2**2 * second], rtol=1e-5)


def test_by_default_the_others_weigh_eight_times_the_target_at_temperature_four(pair: Pair) -> None:
    # The example above, at T = 4.
    teacher, student = of(4 * np.log([[1 / 2, 1 / 4, 1 / 4]])), of(4 * np.log([[1 / 4, 1 / 4, 1 / 2]]))
    built = method(pair)
    terms = built(student, teacher, batch([0]))
    np.testing.assert_allclose(terms["dkd/target"], [16 * (np.log(2) + np.log(2 / 3)) / 2], rtol=1e-5)
    np.testing.assert_allclose(terms["dkd/non_target"], [8 * 16 * (np.log(3 / 2) + np.log(3 / 4)) / 2], rtol=1e-5)
    assert built.recommended_weight == 1


def test_soft_targets_are_the_one_part_and_the_share_of_the_others_times_the_other(pair: Pair) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 5, (6, 10))
    teacher, student, labels = of(logits), of(random.normal(0, 5, (6, 10))), [3, 1, 4, 1, 5, 9]
    terms = method(pair, alpha=1.0, beta=1.0)(student, teacher, batch(labels))
    kd = plugins.build("losses", "kd", *pair)(student, teacher, batch(labels))["kd"]
    exponentials = np.exp(logits / 4)
    share = 1 - exponentials[range(6), labels] / exponentials.sum(axis=1)
    np.testing.assert_allclose(kd, terms["dkd/target"] + share * terms["dkd/non_target"], rtol=1e-4)


def test_the_target_of_a_soft_label_is_its_largest_class(pair: Pair) -> None:
    teacher, student = of([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]]), of([[0.0, 2.0, 1.0], [1.0, 0.0, 0.0]])
    soft = method(pair)(student, teacher, batch([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]]))
    for name, term in method(pair)(student, teacher, batch([2, 0])).items():
        np.testing.assert_allclose(soft[name], term, rtol=1e-6)
    other = method(pair)(student, teacher, batch([0, 1]))
    assert not np.allclose(soft["dkd/target"], other["dkd/target"])


def test_equal_logits_give_zero_and_no_gradient(pair: Pair) -> None:
    logits = tf.constant([[1.0, -2.0, 0.5], [0.0, 3.0, 3.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        terms = method(pair)(of(logits), of(tf.stop_gradient(logits)), batch([0, 1]))
        total = tf.add_n(list(terms.values()))
    np.testing.assert_allclose(total, [0, 0], atol=1e-4)
    np.testing.assert_allclose(tape.gradient(total, logits), np.zeros([2, 3]), atol=1e-4)


def test_confident_networks_give_finite_values_and_gradients(pair: Pair) -> None:
    """Where a probability is 0 in float32, its logarithm must not be taken."""
    logits = tf.constant([[4000.0, 0.0, -4000.0], [-4000.0, 4000.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        terms = method(pair)(of(logits), of([[0.0, 4000.0, 0.0], [0.0, 4000.0, 0.0]]), batch([0, 0]))
        total = tf.add_n(list(terms.values()))
    # First example, T = 4: the teacher is sure of the others, where the student's logarithm is -1000; class 1 among them for both.
    np.testing.assert_allclose(terms["dkd/target"], [16 * 1000, 0], rtol=1e-5)
    np.testing.assert_allclose(terms["dkd/non_target"], [0, 0], atol=1e-3)
    assert np.isfinite(tape.gradient(total, logits)).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": 0.0}, "temperature of dkd must be above 0. Received: 0.0"),
        ({"temperature": float("nan")}, "temperature of dkd must be above 0. Received: nan"),
        ({"alpha": -1.0}, "alpha of dkd must be 0 or more. Received: -1.0"),
        ({"beta": float("nan")}, "beta of dkd must be 0 or more. Received: nan"),
        ({"gamma": 1.0}, "unknown option of dkd. Received: 'gamma'"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, float], told: str, pair: Pair) -> None:
    with pytest.raises(UserError, match=told):
        method(pair, **options)
