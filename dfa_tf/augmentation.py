"""Random variation of raw pixels, stateless: the same seed gives the same images."""

from collections.abc import Sequence

import tensorflow as tf


def augment(images: tf.Tensor, *, seed: Sequence[int | tf.Tensor], crop_padding: int = 0, flip: bool = False) -> tf.Tensor:
    """Varies each image of a batch by itself.

    Args:
        images: raw pixels, `[B, H, W, C]`.
        seed: two integers.
        crop_padding: reflect-pad by so many pixels (fewer than H and W), then crop to `[H, W]` at random.
        flip: mirror half of the images from left to right.

    Returns:
        Images of the same shape, dtype and range.
    """
    batch, (height, width) = tf.shape(images)[0], images.shape[1:3]
    seeds = tf.random.split(tf.stack([tf.cast(part, tf.int64) for part in seed]), 3)
    if crop_padding:
        border = [crop_padding, crop_padding]
        padded = tf.pad(images, [[0, 0], border, border, [0, 0]], mode="REFLECT")
        top, left = (tf.random.stateless_uniform([batch, 1], seeds[i], 0, 2 * crop_padding + 1, tf.int32) for i in (0, 1))
        rows = tf.gather(padded, top + tf.range(height), axis=1, batch_dims=1)
        images = tf.gather(rows, left + tf.range(width), axis=2, batch_dims=1)
    if flip:
        mirrored = tf.random.stateless_uniform([batch, 1, 1, 1], seeds[2]) < 0.5
        images = tf.where(mirrored, images[:, :, ::-1], images)
    return images
