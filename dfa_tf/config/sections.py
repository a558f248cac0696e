"""The sections of a configuration: their fields, defaults, ranges and meanings."""

import json
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field, JsonValue, Strict

from dfa_tf import plugins
from dfa_tf.errors import nearest, shortened

Tap = Literal["pre_activation", "output"]
Precision = Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]
Distance = Literal["l2", "l2_normalised", "margin"]
GIVEN = "given"
"""The `data.name` of images that were passed in Python; `data.options` then hold their digests."""
AGGREGATIONS = ("searched", "last", "first", "average", "random")

Positive = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
_NotNegative = Annotated[int, Field(ge=0, lt=2**31)]
_Rate = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Fraction = Annotated[float, Field(gt=0, lt=1)]
_Portion = Annotated[float, Field(ge=0, lt=1)]
_Share = Annotated[float, Field(gt=0, le=1)]
_Alphas = Annotated[tuple[Annotated[tuple[_Weight, ...], Strict(False)], ...], Strict(False)]
# With a plain union, pydantic would report a mistake in one of the two as a mistake in both.
_Aggregation = Annotated[
    Annotated[str, pydantic.Tag("word")] | Annotated[_Alphas, pydantic.Tag("alpha")],
    pydantic.Discriminator(lambda value: "word" if isinstance(value, str) else "alpha"),
]
_Groups = Annotated[tuple[Annotated[tuple[str, ...], Strict(False)], ...], Strict(False)]


def _finite(options: dict[str, Any]) -> dict[str, Any]:
    """Refuses what JSON cannot hold: pydantic reads NaN, Infinity and 1e400, and would write them as null."""
    try:
        json.dumps(options, allow_nan=False)
    except ValueError:
        raise ValueError("numbers must be finite") from None
    return options


def _shallow(value: Any) -> Any:
    """Refuses what is nested more deeply than JSON is read."""
    inner = [value]
    for _ in range(_LEVELS):
        inner = [each for one in inner for each in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())]
    if inner:
        raise ValueError(f"must have at most {_LEVELS} levels. Received: {shortened(value)}")
    return value


Json = Annotated[JsonValue, pydantic.BeforeValidator(_shallow)]
_LEVELS = 100
_Options = Annotated[dict[str, Json], pydantic.AfterValidator(_finite)]


