"""Logit standardisation: z-scores by hand, blind to scale and offset, and what it hands on from its base."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features

Pair = tuple[FeatureModel, FeatureModel]
BATCH = Batch(tf.zeros([4, 8, 8, 1]), tf.constant([0, 1, 1, 0]), None)
TERMS = {"kd": ["kd"], "dkd": ["dkd/target", "dkd/non_target"], "dist": ["dist/inter", "dist/intra"]}


@pytest.fixture(scope="module")
def pair(tiny: Callable[..., FeatureModel]) -> Pair:
    return tiny(4, 1, seed=1), tiny(6, 2, seed=2)


def of(logits: object) -> Features:
    return Features(tf.convert_to_tensor(logits, tf.float32), (), None, {})


def method(pair: Pair, **options: object) -> Method:
    return plugins.build("losses", "logit_standardisation", *pair, **options)


def test_soft_targets_of_z_scores_by_hand_at_temperature_two(pair: Pair) -> None:
    built = method(pair)
    # Z-scores of two logits are -1 and 1 whatever the logits: the standard deviation is over the K classes, not K - 1.
    terms = built(of([[0.0, 5.0], [3.0, 2.0]]), of([[7.0, 1.0], [100.0, -4.0]]), BATCH)
    assert list(terms) == ["logit_standardisation/kd"]
    # First example: the student's (-1/2, 1/2) against the teacher's (1/2, -1/2) at T = 2; p is the larger probability.
    p = np.exp(1 / 2) / (np.exp(1 / 2) + np.exp(-1 / 2))
    divergence = p * np.log(p / (1 - p)) + (1 - p) * np.log((1 - p) / p)
    np.testing.assert_allclose(terms["logit_standardisation/kd"], [2**2 * divergence, 0], rtol=1e-5, atol=1e-6)
    assert built.recommended_weight == 9


def test_a_z_score_is_the_difference_from_the_mean_over_the_standard_deviation(pair: Pair) -> None:
    # (0, 0, 3): mean 1, variance (1 + 1 + 4) / 3 = 2. (0, 3, 3): mean 2, variance 2.
    scores = np.array([[-1, -1, 2], [-2, 1, 1]]) / np.sqrt(2)
    standardised = method(pair)(of([[0.0, 0.0, 3.0]]), of([[0.0, 3.0, 3.0]]), BATCH)
    kd = plugins.build("losses", "kd", *pair, temperature=2.0)(of(scores[:1]), of(scores[1:]), BATCH)
    np.testing.assert_allclose(standardised["logit_standardisation/kd"], kd["kd"], rtol=1e-5)


@pytest.mark.parametrize("base", TERMS)
def test_scale_and_offset_of_the_logits_do_not_matter(base: str, pair: Pair) -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(4, 10)), random.normal(0, 4, (4, 10))
    built = method(pair, base=base)
    terms = built(of(student), of(teacher), BATCH)
    assert list(terms) == [f"logit_standardisation/{name}" for name in TERMS[base]]
    moved = built(of(3 * student - 7), of(0.2 * teacher + 1), BATCH)
    for name, term in terms.items():
        np.testing.assert_allclose(moved[name], term, rtol=1e-4, atol=1e-5)
    for term in built(of(0.1 * teacher + 5), of(teacher), BATCH).values():
        np.testing.assert_allclose(term, np.zeros(term.shape), atol=1e-4)


@pytest.mark.parametrize("base", TERMS)
def test_what_the_base_declares_is_handed_on(base: str, pair: Pair) -> None:
    built, own = method(pair, base=base), plugins.build("losses", base, *pair)
    assert built.recommended_weight == 9 * own.recommended_weight
    # A base that declares more than this class does cannot be among the bases as they are.
    assert (built.taps, built.needs, built.phases) == (own.taps, own.needs, own.phases)


def test_the_base_is_at_temperature_two_with_its_own_options(pair: Pair) -> None:
    random = np.random.default_rng(0)
    student, teacher = of(random.normal(size=(4, 10))), of(random.normal(size=(4, 10)))
    plain = method(pair, base="dkd")(student, teacher, BATCH)
    given = method(pair, base="dkd", base_options={"beta": 4.0, "alpha": 3.0})(student, teacher, BATCH)
    # The paper's weights of dkd are 1 and 8.
    np.testing.assert_allclose(given["logit_standardisation/dkd/target"], 3 * plain["logit_standardisation/dkd/target"], rtol=1e-5)
    np.testing.assert_allclose(given["logit_standardisation/dkd/non_target"], plain["logit_standardisation/dkd/non_target"] / 2, rtol=1e-5)
    warmer = method(pair, base="dkd", temperature=2.0)(student, teacher, BATCH)
    np.testing.assert_array_equal(warmer["logit_standardisation/dkd/target"], plain["logit_standardisation/dkd/target"])
    other = method(pair, base="dkd", temperature=5.0)(student, teacher, BATCH)
    assert not np.allclose(other["logit_standardisation/dkd/target"], plain["logit_standardisation/dkd/target"])


def test_equal_logits_have_scores_of_zero_and_a_finite_gradient(pair: Pair) -> None:
    logits = tf.zeros([2, 3])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        term = method(pair)(of(logits), of([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]), BATCH)["logit_standardisation/kd"]
    np.testing.assert_allclose(term[0], 0, atol=1e-6)
    assert term[1] > 0.1
    assert np.isfinite(tape.gradient(term, logits)).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"base": "dst"}, r"is one of \('kd', 'dkd', 'dist'\). Received: 'dst'. Did you mean 'dist'\?"),
        ({"base": "dfa"}, "Received: 'dfa'. Choose from dist, dkd, kd."),
        ({"base": "logit_standardisation"}, "Received: 'logit_standardisation'. Choose from dist, dkd, kd."),
        ({"temperature": 0.0}, "the temperature of kd must be above 0. Received: 0.0"),
        ({"base_options": {"beta": 2.0}}, "unknown option of kd. Received: 'beta'"),
        ({"base_options": {"temperature": 3.0}}, "multiple values for keyword argument 'temperature'"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, object], told: str, pair: Pair) -> None:
    with pytest.raises(UserError, match=told):
        method(pair, **options)
