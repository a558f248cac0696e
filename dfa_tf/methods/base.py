"""What a distillation method is: the contract between the zoo and the Distiller."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import keras
import tensorflow as tf

from dfa_tf.config import Tap
from dfa_tf.images.splits import Split
from dfa_tf.methods.classification import classes_of
from dfa_tf.networks.features import FeatureModel, Features


class Batch(NamedTuple):
    """What a method may read of a batch beside the features.

    Attributes:
        images: raw pixels, float32 `[B, H, W, C]`.
        labels: classes, integers `[B]`, or soft labels, float32 `[B, num_classes]`.
        index: position of each example in the training split, int64 `[B]`; None where the data have none.
        weights: sample weights, float32 `[B]`; None where all examples count alike. The Distiller weights the terms by them.
        cached_outputs: outputs of the teacher that were kept (`dfa_tf.training.teacher_cache`), of which the Distiller makes its features.
    """

    images: tf.Tensor
    labels: tf.Tensor
    index: tf.Tensor | None  # type: ignore[assignment]  # the method of that name of tuples is of no use here
    weights: tf.Tensor | None = None
    cached_outputs: Mapping[str, tf.Tensor] | None = None

    @property
    def classes(self) -> tf.Tensor:
        """The class of each example, int64 `[B]`: of soft labels the most probable one."""
        return classes_of(self.labels)


class Phase(NamedTuple):
    """A part of the training. What the phases leave of the epochs is trained with everything at its usual weight.

    A weight of 0 leaves the term out: what it alone reaches stays as it is.

    Attributes:
        fraction: of the epochs, 0..1.
        ce_weight: factor on the usual weight of the cross-entropy.
        method_weight: factor on the usual weight of this method.
        trains: which variables: student and methods, the student alone, or the methods alone.
        other_weight: factor on the usual weight of the other methods.
    """

    fraction: float
    ce_weight: float
    method_weight: float
    trains: Literal["all", "student", "methods"] = "all"
    other_weight: float = 0.0


class Method(keras.layers.Layer):
    """A distillation method: a layer that turns features into loss terms.

    A subclass sets what differs from these defaults, makes its connectors and other variables in its
    constructor (or in `prepare`, where their size is that of the data), and keeps all its state in layer
    variables. Features arrive in float32. A part of a network that it keeps as an attribute is not trained by it.
    On several devices `call` runs once on each: a variable that it assigns to needs an `aggregation`.

    Attributes:
        taps: taps that it reads through `features.at(tap)`, beside each model's own.
        needs: what it needs of the batch beside labels: `"index"`, or `"images"` where it differentiates by the
            input, which it does itself, with the networks that it was built for.
        student_layers: names of layers of the student whose outputs it reads from `features.layers`.
        teacher_layers: likewise of the teacher.
        phases: what comes before the usual training.
        recommended_weight: weight of its terms where the configuration gives none.
    """

    taps: ClassVar[tuple[Tap, ...]] = ()
    needs: ClassVar[tuple[Literal["index", "images"], ...]] = ()
    student_layers: tuple[str, ...] = ()
    teacher_layers: tuple[str, ...] = ()
    phases: tuple[Phase, ...] = ()
    recommended_weight: float = 1.0

    def __init__(self, name: str) -> None:
        super().__init__(name=name, dtype="float32")

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        """The unweighted terms by name, as `"margin/group2"`.

        Args:
            student: features of the student, in training mode.
            teacher: features of the teacher; no gradient flows into it.
            batch: images, labels, index.

        Returns:
            Float32, each per example `[B]`, or a scalar where the term is a statistic of the batch.
        """
        raise TypeError(f"{type(self).__name__} must define call()")

    def prepare(self, teacher: FeatureModel, data: Split, cache: Path | None) -> None:
        """Called once before the training, for what must be computed from the teacher and the training data.

        It is called in the strategy's scope but outside its replicas: train with `keras.Model.fit`.

        Args:
            teacher: the frozen teacher.
            data: the training split; its length is the number of examples that `index` runs over.
            cache: a directory, of this teacher, these data and these options alone, to keep the result in.
        """

    def deploy(self, student: keras.Model) -> keras.Model:
        """The model that is served in the end, of built-in layers only: the student itself unless overridden."""
        return student
