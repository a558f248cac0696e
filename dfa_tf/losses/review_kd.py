"""Distillation by knowledge review: each level of the teacher teaches the same level of the student and all deeper ones.

References:
    Chen, Liu, Zhao, Jia (2021), Distilling Knowledge via Knowledge Review, CVPR 2021, arXiv 2104.09044: the residual
    learning framework, attention based fusion (ABF) and hierarchical context loss (HCL).
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.connectors import pool
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.layers import convolve, normalise
from dfa_tf.networks.pairing import pair_groups


class KnowledgeReview(Method):
    """The hierarchical context loss of each level's fused features, per example."""

    def __init__(self, student: FeatureModel, teacher: FeatureModel, max_width: int) -> None:
        super().__init__("review_kd")
        pairs = pair_groups(student, teacher)
        shapes = [(ours.shape, theirs.shape) for ours, theirs in pairs]
        self._names = tuple(f"review_kd/group{i}" for i in range(1, len(pairs) + 1))
        embeddings = [network.extractor().symbolic().embedding for network in (student, teacher)]
        widths = [embedding.shape[1] for embedding in embeddings if embedding is not None]
        self._embedding = len(widths) == 2
        self.reads = ("last_blocks", "embedding") if self._embedding else ("last_blocks",)
        if self._embedding:
            shapes.append(((1, 1, widths[0]), (1, 1, widths[1])))
            self._names = (*self._names, "review_kd/embedding")
        sources, targets = zip(*shapes, strict=True)
        self.review = review(sources, targets, width=min(max_width, sources[-1][2]))

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        # Keras returns a list of one tensor as the tensor itself.
        fused = tf.nest.flatten(self.review(self._levels(student), training=True))
        return {
            name: hierarchical_context_loss(tf.cast(ours, tf.float32), theirs)
            for name, ours, theirs in zip(self._names, fused, self._levels(teacher), strict=True)
        }

    def _levels(self, features: Features) -> list[tf.Tensor]:
        levels = [group[-1] for group in features.groups]
        if self._embedding and features.embedding is not None:
            levels.append(features.embedding[:, tf.newaxis, tf.newaxis])
        return levels


def review(sources: Sequence[tuple[int, ...]], targets: Sequence[tuple[int, ...]], width: int) -> keras.Model:
    """The residual learning framework: from the deepest level on, each level is fused with the result of the deeper ones (ABF).

    Args:
        sources: height, width, channels of the student's levels, from shallow to deep.
        targets: the same for the teacher.
        width: channels of the features that pass from level to level.

    Returns:
        A model from the student's features `[B, *source]` by level to features `[B, *target]` by level.
    """
    inputs = [layers.Input(source) for source in sources]
    outputs: list[keras.KerasTensor] = []
    deeper: keras.KerasTensor | None = None
    for level in reversed(range(len(sources))):
        name = f"level{level + 1}"
        x = normalise(convolve(inputs[level], width, 1, name=f"{name}_in_conv"), name=f"{name}_in_bn")
        if deeper is not None:
            deeper = _nearest(deeper, sources[level])
            both = layers.Concatenate(name=f"{name}_both")([x, deeper])
            attention = layers.Conv2D(2, 1, activation="sigmoid", name=f"{name}_attention")(both)
            x = x * attention[..., :1] + deeper * attention[..., 1:]
        deeper = _nearest(x, targets[level])
        outputs.append(normalise(convolve(deeper, targets[level][2], 3, name=f"{name}_out_conv"), name=f"{name}_out_bn"))
    return keras.Model(inputs, outputs[::-1], name="review")


def _nearest(x: keras.KerasTensor, shape: tuple[int, ...]) -> keras.KerasTensor:
    """Resizes to the nearest neighbour. A Resizing layer has no gradient in XLA, which Keras uses on a GPU."""
    for axis, target in ((1, shape[0]), (2, shape[1])):
        if x.shape[axis] != target:
            x = ops.take(x, np.arange(target) * x.shape[axis] // target, axis=axis)
    return x


def hierarchical_context_loss(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """HCL: mean squared differences of the features, and of the features pooled to 4x4, 2x2 and 1x1 where these are smaller.

    Each counts half as much as the one before, and the weights add up to 1.

    Args:
        student: `[B, H, W, C]`, float32.
        teacher: the same for the teacher.

    Returns:
        Float32 `[B]`.
    """
    difference = student - teacher
    total, factor, factors = _mean_square(difference), 1.0, 1.0
    for side in (4, 2, 1):
        if side < min(difference.shape[1:3]):
            factor /= 2
            factors += factor
            # The difference of two means is the mean of the difference.
            pooled = pool(difference, side, side)
            total += factor * _mean_square(pooled)
    return total / factors


def _mean_square(difference: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(difference), axis=[1, 2, 3])


def build(student: FeatureModel, teacher: FeatureModel, *, max_width: int = 512) -> KnowledgeReview:
    """Knowledge review, with one term for the last block of each group and one for the embedding if both networks have one.

    All features are read at the networks' own taps: before the activation by default, as the paper's code reads the teacher's (it reads
    the student's after the block). Its weight depends on the pair: 5 for most pairs on CIFAR-100, and 0.6 to 8 in all; the code's
    default is 1. The code increases the weight from 0 over 20 epochs, as `distil.warmup_epochs={"review_kd": 20}` does.

    Args:
        student: its features are fused from deep to shallow, and brought to the teacher's widths and resolutions.
        teacher: its features are the targets.
        max_width: largest number of channels that pass from level to level; below it, they are those of the student's deepest level.
            512 as in the code.

    Raises:
        UserError: if the groups do not pair, or `max_width` is not an integer of at least 1.
    """
    if not (isinstance(max_width, int) and max_width >= 1):
        raise UserError(f"the max_width of review_kd must be an integer of at least 1. Received: {max_width!r}")
    return KnowledgeReview(student, teacher, max_width)
