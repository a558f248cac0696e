"""Connectors: shapes, 1x1 convolution without bias, BatchNorm, resizing."""

import numpy as np
import pytest
import tensorflow as tf

from dfa_tf.networks.connectors import connector, same_resolution


@pytest.mark.parametrize(
    ("source", "target"),
    [((8, 8, 3), (8, 8, 5)), ((8, 8, 5), (8, 8, 5)), ((4, 4, 3), (8, 8, 2)), ((8, 6, 3), (4, 3, 7)), ((1, 1, 4), (3, 2, 4))],
)
def test_a_feature_comes_out_in_the_target_s_shape(source: tuple[int, ...], target: tuple[int, ...]) -> None:
    model = connector(source, target, name="between")
    assert model(tf.zeros([2, *source])).shape == (2, *target)
    # One kernel without bias, then the BatchNorm's scale and offset, also where the widths agree.
    assert {tuple(variable.shape) for variable in model.trainable_variables} == {(1, 1, source[-1], target[-1]), (target[-1],)}
    assert len(model.trainable_variables) == 3
    assert any("resize" in layer.name for layer in model.layers) == (source[:2] != target[:2])


def test_the_value_in_inference_is_the_kernel_times_the_feature() -> None:
    model = connector((2, 2, 3), (2, 2, 4), name="between")
    feature = np.random.default_rng(0).normal(size=(5, 2, 2, 3)).astype(np.float32)
    kernel = model.get_layer("between_conv").kernel.numpy()[0, 0]
    # The moving mean is 0 and the moving variance 1; epsilon is 1e-5.
    np.testing.assert_allclose(model(feature, training=False), feature @ kernel / np.sqrt(1 + 1e-5), rtol=1e-5, atol=1e-6)


def test_in_training_each_channel_is_normalised_and_the_statistics_move_by_a_tenth() -> None:
    model = connector((4, 4, 3), (4, 4, 2), name="between")
    feature = np.random.default_rng(0).normal(3.0, 2.0, size=(20, 4, 4, 3)).astype(np.float32)
    out = model(feature, training=True).numpy()
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-3)
    convolved = feature @ model.get_layer("between_conv").kernel.numpy()[0, 0]
    norm = model.get_layer("between_bn")
    np.testing.assert_allclose(norm.moving_mean, 0.1 * convolved.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, 0.9 + 0.1 * convolved.var((0, 1, 2)), rtol=1e-4)


def test_resizing_is_bilinear_and_comes_before_the_convolution() -> None:
    model = connector((1, 2, 1), (1, 4, 1), name="between")
    model.get_layer("between_conv").kernel.assign([[[[2.0]]]])
    out = model(tf.constant([0.0, 1.0], shape=(1, 1, 2, 1)), training=False)
    # Centres of the four pixels lie at -1/4, 1/4, 3/4, 5/4 of the two; outside the border's value holds.
    np.testing.assert_allclose(np.ravel(out), 2 * np.array([0, 0.25, 0.75, 1]) / np.sqrt(1 + 1e-5), rtol=1e-5, atol=1e-7)


def test_the_kernel_is_he_normal_by_fan_out() -> None:
    kernel = connector((1, 1, 400), (1, 1, 50), name="between").get_layer("between_conv").kernel.numpy()
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / 50), rtol=0.03)
    np.testing.assert_allclose(kernel.mean(), 0, atol=0.01)


def test_features_meet_at_the_lower_resolution_by_the_mean_of_what_each_pixel_covers() -> None:
    one = tf.reshape(tf.range(16.0), [1, 4, 4, 1])
    other = tf.random.normal([1, 2, 4, 3])
    pooled, same = same_resolution(one, other)
    np.testing.assert_allclose(pooled[0, :, :, 0], [[2, 3, 4, 5], [10, 11, 12, 13]])
    assert same is other
    # Of three pixels the outer two share the middle one.
    pooled, _ = same_resolution(tf.reshape([1.0, 3.0, 8.0], [1, 3, 1, 1]), tf.zeros([1, 2, 1, 1]))
    np.testing.assert_allclose(pooled[0, :, 0, 0], [2, 5.5])


def test_each_side_is_brought_to_the_lower_one_by_itself() -> None:
    one, other = same_resolution(tf.ones([2, 8, 3, 4]), tf.ones([2, 4, 5, 6]))
    assert (one.shape, other.shape) == ((2, 4, 3, 4), (2, 4, 3, 6))
    np.testing.assert_allclose(one, np.ones([2, 4, 3, 4]), rtol=1e-6)
    np.testing.assert_allclose(other, np.ones([2, 4, 3, 6]), rtol=1e-6)
