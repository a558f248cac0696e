"""Distances between a student's feature and a feature aggregation, and the margin of OFD.

References:
    Guan et al. (2020), Differentiable Feature Aggregation Search for Knowledge Distillation, Eq. 3 and 11.
    Heo et al. (2019), A Comprehensive Overhaul of Feature Distillation (OFD), sections 3.2 and 3.3.
"""

import keras
import tensorflow as tf


def normalised_squared_distance(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """|| u/||u|| - v/||v|| ||^2 of the flattened features (Eq. 11).

    Args:
        student: `[B, ...]`.
        teacher: `[B, ...]`, of the same size.

    Returns:
        Float32 `[B]` in 0..4.
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
        norm: the BatchNorm that made the feature; -1 is the margin where there is none.
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
    below = tf.math.ndtr(-ratio)
    density = tf.exp(-0.5 * tf.square(ratio)) * (0.5 * tf.constant(2 / 3.141592653589793) ** 0.5)
    usual = mean - deviation * density / tf.maximum(below, 1e-3)
    margin = tf.where(below > 1e-3, usual, -3 * deviation)
    return tf.where(deviation > 0, margin, tf.minimum(mean, 0.0))
