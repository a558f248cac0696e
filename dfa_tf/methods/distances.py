"""Distances of features from a feature aggregation, with the margin of OFD.

References:
    Guan et al. (2020), Differentiable Feature Aggregation Search for Knowledge Distillation, Eq. 3 and 11.
    Heo et al. (2019), A Comprehensive Overhaul of Feature Distillation (OFD), sections 3.2 and 3.3.
"""

import math
from typing import get_args

import keras
import numpy as np
import tensorflow as tf

from dfa_tf.config import Distance, Tap
from dfa_tf.errors import UserError, nearest
from dfa_tf.networks.blocks import LayerGroup

OFD_FACTOR = 1e-3


def feature_distance(name: Distance, student: tf.Tensor, teacher: tf.Tensor, margin: tf.Tensor) -> tf.Tensor:
    """The distance of a student's feature from a feature aggregation, per example.

    Args:
        name: `"margin"`, `"l2"` or `"l2_normalised"`.
        student: `[B, H, W, C]`.
        teacher: the aggregation, `[B, H, W, C]`.
        margin: of the aggregation; only `"margin"` reads it.

    Returns:
        Float32 `[B]`.

    Raises:
        UserError: if the name is unknown.
    """
    if name == "margin":
        return margin_distance(student, teacher, margin)
    if name == "l2":
        return squared_distance(student, teacher)
    if name == "l2_normalised":
        return normalised_squared_distance(student, teacher)
    raise UserError(f"unknown distance. Received: {name!r}. {nearest(name, get_args(Distance))}")


def group_factor(name: Distance, group: int, groups: int) -> float:
    """The factor on the distance in a group: 1e-3 / 2^(G - i) for sums over elements, as in OFD; else 1.

    Args:
        name: of the distance.
        group: its index, from 0.
        groups: how many there are, G.
    """
    return 1.0 if name == "l2_normalised" else OFD_FACTOR / 2 ** (groups - 1 - group)


def normalised_squared_distance(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """|| u/||u|| - v/||v|| ||^2 of the flattened features (Eq. 11).

    Args:
        student: `[B, ...]`.
        teacher: `[B, ...]`, of the same size.

    Returns:
        Float32 `[B]` in 0..4.

    Examples:
        Of length 1 these are (0.6, 0.8) and (0.8, 0.6).

        >>> round(float(normalised_squared_distance(tf.constant([[3.0, 4.0]]), tf.constant([[8.0, 6.0]]))[0]), 4)
        0.08
    """
    return tf.reduce_sum(tf.math.squared_difference(_unit(student), _unit(teacher)), axis=1)


def _unit(feature: tf.Tensor) -> tf.Tensor:
    flat = tf.reshape(tf.cast(feature, tf.float32), [tf.shape(feature)[0], -1])
    return tf.math.l2_normalize(flat, axis=1)


def squared_distance(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Sum of the squared differences (Eq. 3 with the identity as teacher transform), float32 `[B]`."""
    difference = tf.math.squared_difference(tf.cast(student, tf.float32), tf.cast(teacher, tf.float32))
    return tf.reduce_sum(difference, axis=list(range(1, difference.shape.rank)))


def margin_distance(student: tf.Tensor, teacher: tf.Tensor, margin: tf.Tensor) -> tf.Tensor:
    """Partial L2 to the margin ReLU of the teacher's feature (OFD).

    The target is max(T, m); an element counts only where S > target or target > 0: a student that is
    already below a negative target has nothing to learn there.

    Args:
        student: `[B, H, W, C]`.
        teacher: `[B, H, W, C]`.
        margin: m, at most 0, of a shape that broadcasts to the feature's.

    Returns:
        Sum over the elements, float32 `[B]`.
    """
    student, teacher = tf.cast(student, tf.float32), tf.cast(teacher, tf.float32)
    target = tf.maximum(teacher, margin)
    counts = tf.cast((student > target) | (target > 0), tf.float32)
    return tf.reduce_sum(tf.math.squared_difference(student, target) * counts, axis=[1, 2, 3])


def relu_margin(norm: keras.layers.BatchNormalization | None, channels: int) -> tf.Tensor:
    """The mean of a channel's negative values under the gaussian of its BatchNorm: E[x | x < 0].

    With mu its beta and s = |its gamma|, m = mu - s phi(mu/s) / Phi(-mu/s), or -3s where Phi(-mu/s) <= 0.001
    (hardly anything is negative). Where gamma is 0 all values are mu: m = min(mu, 0).

    Args:
        norm: the BatchNorm that made the feature; without one the margin is -1.
        channels: C.

    Returns:
        Float32 `[C]`, at most 0.
    """
    if norm is None:
        return tf.fill([channels], -1.0)
    mean = tf.cast(norm.beta, tf.float32) if norm.center else tf.zeros([channels])
    deviation = tf.abs(tf.cast(norm.gamma, tf.float32)) if norm.scale else tf.ones([channels])
    safe = tf.where(deviation > 0, deviation, 1.0)
    ratio = mean / safe
    below = 0.5 * tf.math.erfc(ratio / math.sqrt(2))
    density = tf.exp(-0.5 * tf.square(ratio)) / math.sqrt(2 * math.pi)
    usual = mean - deviation * density / tf.maximum(below, 1e-3)
    margin = tf.where(below > 1e-3, usual, -3 * deviation)
    return tf.where(deviation > 0, margin, tf.minimum(mean, 0.0))


def group_margins(group: LayerGroup, tap: Tap) -> np.ndarray:
    """The current margins of a group's candidates at a tap: float32 `[N, C]`."""
    return np.stack([relu_margin(block.taps[tap].norm, group.channels) for block in group.blocks])
