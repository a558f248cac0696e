"""Cross-layer distillation with semantic calibration (SemCKD): attention decides which teacher layers teach a student layer.

References:
    Chen, Mei, Zhang, Wang, Wang, Feng, Chen (2021), Cross-Layer Distillation with Semantic Calibration, AAAI 2021,
    arXiv 2012.03236: the attention over layers and the calibrated loss; and its code.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import keras
import tensorflow as tf
from keras import layers

from dfa_tf.config import Tap
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.connectors import same_resolution
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.layers import convolve, normalise


class SemanticCalibration(Method):
    """For each student layer the distances to all teacher layers, weighted by attention, per example."""

    taps: ClassVar[tuple[Tap, ...]] = ("output",)
    reads = ("last_blocks",)
    recommended_weight = 50.0

    def __init__(self, student: FeatureModel, teacher: FeatureModel, similarities: int) -> None:
        super().__init__("semckd")
        self._similarities = similarities
        self.queries = [embedding(similarities, name=f"query{i}") for i in range(1, len(student.groups) + 1)]
        self.keys = [embedding(similarities, name=f"key{i}") for i in range(1, len(teacher.groups) + 1)]
        self.connectors = [
            [deep_connector(ours.shape, theirs.shape, name=f"connector{i}_{j}") for j, theirs in enumerate(teacher.groups, start=1)]
            for i, ours in enumerate(student.groups, start=1)
        ]

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        ours, theirs = ([group[-1] for group in network.at("output")] for network in (student, teacher))
        attention = self._attention(ours, theirs)
        terms = {}
        for i, (feature, connectors) in enumerate(zip(ours, self.connectors, strict=True)):
            distances = []
            for target, connect in zip(theirs, connectors, strict=True):
                lowered, aim = same_resolution(feature, target)
                difference = tf.cast(connect(lowered, training=True), tf.float32) - aim
                distances.append(tf.reduce_mean(tf.square(difference), axis=[1, 2, 3]))
            calibrated = tf.reduce_sum(attention[:, i] * tf.stack(distances, axis=1), axis=1)
            terms[f"semckd/group{i + 1}"] = calibrated / len(ours)
        return terms

    def _attention(self, ours: Sequence[tf.Tensor], theirs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Weights of the teacher's layers for each example and layer of the student, `[B, layers, teacher's layers]`."""
        queries, keys = (
            tf.stack([tf.math.l2_normalize(embed(self._rows(x)), axis=1) for embed, x in zip(embeds, features, strict=True)], axis=1)
            for embeds, features in ((self.queries, ours), (self.keys, theirs))
        )
        return tf.nn.softmax(tf.matmul(queries, keys, transpose_b=True))

    def _rows(self, feature: tf.Tensor) -> tf.Tensor:
        """The similarity of each example to the first ones of the batch, padded with zeros: `[B, similarities]`."""
        flat = tf.reshape(feature, [-1, math.prod(feature.shape[1:])])
        rows = tf.matmul(flat, flat[: self._similarities], transpose_b=True)
        rows = tf.pad(rows, [[0, 0], [0, self._similarities - tf.shape(rows)[1]]])
        return tf.reshape(rows, [-1, self._similarities])


def embedding(similarities: int, *, name: str) -> keras.Model:
    """Two Dense layers, of a half and a quarter of the input's width: `[B, similarities]` to `[B, similarities // 4]`."""
    width = similarities // 4

    def dense(x: keras.KerasTensor, units: int, activation: str | None, part: str) -> keras.KerasTensor:
        bound = 1 / math.sqrt(x.shape[1])
        # Not zero: where all ReLUs give 0, the bias alone keeps the vector away from 0, where the normalisation's gradient is huge.
        bias = keras.initializers.RandomUniform(-bound, bound)
        return layers.Dense(units, activation, bias_initializer=bias, dtype="float32", name=f"{name}_{part}")(x)

    rows = layers.Input((similarities,))
    return keras.Model(rows, dense(dense(rows, 2 * width, "relu", "hidden"), width, None, "out"), name=name)


def deep_connector(source: Sequence[int], target: Sequence[int], *, name: str) -> keras.Model:
    """Convolutions of 1x1, 3x3 and 1x1 from one width to another, at the lower resolution of the two.

    The inner ones have twice the target's channels; BatchNorm and ReLU follow each of them.

    Args:
        source: height, width, channels of the student's layer.
        target: the same for the teacher's layer.
        name: of the model.

    Returns:
        A model from `[B, H, W, source's channels]` to `[B, H, W, target's channels]`.
    """
    feature = x = layers.Input((min(source[0], target[0]), min(source[1], target[1]), source[2]))
    for part, size in (("1", 1), ("2", 3)):
        x = normalise(convolve(x, 2 * target[2], size, name=f"{name}_conv{part}"), name=f"{name}_bn{part}")
        x = layers.ReLU(name=f"{name}_relu{part}")(x)
    return keras.Model(feature, convolve(x, target[2], 1, name=f"{name}_conv3"), name=name)


def build(student: FeatureModel, teacher: FeatureModel, *, similarities: int = 64) -> SemanticCalibration:
    """Every last block of a student's group learns from all last blocks of the teacher's groups.

    The term of a student's layer is divided by the number of these layers, as in the code. The recommended weight of 50 is the
    code's on ImageNet. Its weight on CIFAR-100 is 400, with `kd` at weight 1, a learning rate of 0.05 and momentum without Nesterov.
    With Nesterov momentum, the default here, 400 diverged at 0.05 and 0.1 on the bundled digits. Student and teacher may have different
    numbers of groups.

    Args:
        student: the outputs of the last block of each group are read, as in the code.
        teacher: the same for the teacher.
        similarities: number of examples, the first of the batch, that the attention compares an example with; padded with zeros where a
            batch (on each device) has fewer. In the paper it is the batch size, 64. At least 4.

    Raises:
        UserError: if `similarities` is not an integer, or too small.
    """
    if not (isinstance(similarities, int) and similarities >= 4):
        raise UserError(f"the similarities of semckd must be an integer of at least 4. Received: {similarities!r}")
    return SemanticCalibration(student, teacher, similarities)
