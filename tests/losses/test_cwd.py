"""Channel-wise distillation: a distribution over positions by hand, which maps are read, and what gets a gradient."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features

Tiny = Callable[..., FeatureModel]
Pair = tuple[FeatureModel, FeatureModel]
BATCH = Batch(tf.zeros([2, 8, 8, 1]), tf.constant([0, 1]), None)
CHANNELS = 12  # of the teacher's last group, which has 4x4 pixels; the student's has 8


@pytest.fixture
def pair(tiny: Tiny) -> Pair:
    return tiny(4, 1, seed=1), tiny(6, 2, seed=2)


def of(feature: np.ndarray) -> Features:
    """Features whose last output is this one; reading anything else fails."""
    return Features(None, (), None, {"output": ((), (None, tf.constant(feature, tf.float32)))})


def build(pair: Pair, **options: float) -> Method:
    return plugins.build("losses", "cwd", *pair, **options)


def flat(method: Method) -> None:
    """Lets the connector give the same value for all positions: a uniform distribution in each channel."""
    method.connector.get_layer("connector_bn").gamma.assign(np.zeros(CHANNELS))  # type: ignore[attr-defined]


def peak(temperature: float) -> np.ndarray:
    """Channel 3 of the first of two examples has probability 1/2 at one pixel and 1/30 at the 15 others; all else is uniform."""
    feature = np.zeros((2, 4, 4, CHANNELS))
    feature[0, 1, 2, 3] = temperature * np.log(15)
    return feature


DIVERGENCE = 1 / 2 * np.log((1 / 2) / (1 / 16)) + 1 / 2 * np.log((1 / 30) / (1 / 16))
"""Of that channel from the uniform distribution over 16 pixels; the other way round it is another value."""


def test_a_channel_by_hand_with_temperature_four_squared_over_the_channels(pair: Pair) -> None:
    method = build(pair)
    flat(method)
    terms = method(of(np.random.default_rng(0).normal(size=(2, 4, 4, 8))), of(peak(4.0)), BATCH)
    assert list(terms) == ["cwd"]
    np.testing.assert_allclose(terms["cwd"], [4**2 * DIVERGENCE / CHANNELS, 0], rtol=1e-4, atol=1e-6)
    assert method.recommended_weight == 35


def test_the_temperature_softens_both(pair: Pair) -> None:
    method = build(pair, temperature=2.0)
    flat(method)
    terms = method(of(np.ones((2, 4, 4, 8))), of(peak(2.0)), BATCH)
    np.testing.assert_allclose(terms["cwd"], [2**2 * DIVERGENCE / CHANNELS, 0], rtol=1e-4, atol=1e-6)


def test_the_student_s_distribution_is_its_connected_feature_s(pair: Pair) -> None:
    """Against a uniform teacher: ln(1/16) less the mean logarithm of the student's probabilities."""
    method = build(pair)
    feature = np.random.default_rng(0).normal(size=(2, 4, 4, 8))
    connected = method.connector(tf.constant(feature, tf.float32), training=True).numpy().reshape(2, 16, CHANNELS)
    exponentials = np.exp(connected / 4)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    divergence = np.log(1 / 16) - np.log(probabilities).mean(axis=1)
    terms = method(of(feature), of(np.zeros((2, 4, 4, CHANNELS))), BATCH)
    np.testing.assert_allclose(terms["cwd"], 16 * divergence.mean(axis=1), rtol=1e-4)


def test_only_where_a_channel_is_active_counts_and_not_how_much_overall(pair: Pair) -> None:
    method, random = build(pair), np.random.default_rng(0)
    student, teacher = of(random.normal(size=(2, 4, 4, 8))), random.normal(size=(2, 4, 4, CHANNELS))
    shifted = teacher + random.normal(size=(2, 1, 1, CHANNELS))
    np.testing.assert_allclose(method(student, of(shifted), BATCH)["cwd"], method(student, of(teacher), BATCH)["cwd"], rtol=1e-4)


def test_large_features_give_finite_values_and_gradients(pair: Pair) -> None:
    method = build(pair)
    feature = tf.constant(1e4 * np.random.default_rng(0).normal(size=(2, 4, 4, 8)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(feature)
        student = Features(None, (), None, {"output": ((feature,),)})
        term = method(student, of(1e4 * np.random.default_rng(1).normal(size=(2, 4, 4, CHANNELS))), BATCH)["cwd"]
    assert np.isfinite(term).all()
    assert np.isfinite(tape.gradient(term, feature)).all()


def test_a_student_of_another_resolution_is_brought_to_the_teacher_s(tiny: Tiny) -> None:
    higher = FeatureModel.from_model(tiny(4, 1).model, [["group1_block1"]])
    pair = higher, FeatureModel.from_model(tiny(6, 1).model, [["group2_block1"]])
    method = build(pair)
    images = tf.constant(np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 1)), tf.float32)
    student, teacher = (network.extractor(method.taps)(images) for network in pair)
    assert student.at("output")[-1][-1].shape == (2, 8, 8, 4)
    assert teacher.at("output")[-1][-1].shape == (2, 4, 4, CHANNELS)
    assert (method(student, teacher, BATCH)["cwd"] > 0).numpy().all()


def test_a_teacher_of_one_pixel_is_refused(tiny: Tiny) -> None:
    pixels = x = layers.Input((8, 8, 1))
    for i, size in enumerate((1, 8), start=1):
        x = layers.Conv2D(4, size, name=f"block{i}")(x)
    model = keras.Model(pixels, layers.Dense(10)(layers.Flatten()(x)), name="one_pixel")
    teacher = FeatureModel.from_model(model, [["block1"], ["block2"]])
    with pytest.raises(UserError, match="cwd compares distributions over positions. Received: 'one_pixel', whose last group has one pixel"):
        build((tiny(), teacher))


def test_networks_with_another_number_of_groups_are_refused(tiny: Tiny) -> None:
    single = FeatureModel.from_model(tiny().model, [["group1_block1"]])
    with pytest.raises(UserError, match="the same number of layer groups"):
        build((single, tiny()))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_above_zero(temperature: float, pair: Pair) -> None:
    with pytest.raises(UserError, match=f"temperature of cwd must be above 0. Received: {temperature}"):
        build(pair, temperature=temperature)
