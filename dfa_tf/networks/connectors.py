"""Connectors bring a feature of one network to the width and resolution of another network's feature."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from dfa_tf.networks.layers import convolve, normalise


def connector(source: Sequence[int], target: Sequence[int], *, name: str) -> keras.Model:
    """Bilinear resizing where resolutions differ, then a 1x1 convolution without bias and BatchNorm.

    Without the BatchNorm results are worse (Heo et al. 2019, A Comprehensive Overhaul of Feature
    Distillation). The connector is F_s and F_t of the DFA paper, section 3.3.

    Args:
        source: height, width, channels of the input.
        target: height, width, channels of the output.
        name: of the model.

    Returns:
        A model from `[B, *source]` to `[B, *target]`.
    """
    feature = x = layers.Input(tuple(source))
    if tuple(source[:2]) != tuple(target[:2]):
        x = layers.Resizing(target[0], target[1], name=f"{name}_resize")(x)
    x = normalise(convolve(x, target[2], 1, name=f"{name}_conv"), name=f"{name}_bn")
    return keras.Model(feature, x, name=name)


def same_resolution(one: tf.Tensor, other: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Both features at the lower resolution of the two: each output pixel is the mean of the input pixels that it covers.

    Args:
        one: `[B, H, W, C]`.
        other: `[B, H', W', C']`.

    Returns:
        `[B, min(H, H'), min(W, W'), C]` and `[B, min(H, H'), min(W, W'), C']`.
    """
    height, width = (min(one.shape[axis], other.shape[axis]) for axis in (1, 2))
    return pool(one, height, width), pool(other, height, width)


def pool(feature: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """A feature `[B, H, W, C]` at the same or a lower resolution: each pixel is the mean of those that it covers, wholly or in part."""
    if tuple(feature.shape[1:3]) == (height, width):
        return feature
    rows, columns = _means(feature.shape[1], height), _means(feature.shape[2], width)
    return tf.einsum("hr,brsc,ws->bhwc", tf.cast(rows, feature.dtype), feature, tf.cast(columns, feature.dtype))


def _means(source: int, target: int) -> np.ndarray:
    """`[target, source]`: row i takes the mean of the positions that it covers, wholly or in part."""
    weights = np.zeros((target, source), np.float32)
    for i in range(target):
        first, end = i * source // target, -(-(i + 1) * source // target)
        weights[i, first:end] = 1 / (end - first)
    return weights