class Section(BaseModel):
    """Frozen fields; unknown names and other types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataConfig(Section):
    """The images, their splits and their augmentation."""

    name: str = Field("bundled", description="plug-in that reads the images; given: the images were passed in Python")
    data_dir: str | None = Field(None, description="folder of the data sets; for image_folder the folder of images itself")
    options: _Options = Field({}, description="further options of the data plug-in")
    batch_size: Positive = Field(128, description="global batch size, divided among the replicas")
    search_fraction: _Fraction = Field(0.5, description="share of the training set that updates beta")
    validation_fraction: _Portion = Field(0.0, description="share of the training set held out for model selection")
    train_limit_per_class: Positive | None = Field(None, description="number of training images per class; null takes all")
    crop_padding: _NotNegative = Field(0, description="random crop after reflect-padding by this many pixels")
    resized_crop: _Share | None = Field(None, description="random crop of at least this share of the area, resized to the full size")
    flip: bool = Field(False, description="flip half of the images horizontally")
    views: Positive | None = Field(
        None, description="fixed number of augmented views per image, drawn by data.seed; null draws a new view at every step"
    )
    seed: Seed | None = Field(None, description="seed of the choice of images and of the splits; null takes the run's seed")

    @property
    def augmentation(self) -> dict[str, Any]:
        """The augmentation of training images: arguments of `dfa_tf.images.augmentation.augment`."""
        return {name: getattr(self, name) for name in ("crop_padding", "resized_crop", "flip")}

    @pydantic.field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name != GIVEN:
            plugins.check("data", name)
        return name


class NetworkConfig(Section):
    """A network, and where its block outputs are read."""

    name: str = Field("wrn_16_1", description="plug-in that builds the network")
    path: str | None = Field(None, description="load the network from this .keras file instead")
    tap: Tap = Field("pre_activation", description="where block outputs are read")
    groups: _Groups | None = Field(None, description="layer names of the blocks, by group; null detects them")
    options: _Options = Field({}, description="further options of the model plug-in")

    @pydantic.field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        plugins.check("models", name)
        return name


class StudentConfig(NetworkConfig):
    """The network to distil into."""

    start: Literal["fresh", "file"] = Field("fresh", description="initial weights: drawn by the seed, or those of the file")

    @pydantic.model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.start == "file" and self.path is None:
            raise ValueError("start='file' needs a path")
        return self


class TeacherConfig(NetworkConfig):
    """The network to distil from."""

    name: str = Field("wrn_16_2", description="plug-in that builds the network")
    path: str | None = Field(None, description="load this trained .keras file; no teacher is trained then")
    batchnorm: Literal["inference", "training"] = Field(
        "inference", description="statistics that BatchNorm of the teacher uses during distillation (stored statistics never change)"
    )
    precision: Precision | None = Field(None, description="precision of the teacher during distillation; null takes train.precision")
    cache_gib: _Weight = Field(
        0.0, description="disk space in GiB for cached teacher outputs, which replace its forward pass; results agree up to rounding"
    )


class TrainConfig(Section):
    """The SGD schedule of the teacher, the plain student and the distilled student."""

    epochs: Positive = Field(200, description="passes over all training images, including the search split")
    learning_rate: _Rate = Field(0.1, description="initial learning rate of SGD")
    schedule: Literal["cosine", "step", "constant"] = Field("cosine", description="learning rate schedule")
    milestones: Annotated[tuple[_Fraction, ...], Strict(False)] = Field(
        (0.3, 0.6, 0.8), description="with schedule `step`: fractions of the epochs at which the learning rate drops"
    )
    decay: _Fraction = Field(0.2, description="with schedule `step`: factor at each milestone")
    momentum: _Portion = Field(0.9, description="momentum of SGD")
    nesterov: bool = Field(True, description="use Nesterov momentum")
    weight_decay: _Weight = Field(5e-4, description="L2 term 0.5 wd sum ||w||^2 over all trainable weights")
    clip_norm: _Rate | None = Field(None, description="largest global norm of the gradient; null does not clip")
    ema: _Portion | None = Field(None, description="decay of the moving average of the weights, which is then evaluated and saved")
    label_smoothing: _Portion = Field(0.0, description="share of the label's probability that is spread over all classes")
    mixup: _Weight = Field(0.0, description="alpha of mixup's Beta distribution; 0 turns mixup off")
    precision: Precision = Field(
        "float32", description="compute precision of networks; weights stay float32; auto: the fastest precision of this device"
    )
    jit_compile: bool = Field(False, description="compile the steps of both stages with XLA, on one device; XLA is slow on CPUs")
    steps_per_execution: Positive = Field(1, description="training steps per compiled call; above 1 on one device only")
    evaluate_every: Positive = Field(1, description="epochs between evaluations; the last epoch is always evaluated")
    choose_best: bool = Field(False, description="keep the epoch of the best validation accuracy instead of the last epoch")

    @pydantic.field_validator("milestones")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError(f"must ascend. Received: {list(value)}")
        return value


class SearchConfig(Section):
    """Stage 1: the aggregation search (Algorithm 1 of the paper)."""

    mode: Literal["group_wise", "joint"] = Field("group_wise", description="search the groups one after another, or all at once")
    objective: Literal["bridge", "st", "ts", "student"] = Field("bridge", description="loss that student and beta minimise")
    order: Literal["first", "second"] = Field(
        "first", description="plain alternation, or second order: beta's gradient through one step of the weights"
    )
    repetitions: Positive = Field(
        1, description="number of searches, with successive seeds, to measure the spread of alpha; the first is used"
    )
    epochs: Positive = Field(10, description="passes over the training half (group_wise: for each group)")
    warmup_epochs: _NotNegative = Field(0, description="first of these epochs, which do not update beta")
    gamma_st: _Weight = Field(1.0, description="weight of the student-to-teacher path")
    gamma_ts: _Weight = Field(4.0, description="weight of the teacher-to-student path")
    gamma_fd: _Weight = Field(1.0, description="with objective `student`: weight of the feature distance")
    distance: Distance = Field("l2_normalised", description="with objective `student`: the feature distance")
    regulariser: Literal["none", "squared_norm", "entropy"] = Field("none", description="R: squared norm of beta, or entropy of alpha")
    lambda_: _Weight = Field(1e-3, description="weight of R")
    learning_rate: _Rate = Field(0.05, description="initial learning rate of SGD on the weights, with cosine decay")
    momentum: _Portion = Field(0.9, description="momentum of SGD on the weights")
    weight_decay: _Weight = Field(5e-4, description="L2 term 0.5 wd sum ||w||^2 over the weights")
    beta_learning_rate: _Rate = Field(5e-3, description="learning rate of Adam on beta")
    beta_decays: Annotated[tuple[_Portion, _Portion], Strict(False)] = Field((0.5, 0.999), description="decay rates of Adam on beta")
    beta_init: _Weight = Field(1e-3, description="standard deviation of the initial beta")
    standardise: bool = Field(False, description="divide each candidate by its root mean square before the sum")
    entropy_bound: _Portion = Field(0.05, description="alpha over N blocks has collapsed when its entropy is below this share of ln N")
    stop_on_collapse: bool = Field(False, description="stop the search of a group when its alpha collapses (joint: of all groups)")

    @pydantic.model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be smaller than epochs={self.epochs}. Received: {self.warmup_epochs}")
        weights = {"bridge": self.gamma_st + self.gamma_ts, "st": self.gamma_st, "ts": self.gamma_ts}
        if weights.get(self.objective, 1) == 0:
            raise ValueError(f"objective={self.objective!r} needs a gamma above 0 for its path")
        return self


class DistilConfig(Section):
    """Stage 2: the terms of the student's loss."""

    methods: dict[str, _Weight | None] = Field(
        {"dfa": None}, description="weight of each method; null takes the method's recommended weight"
    )
    options: dict[str, _Options] = Field({}, description="options of each method")
    ce_weight: _Weight = Field(1.0, description="weight of the cross-entropy with the labels")
    aggregation: _Aggregation = Field(
        "searched", description="searched, last, first, average, random, an alphas.json file, or alpha itself as [[...], ...] by group"
    )
    discretise: bool = Field(False, description="set the largest alpha of each group to 1 and the others to 0 (the paper keeps alpha soft)")
    warmup_epochs: dict[str, Positive] = Field({}, description="for each method, epochs over which its weight rises from 0")
    epochs: Positive | None = Field(None, description="epochs of both students; null takes train.epochs")
    learning_rate: _Rate | None = Field(None, description="initial learning rate of both students; null takes train.learning_rate")

    @property
    def aggregation_file(self) -> str | None:
        """The path of the `alphas.json`, if `aggregation` names one."""
        named = self.aggregation
        return named if isinstance(named, str) and named not in AGGREGATIONS else None

    @pydantic.field_validator("methods", "options", "warmup_epochs")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            plugins.check("losses", name)
        return value

    @pydantic.field_validator("aggregation")
    @classmethod
    def _aggregation(cls, value: str | tuple[tuple[float, ...], ...]) -> str | tuple[tuple[float, ...], ...]:
        if isinstance(value, str) and value not in AGGREGATIONS and not value.endswith(".json"):
            raise ValueError(
                f"must be a known word or the path of a .json file. Received: {shortened(value)}. {nearest(value, AGGREGATIONS)}"
            )
        return value

    @pydantic.model_validator(mode="after")
    def _sensible(self) -> Self:
        for field in ("options", "warmup_epochs"):
            for name in getattr(self, field):
                if name not in self.methods:
                    raise ValueError(f"{field} names a method that is not in distil.methods. Received: {name!r}")
        return self


class CheckpointConfig(Section):
    """Checkpoints, from which an interrupted stage resumes. Does not affect results; excluded from hashes."""

    every: Positive = Field(200, description="steps between checkpoints; the end of each epoch writes one too")
    keep: Positive = Field(2, description="number of most recent checkpoints to keep")
