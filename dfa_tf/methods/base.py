"""The contract between distillation methods and the Distiller."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import keras
import tensorflow as tf

from dfa_tf.config import Tap
from dfa_tf.images.splits import Split
from dfa_tf.methods.classification import classes_of
from dfa_tf.networks.features import FeatureModel, Features


class Batch(NamedTuple):
    """A batch, as methods and the search read it.

    Attributes:
        images: raw pixels, float32 `[B, H, W, C]`.
        labels: classes, integers `[B]`, or soft labels, float32 `[B, num_classes]`.
        index: position of each example in the training split, int64 `[B]`; None if the data have none.
        weights: sample weights, float32 `[B]`; None if all examples count equally. The Distiller weights the terms by them.
        cached_outputs: outputs of the teacher from its cache (`dfa_tf.training.teacher_cache`) by name. They replace its forward pass.
    """

    images: tf.Tensor
    labels: tf.Tensor
    index: tf.Tensor | None  # type: ignore[assignment]  # hides tuple.index, which nothing calls
    weights: tf.Tensor | None = None
    cached_outputs: Mapping[str, tf.Tensor] | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The batch from a dict of `Split.batches`, with the attributes' names as keys; only images and labels are required."""
        return cls(data["images"], data["labels"], data.get("index"), data.get("weights"), data.get("cached_outputs"))

    @property
    def classes(self) -> tf.Tensor:
        """The class of each example, int64 `[B]`: for soft labels the most probable one."""
        return classes_of(self.labels)


class Phase(NamedTuple):
    """A part of the training. In epochs outside all phases every term has its usual weight.

    A weight of 0 leaves the term out: variables that only this term reaches do not change.

    Attributes:
        fraction: of the epochs, 0..1.
        ce_weight: factor on the usual weight of the cross-entropy.
        method_weight: factor on the usual weight of this method.
        trains: the variables to train: student and methods, the student alone, or the methods alone.
        other_weight: factor on the usual weight of the other methods.
    """

    fraction: float
    ce_weight: float
    method_weight: float
    trains: Literal["all", "student", "methods"] = "all"
    other_weight: float = 0.0


class Method(keras.layers.Layer):
    """A distillation method: a layer that turns features into loss terms.

    A subclass overrides the defaults that differ. It makes its connectors and other variables in its constructor (or in `prepare`, if
    their size depends on the data), and keeps all its state in layer variables. Features arrive in float32. A method does not train a
    part of a network that it keeps as an attribute. On several devices `call` runs once on each: a variable that it assigns to needs an
    `aggregation`.

    Attributes:
        taps: taps that it reads through `features.at(tap)`, beside each model's own.
        needs: parts of the batch that it needs in addition to labels: `"index"`, or `"images"` if it differentiates by the input. It
            does so itself, with the networks that it was built for.
        reads: outputs of the teacher that `call` reads: `"logits"`, `"embedding"`, `"groups"` (every block), `"last_blocks"` (the last
            block of each group), `"group2/block1"` or `"group2/last_block"` (one block, counted from 1). Blocks are read at `taps`, or
            at the teacher's own tap if the method has no taps. None, the default, means all outputs. Only declared outputs are cached;
            reading another one in `call` raises UserError.
        student_layers: names of layers of the student whose outputs it reads from `features.layers`.
        teacher_layers: the same for the teacher; they need no entry in `reads`.
        phases: the phases before the usual training.
        recommended_weight: weight of its terms if the configuration gives none.
    """

    taps: ClassVar[tuple[Tap, ...]] = ()
    needs: ClassVar[tuple[Literal["index", "images"], ...]] = ()
    reads: tuple[str, ...] | None = None
    student_layers: tuple[str, ...] = ()
    teacher_layers: tuple[str, ...] = ()
    phases: tuple[Phase, ...] = ()
    recommended_weight: float = 1.0

    def __init__(self, name: str) -> None:
        super().__init__(name=name, dtype="float32")

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        """The unweighted terms by name, such as `"margin/group2"`.

        Args:
            student: features of the student, in training mode.
            teacher: features of the teacher; no gradient flows into it.
            batch: images, labels, index.

        Returns:
            Float32, each per example `[B]`, or a scalar where the term is a statistic of the batch.
        """
        raise TypeError(f"{type(self).__name__} must define call()")

    def prepare(self, teacher: FeatureModel, data: Split, cache: Path | None) -> None:
        """Called once before the training, to compute something from the teacher and the training data.

        It is called in the strategy's scope but outside its replicas: train with `keras.Model.fit`.

        Args:
            teacher: the frozen teacher.
            data: the training split; its length is the number of examples that `index` counts.
            cache: a directory for the result, used with this teacher, these data and these options only.
        """

    def deploy(self, student: keras.Model) -> keras.Model:
        """The model that is served, of built-in layers only: the student itself unless overridden."""
        return student
