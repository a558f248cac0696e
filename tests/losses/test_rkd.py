"""Relational distillation: both terms by hand, what they do not depend on, and safe gradients where examples coincide."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features

BATCH = Batch(tf.zeros([3, 8, 8, 1]), tf.constant([0, 1, 2]), None)
TRIANGLE = [[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]
LINE = [[0.0], [1.0], [2.0]]


def build(tiny: Callable[..., FeatureModel], **options: float) -> Method:
    return plugins.build("losses", "rkd", tiny(4), tiny(6), **options)


@pytest.fixture(scope="module")
def method(tiny: Callable[..., FeatureModel]) -> Method:
    return build(tiny)


def of(embedding: Sequence[Sequence[float]]) -> Features:
    return Features(tf.zeros([len(embedding), 10]), (), tf.convert_to_tensor(embedding, tf.float32), {})


def test_both_terms_by_hand(method: Method) -> None:
    terms = method(of(LINE), of(TRIANGLE), BATCH)
    assert list(terms) == ["rkd/distance", "rkd/angle"]
    assert [term.shape for term in terms.values()] == [(), ()]
    # Distances 3, 4, 5 over their mean 4, and 1, 2, 1 over 4/3, of the pairs 12, 13, 23: they differ by 0, 0.5 and 0.5.
    # Half the square of these, twice as (i, j) and (j, i), over 3 x 3 pairs; the weight is 25.
    np.testing.assert_allclose(terms["rkd/distance"], 25 * 2 * (0.125 + 0.125) / 9, rtol=1e-5)
    # Cosines at 1, 2, 3: the triangle's 0, 3/5, 4/5; the line's 1, -1, 1. They differ by 1, 1.6 and 0.2: half the square
    # below 1, above it the difference less one half. Twice as (j, k) and (k, j), over 3 x 3 x 3; the weight is 50.
    np.testing.assert_allclose(terms["rkd/angle"], 50 * 2 * (0.5 + 1.1 + 0.02) / 27, rtol=1e-5)


def test_the_weights_of_both_terms_are_options(tiny: Callable[..., FeatureModel]) -> None:
    terms = build(tiny, distance=2.0, angle=0.0)(of(LINE), of(TRIANGLE), BATCH)
    np.testing.assert_allclose(terms["rkd/distance"], 2 * 2 * (0.125 + 0.125) / 9, rtol=1e-5)
    np.testing.assert_array_equal(terms["rkd/angle"], 0)


def test_scale_place_and_rotation_do_not_count(method: Method) -> None:
    embedding = np.random.default_rng(0).normal(size=(6, 3))
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    for term in method(of(5 * embedding @ rotation + 2), of(embedding), BATCH).values():
        np.testing.assert_allclose(term, 0, atol=1e-6)


@pytest.mark.parametrize("embedding", [[[1.0, 2.0], [1.0, 2.0], [4.0, 6.0]], [[1.0, 2.0]] * 3])
def test_examples_that_coincide_do_not_pull_at_each_other(method: Method, embedding: list[list[float]]) -> None:
    watched = tf.constant(embedding)
    with tf.GradientTape() as tape:
        tape.watch(watched)
        terms = method(Features(tf.zeros([3, 10]), (), watched, {}), of(TRIANGLE), BATCH)
        total = tf.add_n(list(terms.values()))
    gradient = tape.gradient(total, watched).numpy()
    assert np.isfinite(total)
    assert np.abs(gradient).max() < 100  # and not 1e6, the inverse of the least distance


def test_a_teacher_whose_examples_coincide_gives_finite_terms(method: Method) -> None:
    for term in method(of(LINE), of([[1.0, 2.0]] * 3), BATCH).values():
        assert np.isfinite(term)


def test_the_weight_is_one_as_the_two_weights_are_in_the_terms(method: Method) -> None:
    assert method.recommended_weight == 1


@pytest.mark.parametrize("options", [{"distance": -1.0}, {"angle": float("nan")}, {"angle": float("inf")}])
def test_a_weight_must_be_at_least_zero(tiny: Callable[..., FeatureModel], options: dict[str, float]) -> None:
    ((name, weight),) = options.items()
    with pytest.raises(UserError, match=f"the weight {name} of rkd must be at least 0. Received: {weight}"):
        build(tiny, **options)


def test_one_of_the_weights_must_be_above_zero(tiny: Callable[..., FeatureModel]) -> None:
    with pytest.raises(UserError, match="one of the weights distance and angle of rkd must be above 0"):
        build(tiny, distance=0.0, angle=0.0)


def test_a_network_without_embedding_is_refused(tiny: Callable[..., FeatureModel]) -> None:
    pixels = keras.layers.Input((8, 8, 1))
    x = keras.layers.ReLU(name="block")(keras.layers.Conv2D(10, 3)(pixels))
    pooled = FeatureModel.from_model(keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(x), name="pooled"), [["block"]])
    for pair in ((pooled, tiny()), (tiny(), pooled)):
        with pytest.raises(UserError, match="rkd reads the embedding.*Received: 'pooled'"):
            plugins.build("losses", "rkd", *pair)
