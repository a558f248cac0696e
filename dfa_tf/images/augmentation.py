"""Random augmentation of raw pixels. It is stateless: the same seed gives the same images."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

# Of the sides of a resized crop, as usual for random resized crops.
ASPECT_RATIOS = (3 / 4, 4 / 3)
_DRAWS = 7


def augment(
    images: tf.Tensor,
    *,
    seed: Sequence[int | tf.Tensor] | tf.Tensor,
    crop_padding: int = 0,
    resized_crop: float | None = None,
    flip: bool = False,
) -> tf.Tensor:
    """Augments each image of a batch independently.

    Args:
        images: raw pixels, `[B, H, W, C]`.
        seed: two integers for the batch, or two for each image, int64 `[B, 2]`; an image then depends on its own pair only.
        crop_padding: pixels of reflect-padding (fewer than H and W) before a random crop to `[H, W]`.
        resized_crop: smallest share of the area (0..1) of a random crop with an aspect ratio of 3/4 to 4/3, which is resized
            to `[H, W]` (bilinear).
        flip: mirror half of the images from left to right.

    Returns:
        Images of the same shape, dtype and range.
    """
    if not (crop_padding or resized_crop or flip):
        return images
    batch, (height, width) = tf.shape(images)[0], images.shape[1:3]
    draw = _draws(seed, batch)
    if crop_padding:
        border = [crop_padding, crop_padding]
        padded = tf.pad(images, [[0, 0], border, border, [0, 0]], mode="REFLECT")
        top, left = (draw(i, 0, 2 * crop_padding + 1, tf.int32)[:, tf.newaxis] for i in (0, 1))
        rows = tf.gather(padded, top + tf.range(height), axis=1, batch_dims=1)
        images = tf.gather(rows, left + tf.range(width), axis=2, batch_dims=1)
    if resized_crop is not None:
        boxes = _boxes(draw, resized_crop)
        images = tf.cast(tf.image.crop_and_resize(images, boxes, tf.range(batch), [height, width]), images.dtype)
    if flip:
        mirrored = draw(2)[:, tf.newaxis, tf.newaxis, tf.newaxis] < 0.5
        images = tf.where(mirrored, images[:, :, ::-1], images)
    return images


def augment_views(images: tf.Tensor, *, number: tf.Tensor, view: tf.Tensor, seed: int, **augmentation: Any) -> tf.Tensor:
    """The chosen fixed view of each image. A view depends only on the seed, the number of the image and the number of the view.

    Args:
        images: raw pixels, `[B, H, W, C]`.
        number: number of each image, int64 `[B]`, 0 to 2^32 - 1.
        view: number of the view of each image, int64 `[B]`, from 0.
        seed: shared by all views.
        **augmentation: options of `augment`.
    """
    pairs = tf.stack([tf.fill(tf.shape(view), tf.constant(seed, tf.int64)), number + view * 2**32], axis=1)
    return augment(images, seed=pairs, **augmentation)


def _draws(seed: Sequence[int | tf.Tensor] | tf.Tensor, batch: tf.Tensor) -> Callable[..., tf.Tensor]:
    """A function `draw(number, low, high)` that returns a random number in [low, high) for each image, `[batch]`; `number` is 0 to 6."""
    if isinstance(seed, tf.Tensor) and seed.shape.rank == 2:
        own = tf.map_fn(lambda pair: tf.random.stateless_uniform([_DRAWS], pair), seed, fn_output_signature=tf.float32)
        return lambda number, low=0.0, high=1.0, dtype=tf.float32: tf.cast(low + (high - low) * own[:, number], dtype)
    seeds = tf.random.split(_pair(seed), _DRAWS)
    return lambda number, low=0.0, high=1.0, dtype=tf.float32: tf.random.stateless_uniform([batch], seeds[number], low, high, dtype)


def _boxes(draw: Callable[..., tf.Tensor], smallest: float) -> tf.Tensor:
    """Boxes of random area, aspect ratio and position, `[batch, 4]`: top, left, bottom, right as shares of the sides."""
    area, ratio = draw(3, smallest), tf.exp(draw(4, *(math.log(ratio) for ratio in ASPECT_RATIOS)))
    height, width = tf.minimum(tf.sqrt(area / ratio), 1.0), tf.minimum(tf.sqrt(area * ratio), 1.0)
    top, left = (draw(i) * (1 - side) for i, side in ((5, height), (6, width)))
    return tf.stack([top, left, top + height, left + width], axis=1)


def mix(
    images: tf.Tensor, labels: tf.Tensor, *, num_classes: int, alpha: float, seed: Sequence[int | tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes each image of a batch, and its label, with another one (mixup).

    Args:
        images: `[B, H, W, C]`.
        labels: classes, integers `[B]`, or soft labels, float32 `[B, num_classes]`.
        num_classes: number of classes of the data.
        alpha: above 0. The share of the first image is drawn from Beta(alpha, alpha), once per batch.
        seed: two integers.

    Returns:
        Images of the same shape and dtype, and soft labels, float32 `[B, num_classes]`.

    References:
        Zhang, Cisse, Dauphin, Lopez-Paz (2018), mixup: Beyond Empirical Risk Minimization, arXiv 1710.09412.
    """
    soft = labels if labels.shape.rank == 2 else tf.one_hot(labels, num_classes)
    seeds = tf.random.split(_pair(seed), 3)
    first, second = (tf.random.stateless_gamma([], seeds[i], alpha) for i in (0, 1))
    share = tf.math.divide_no_nan(first, first + second)
    partner = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(images)[0]), seeds[2])

    def mixed(values: tf.Tensor) -> tf.Tensor:
        weight = tf.cast(share, values.dtype)
        return weight * values + (1 - weight) * tf.gather(values, partner)

    return mixed(images), mixed(soft)


def _pair(seed: Sequence[int | tf.Tensor]) -> tf.Tensor:
    return tf.stack([tf.cast(part, tf.int64) for part in seed])
