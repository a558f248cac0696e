"""Correlation congruence: the series of the kernel by hand, the connector, and the gradient."""

import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features

BATCH = Batch(tf.zeros([2, 8, 8, 1]), tf.constant([0, 1]), None)
NAME = "correlation_congruence"


def build(tiny: Callable[..., FeatureModel], **options: float) -> Method:
    """For networks of one width, which need no connector."""
    return plugins.build("losses", NAME, tiny(4, seed=1), tiny(4, seed=2), **options)


def of(embedding: Sequence[Sequence[float]]) -> Features:
    return Features(tf.zeros([len(embedding), 10]), (), tf.convert_to_tensor(embedding, tf.float32), {})


def test_the_value_by_hand(tiny: Callable[..., FeatureModel]) -> None:
    # Student's cosine 1, teacher's 0; with 2 gamma = 0.8 the kernel is e^-0.8 (1 + 0.8 c + 0.8^2 / 2 c^2): they differ by
    # e^-0.8 1.12 in two of the four pairs, as each example is like itself.
    method = build(tiny)
    terms = method(of([[1.0, 0.0], [4.0, 0.0]]), of([[2.0, 0.0], [0.0, 3.0]]), BATCH)
    assert method.trainable_variables == []
    assert list(terms) == [NAME]
    assert terms[NAME].shape == ()
    np.testing.assert_allclose(terms[NAME], 2 / 4 * (math.exp(-0.8) * 1.12) ** 2, rtol=1e-5)


def test_gamma_and_order_are_options(tiny: Callable[..., FeatureModel]) -> None:
    # At 2 gamma = 2 the first term of the series is 2 c, and e^-2 the factor.
    terms = build(tiny, gamma=1.0, order=1)(of([[1.0, 0.0], [4.0, 0.0]]), of([[2.0, 0.0], [0.0, 3.0]]), BATCH)
    np.testing.assert_allclose(terms[NAME], 2 / 4 * (math.exp(-2) * 2) ** 2, rtol=1e-5)


def test_a_long_series_is_the_gaussian_kernel(tiny: Callable[..., FeatureModel]) -> None:
    random = np.random.default_rng(0)
    ours, theirs = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in random.normal(size=(2, 6, 3)))
    kernels = [np.exp(-0.4 * ((unit[:, None] - unit[None]) ** 2).sum(2)) for unit in (ours, theirs)]
    np.testing.assert_allclose(build(tiny, order=12)(of(ours), of(theirs), BATCH)[NAME], ((kernels[0] - kernels[1]) ** 2).mean(), rtol=1e-4)


def test_equal_directions_give_zero(tiny: Callable[..., FeatureModel]) -> None:
    embedding = np.random.default_rng(0).normal(size=(6, 4))
    np.testing.assert_allclose(build(tiny)(of(3 * embedding), of(embedding), BATCH)[NAME], 0, atol=1e-6)


def test_the_gradient_is_finite_where_an_embedding_vanishes(tiny: Callable[..., FeatureModel]) -> None:
    embedding = tf.constant([[0.0, 0.0], [1.0, 1.0]])
    with tf.GradientTape() as tape:
        tape.watch(embedding)
        term = build(tiny)(Features(tf.zeros([2, 10]), (), embedding, {}), of([[1.0, 0.0], [1.0, 0.0]]), BATCH)[NAME]
    assert np.isfinite(tape.gradient(term, embedding)).all()


def test_the_weight_goes_with_the_mean_over_pairs_of_unit_vectors(tiny: Callable[..., FeatureModel]) -> None:
    assert build(tiny).recommended_weight == 100


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan"), float("inf")])
def test_gamma_must_be_above_zero(tiny: Callable[..., FeatureModel], gamma: float) -> None:
    with pytest.raises(UserError, match=f"gamma of correlation_congruence must be above 0. Received: {gamma}"):
        build(tiny, gamma=gamma)


@pytest.mark.parametrize("order", [0, 1.5])
def test_the_order_must_be_a_whole_number_of_at_least_one(tiny: Callable[..., FeatureModel], order: float) -> None:
    with pytest.raises(UserError, match=f"order of correlation_congruence must be a whole number of at least 1. Received: {order}"):
        build(tiny, order=order)


def test_a_network_without_embedding_is_refused(tiny: Callable[..., FeatureModel]) -> None:
    pixels = keras.layers.Input((8, 8, 1))
    x = keras.layers.ReLU(name="block")(keras.layers.Conv2D(10, 3)(pixels))
    pooled = FeatureModel.from_model(keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(x), name="pooled"), [["block"]])
    for pair in ((pooled, tiny()), (tiny(), pooled)):
        with pytest.raises(UserError, match="correlation_congruence reads the embedding.*Received: 'pooled'"):
            plugins.build("losses", NAME, *pair)
