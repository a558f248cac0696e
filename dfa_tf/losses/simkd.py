"""SimKD: the student learns only the teacher's last feature map, and is served with the teacher's classifier.

References:
    Chen, Mei, Zhang, Wang, Feng, Chen (2022), Knowledge Distillation with the Reused Teacher Classifier,
    arXiv 2203.14001, Eq. 3 and section 3.2.
"""

from typing import ClassVar

import keras
import tensorflow as tf
from keras import layers

from dfa_tf.config import Tap
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method, Phase
from dfa_tf.networks.connectors import same_resolution
from dfa_tf.networks.copying import copy_onto
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.layers import convolve, normalise


class ReusedClassifier(Method):
    """The mean squared difference of projector(s) and t, the last outputs of both networks, per example."""

    taps: ClassVar[tuple[Tap, ...]] = ("output",)
    # In all epochs: the student's own classifier is not served, and the paper does not train it.
    phases = (Phase(fraction=1.0, ce_weight=0.0, method_weight=1.0, other_weight=1.0),)

    def __init__(self, student: FeatureModel, teacher: FeatureModel, factor: int) -> None:
        super().__init__("simkd")
        self.reads = (f"group{len(teacher.groups)}/last_block",)
        # As FeatureModels: Keras would track a model as a part of this layer.
        self._student, self._teacher = student, teacher
        self.projector = _projector(_last_output(student), _last_output(teacher), factor)

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        ours, theirs = student.at("output")[-1][-1], teacher.at("output")[-1][-1]
        _, target = same_resolution(ours, theirs)
        projected = tf.cast(self.projector(ours, training=True), tf.float32)
        return {"simkd": tf.reduce_mean(tf.math.squared_difference(projected, target), axis=[1, 2, 3])}

    def deploy(self, student: keras.Model) -> keras.Model:
        """The student up to its last output, the projector, and a frozen copy of the layers after the teacher's last output.

        Raises:
            UserError: if the student's resolution is lower than the teacher's, and the teacher's classifier cannot take it.
        """
        x = _last_output(self._student)
        for layer in self.projector.layers[1:]:
            x = layer(x)
        tail = self._teacher.tail(len(self._teacher.groups) - 1)
        try:
            logits = copy_onto(tail, x, prefix="teacher_")
        except ValueError as error:
            raise UserError(
                f"simkd needs a teacher whose classifier takes the lower resolution of the two networks. Received: "
                f"{self._teacher.model.name!r}, for {x.shape[1]}x{x.shape[2]} pixels. ({error})"
            ) from None
        for layer in keras.Model(x, logits).layers:
            layer.trainable = False
        return keras.Model(student.inputs[0], logits, name=f"{student.name}_simkd")


def _last_output(network: FeatureModel) -> keras.KerasTensor:
    return network.groups[-1].blocks[-1].taps["output"].tensor


def _projector(ours: keras.KerasTensor, theirs: keras.KerasTensor, factor: int) -> keras.Model:
    """A bottleneck to the teacher's width: 1x1, 3x3 and 1x1 convolutions, each with BatchNorm and ReLU."""
    height, width, channels = theirs.shape[1:]
    feature = x = layers.Input(ours.shape[1:])
    lower = (min(ours.shape[1], height), min(ours.shape[2], width))
    if lower != tuple(ours.shape[1:3]):
        x = layers.AdaptiveAveragePooling2D(lower, name="projector_pool")(x)
    for i, (size, filters) in enumerate(((1, channels // factor), (3, channels // factor), (1, channels)), start=1):
        x = normalise(convolve(x, filters, size, name=f"projector_conv{i}"), name=f"projector_bn{i}")
        if i < 3 or _is_rectified(theirs):
            x = layers.ReLU(name=f"projector_relu{i}")(x)
    return keras.Model(feature, x, name="projector")


def _is_rectified(tensor: keras.KerasTensor) -> bool:
    operation = tensor._keras_history.operation
    return "relu" in (type(operation).__name__.lower(), getattr(getattr(operation, "activation", None), "__name__", ""))


def build(student: FeatureModel, teacher: FeatureModel, *, factor: int = 2) -> ReusedClassifier:
    """The teacher's classifier, reused.

    The recommended weight is 1, as in the paper, where this term is the whole loss. So the cross-entropy is left out in all epochs,
    whatever `distil.ce_weight` is, and the student's own classifier stays untrained. The `accuracy` of the training is that
    classifier's; every evaluation uses the served model. Other methods keep their weights; what they teach the student's own logits is
    not served. A `Distiller` used without `distil` has no phases: give it `ce_weight=0`.

    The served model contains the projector and the teacher's classifier as it was when training began: all layers between the last
    block's output and the logits. The parameters of both count. If the networks' last outputs differ in resolution, the higher one is
    pooled to the lower one. The authors' networks need a ReLU at the end of the projector. It is left out if the teacher's last output
    is not that of a ReLU, as in pre-activation networks.

    Args:
        student: its last block's output, `[B, H, W, C]`, is projected.
        teacher: its last block's output is learned.
        factor: the bottleneck has the teacher's channels divided by this; 2 as in the paper.

    Raises:
        UserError: if the factor is not an integer from 1 to the teacher's channels.
    """
    channels = teacher.groups[-1].channels
    if factor not in range(1, channels + 1):
        raise UserError(f"the factor of simkd is an integer, 1..{channels}. Received: {factor}")
    return ReusedClassifier(student, teacher, int(factor))
