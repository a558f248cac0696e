"""Resized crops are boxes with the requested area and aspect ratio; mixup mixes images and labels with the same share."""

import numpy as np
import pytest
import tensorflow as tf

from dfa_tf.images.augmentation import augment, mix

SIDE = 33


@pytest.fixture(scope="module")
def ramps() -> tf.Tensor:
    """Images whose two channels are the row and the column of the pixel: a crop shows where it was taken."""
    rows, columns = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    return tf.constant(np.broadcast_to(np.stack([rows, columns], axis=-1), (400, SIDE, SIDE, 2)).astype(np.float32))


def boxes(crops: np.ndarray) -> tuple[np.ndarray, ...]:
    """Top, left, height and width of each crop, as shares of the sides."""
    first, last = crops[:, 0, 0] / (SIDE - 1), crops[:, -1, -1] / (SIDE - 1)
    return first[:, 0], first[:, 1], last[:, 0] - first[:, 0], last[:, 1] - first[:, 1]


def test_a_resized_crop_is_a_box_stretched_to_the_whole(ramps: tf.Tensor) -> None:
    crops = augment(ramps, seed=(0, 0), resized_crop=0.3).numpy()
    assert crops.shape == ramps.shape
    for channel, axis in ((0, 1), (1, 2)):
        steps = np.diff(crops[..., channel], axis=axis)
        np.testing.assert_allclose(steps, np.broadcast_to(steps[:, :1, :1], steps.shape), atol=1e-4)
    top, left, height, width = boxes(crops)
    assert min(top.min(), left.min()) >= -1e-6
    assert max((top + height).max(), (left + width).max()) <= 1 + 1e-6


def test_resized_crops_have_the_requested_areas_and_aspect_ratios(ramps: tf.Tensor) -> None:
    top, left, height, width = boxes(augment(ramps, seed=(0, 0), resized_crop=0.3).numpy())
    area, ratio = height * width, width / height
    whole = (height < 1 - 1e-4) & (width < 1 - 1e-4)  # where neither side was cut off at the image's
    assert area[whole].min() >= 0.3 - 1e-3
    assert (area < 0.4).any()
    assert (area > 0.8).any()
    assert ratio[whole].min() >= 3 / 4 - 1e-3
    assert ratio[whole].max() <= 4 / 3 + 1e-3
    assert (ratio[whole] < 0.8).any()
    assert (ratio[whole] > 1.2).any()
    assert len({round(float(place), 3) for place in top}) > 100
    assert abs(np.corrcoef(top / np.maximum(1 - height, 1e-3), left / np.maximum(1 - width, 1e-3))[0, 1]) < 0.2


def test_a_crop_of_the_whole_area_is_the_image_up_to_its_sides(ramps: tf.Tensor) -> None:
    _, _, height, width = boxes(augment(ramps, seed=(0, 0), resized_crop=1.0).numpy())
    np.testing.assert_allclose(np.maximum(height, width), 1.0, atol=1e-5)
    assert np.minimum(height, width).min() >= np.sqrt(3 / 4) - 1e-3


def test_resized_crops_are_a_function_of_the_seed_and_keep_the_type(ramps: tf.Tensor) -> None:
    some = tf.cast(ramps[:4], tf.uint8)
    one, same, other = (augment(some, seed=seed, resized_crop=0.2).numpy() for seed in ((1, 2), (1, 2), (1, 3)))
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_mixup_mixes_images_and_labels_by_one_share() -> None:
    images = tf.constant(np.eye(5, dtype=np.float32).reshape(5, 1, 1, 5))  # image i is all in channel i
    mixed, soft = mix(images, tf.range(5), num_classes=5, alpha=1.0, seed=(0, 3))
    # An image then shows its own composition, which must match its label.
    np.testing.assert_allclose(tf.reshape(mixed, [5, 5]), soft, rtol=1e-6)
    np.testing.assert_allclose(tf.reduce_sum(soft, axis=1), np.ones(5), rtol=1e-6)
    shares = {round(float(value), 5) for row in soft.numpy() for value in row if 0 < value < 1}
    assert len(shares) == 2, "the share of the first image and that of its partner"
    np.testing.assert_allclose(sum(shares), 1, rtol=1e-4)


def test_the_share_is_of_a_beta_distribution() -> None:
    images = tf.reshape(tf.constant([0.0, 1.0]), [2, 1, 1, 1])

    def shares(alpha: float) -> np.ndarray:
        drawn = [mix(images, tf.constant([0, 1]), num_classes=2, alpha=alpha, seed=(0, i))[1].numpy() for i in range(300)]
        return np.array([soft[0, 0] for soft in drawn if 0 < soft[0, 0] < 1])

    # Of Beta(a, a) the mean is 1/2 and the variance 1 / (4 (2 a + 1)).
    for alpha in (0.5, 4.0):
        some = shares(alpha)
        assert len(some) > 80, "every other time an image is its own partner"
        assert abs(some.mean() - 0.5) < 0.1
        np.testing.assert_allclose(some.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.35)


def test_soft_labels_are_mixed_too() -> None:
    given = tf.constant([[0.9, 0.1], [0.2, 0.8]])
    images = tf.reshape(given[:, 0], [2, 1, 1, 1])
    mixed, soft = mix(images, given, num_classes=2, alpha=1.0, seed=(4, 4))
    np.testing.assert_allclose(soft[:, 0], tf.reshape(mixed, [2]), rtol=1e-6)


def test_mixing_is_a_function_of_the_seed() -> None:
    images = tf.random.stateless_normal([6, 2, 2, 1], seed=(0, 0))
    one, same, other = (mix(images, tf.range(6), num_classes=6, alpha=1.0, seed=seed)[0].numpy() for seed in ((1, 2), (1, 2), (1, 3)))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
