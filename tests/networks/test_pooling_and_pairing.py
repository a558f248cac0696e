"""Properties of pooling and pairing, over shapes and strides that hypothesis draws."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dfa_tf.errors import UserError
from dfa_tf.networks.connectors import pool, same_resolution
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.pairing import match, stride

FEW = settings(max_examples=15, deadline=None, derandomize=True, database=None)
SIDES = st.integers(1, 9)


def feature(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, height, width, 3)).astype(np.float32)


@FEW
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.integers(0, 9))
def test_a_pooled_pixel_is_the_mean_of_the_pixels_that_it_covers(source: tuple[int, int], target: tuple[int, int], seed: int) -> None:
    target = min(source[0], target[0]), min(source[1], target[1])
    image = feature(*source, seed)
    pooled = pool(tf.constant(image), *target).numpy()
    assert pooled.shape == (2, *target, 3)
    for i in range(target[0]):
        for j in range(target[1]):
            rows = slice(int(np.floor(i * source[0] / target[0])), int(np.ceil((i + 1) * source[0] / target[0])))
            columns = slice(int(np.floor(j * source[1] / target[1])), int(np.ceil((j + 1) * source[1] / target[1])))
            np.testing.assert_allclose(pooled[:, i, j], image[:, rows, columns].mean((1, 2)), rtol=1e-4, atol=1e-5)


@FEW
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.floats(-9, 9, width=32))
def test_pooling_keeps_constants_and_by_whole_factors_the_mean(height: int, width: int, factor: int, value: float) -> None:
    image = feature(height * factor, width * factor, 0)
    pooled = pool(tf.constant(image), height, width).numpy()
    np.testing.assert_allclose(pooled.mean((1, 2)), image.mean((1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pool(tf.fill(image.shape, value), height, width), np.full(pooled.shape, value), rtol=1e-5, atol=1e-6)


@FEW
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES))
def test_two_features_meet_at_the_lower_resolution_whatever_their_order(one: tuple[int, int], other: tuple[int, int]) -> None:
    first, second = feature(*one, 1), feature(*other, 2)
    pair, turned = same_resolution(tf.constant(first), tf.constant(second)), same_resolution(tf.constant(second), tf.constant(first))
    assert pair[0].shape[1:3] == pair[1].shape[1:3] == (min(one[0], other[0]), min(one[1], other[1]))
    np.testing.assert_array_equal(pair[0], turned[1])
    np.testing.assert_array_equal(pair[1], turned[0])


@functools.cache
def pyramid(sides: tuple[int, ...]) -> FeatureModel:
    """A stack with one block at each of these sides, from 16x16 pixels."""
    pixels = x = keras.layers.Input((16, 16, 1))
    for number, side in enumerate(sides):
        x = keras.layers.MaxPooling2D(x.shape[1] // side, name=f"block{number}")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return FeatureModel.from_model(keras.Model(pixels, keras.layers.Dense(3)(x)), [[f"block{number}"] for number in range(len(sides))])


PYRAMIDS = st.lists(st.sampled_from([16, 8, 4, 2]), min_size=1, max_size=4).map(lambda sides: tuple(sorted(sides, reverse=True)))


@FEW
@given(PYRAMIDS, PYRAMIDS)
def test_pairs_go_from_shallow_to_deep_and_turn_with_the_networks(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    student, teacher = pyramid(ours), pyramid(theirs)
    if len(ours) != len(theirs) and not {*ours} & {*theirs}:
        with pytest.raises(UserError, match="pair in order, or by stride"):
            match(student, teacher)
        return
    pairs = match(student, teacher)
    assert pairs == sorted(pairs)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert [(j, i) for i, j in pairs] == match(teacher, student)
    if len(ours) == len(theirs):
        assert pairs == [(i, i) for i in range(len(ours))]
    else:
        assert len(pairs) == len({*ours} & {*theirs})
        for i, j in pairs:
            assert stride(student, student.groups[i]) == stride(teacher, teacher.groups[j])
