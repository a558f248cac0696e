"""All fields of a configuration, and the values that follow from several of them.

No module of this package imports TensorFlow, so that a mistake in a configuration is found at once.
"""

from typing import Any, Literal, Self

import pydantic
from pydantic import Field

from dfa_tf.config.sections import (
    CheckpointConfig,
    DataConfig,
    DistilConfig,
    SearchConfig,
    Section,
    Seed,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)
from dfa_tf.config.space import TuneConfig


class Fields(Section):
    """All settings of a run."""

    seed: Seed = Field(0, description="seed of all random choices: splits, initial weights, order of images, augmentation")
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()
    distil: DistilConfig = DistilConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    tune: TuneConfig = TuneConfig()
    tensorboard: bool = Field(True, description="write event files for TensorBoard after each epoch; does not affect results")
    strategy: Literal["auto", "gpu", "mirrored", "multi_worker"] = Field(
        "auto",
        description="auto: all GPUs, else one device; gpu: all GPUs, at least one; mirrored: also several CPU devices; "
        "multi_worker: the devices of all processes in TF_CONFIG",
    )

    @pydantic.model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.data.search_fraction + self.data.validation_fraction >= 1:
            raise ValueError("data.search_fraction + data.validation_fraction must be below 1")
        if self.search.order == "second" and self.train.precision == "mixed_float16":
            raise ValueError("search.order='second' has no loss scaling, which train.precision='mixed_float16' needs. Use mixed_bfloat16")
        return self

    @property
    def student_train(self) -> TrainConfig:
        """The schedule of both students: `train`, with the epochs and learning rate of `distil` where given."""
        changes = {name: getattr(self.distil, name) for name in ("epochs", "learning_rate")}
        return self.train.model_copy(update={name: value for name, value in changes.items() if value is not None})

    @property
    def teacher_precision(self) -> str:
        """The compute precision of the teacher during distillation."""
        return self.teacher.precision or self.train.precision

    @property
    def method(self) -> str:
        """The directory name of the distilled student: its methods, joined by `+`."""
        return "+".join(sorted(self.distil.methods)) or "plain"

    @property
    def data_seed(self) -> int:
        """The seed of the choice of images and of the splits."""
        return self.seed if self.data.seed is None else self.data.seed

    @property
    def augmentation(self) -> dict[str, Any]:
        """The augmentation of training images, as arguments of `dfa_tf.splits.Split.batches`. Without any, an image has one view."""
        varied = self.data.augmentation
        return {**varied, "views": self.data.views if any(varied.values()) else 1, "view_seed": self.data_seed}
