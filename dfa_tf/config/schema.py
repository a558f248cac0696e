"""The configuration of a run: a frozen, validated schema, overrides, JSON, and a hash per stage.

This module imports no TensorFlow, so that a mistake in a configuration is found at once.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

import pydantic
from pydantic import BaseModel, ConfigDict, Field, JsonValue, Strict

from dfa_tf import plugins
from dfa_tf.config import space
from dfa_tf.errors import UserError, nearest, shortened

# An experiment imports nothing but this module, and may have a space.
Choice = space.Choice
Float = space.Float
Int = space.Int
Tap = Literal["pre_activation", "output"]
Precision = Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]
Distance = Literal["l2", "l2_normalised", "margin"]
GIVEN = "given"
"""The `data.name` of images that were handed over in Python; `data.options` then hold their digests."""
AGGREGATIONS = ("searched", "last", "first", "average", "random")
STAGES = ("teacher", "plain", "search", "distil", "evaluate", "export", "report")

_Positive = Annotated[int, Field(ge=1, lt=2**31)]
_NotNegative = Annotated[int, Field(ge=0, lt=2**31)]
_Rate = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Fraction = Annotated[float, Field(gt=0, lt=1)]
_Alphas = Annotated[tuple[Annotated[tuple[_Weight, ...], Strict(False)], ...], Strict(False)]
# Told apart by hand: of a plain union a mistake in one of the two is reported as one in both.
_Aggregation = Annotated[
    Annotated[str, pydantic.Tag("word")] | Annotated[_Alphas, pydantic.Tag("alpha")],
    pydantic.Discriminator(lambda value: "word" if isinstance(value, str) else "alpha"),
]
_Groups = Annotated[tuple[Annotated[tuple[str, ...], Strict(False)], ...], Strict(False)]
_Portion = Annotated[float, Field(ge=0, lt=1)]
_Share = Annotated[float, Field(gt=0, le=1)]
_Seed = Annotated[int, Field(ge=0, lt=2**31)]
_Space = dict[str, space.Domain]


def _finite(options: dict[str, Any]) -> dict[str, Any]:
    """Refuses what JSON cannot say: pydantic reads NaN, Infinity and 1e400, and would write them as null."""
    try:
        json.dumps(options, allow_nan=False)
    except ValueError:
        raise ValueError("numbers must be finite") from None
    return options


_Options = Annotated[dict[str, JsonValue], pydantic.AfterValidator(_finite)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataConfig(_Section):
    """Which images, how they are split, and how they are varied."""

    name: str = Field("bundled", description="plug-in that reads the images; given: they were handed over in Python")
    data_dir: str | None = Field(None, description="where data sets are kept on this machine; for image_folder the folder itself")
    options: _Options = Field({}, description="further options of the data plug-in")
    batch_size: _Positive = Field(128, description="global batch, shared among the replicas")
    search_fraction: _Fraction = Field(0.5, description="share of the training set that updates beta")
    validation_fraction: _Portion = Field(0.0, description="share of the training set held out to choose by")
    train_limit_per_class: _Positive | None = Field(None, description="use this many training images a class")
    crop_padding: _NotNegative = Field(0, description="reflect-pad by so many pixels, then crop at random")
    resized_crop: _Share | None = Field(None, description="crop at random at least this share of the area, then resize it to the whole")
    flip: bool = Field(False, description="mirror half of the images from left to right")
    views: _Positive | None = Field(
        None, description="variations that an image has in all, by data.seed, and a step takes one of; null varies it anew at every step"
    )
    seed: _Seed | None = Field(None, description="decides which images are used, and how they are split; null takes the run's seed")

    @property
    def augmentation(self) -> dict[str, Any]:
        """How training images are varied: arguments of `dfa_tf.images.augmentation.augment`."""
        return {name: getattr(self, name) for name in ("crop_padding", "resized_crop", "flip")}

    @pydantic.field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name != GIVEN:
            plugins.check("data", name)
        return name


class NetworkConfig(_Section):
    """A network, and how it is seen."""

    name: str = Field("wrn_16_1", description="plug-in that builds the network")
    path: str | None = Field(None, description="take the network from this .keras file instead")
    tap: Tap = Field("pre_activation", description="where the block outputs are read")
    groups: _Groups | None = Field(None, description="layer names of the blocks by group; found where null")
    options: _Options = Field({}, description="further options of the model plug-in")

    @pydantic.field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        plugins.check("models", name)
        return name


class StudentConfig(NetworkConfig):
    """The network to distil into."""

    start: Literal["fresh", "file"] = Field("fresh", description="weights that it starts from: drawn by the seed, or those of the file")

    @pydantic.model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.start == "file" and self.path is None:
            raise ValueError("start='file' needs a path")
        return self


class TeacherConfig(NetworkConfig):
    """The network to distil from."""

    name: str = Field("wrn_16_2", description="plug-in that builds the network")
    path: str | None = Field(None, description="use this trained .keras file; nothing is trained then")
    batchnorm: Literal["inference", "training"] = Field(
        "inference", description="statistics that its BatchNorm uses while it teaches (its own never change)"
    )
    precision: Precision | None = Field(None, description="that it computes in while it teaches; null takes train.precision")
    cache_gib: _Weight = Field(
        0.0, description="GiB on disk for its outputs, which are then read in place of a forward pass; results agree but for rounding"
    )


class TrainConfig(_Section):
    """The schedule of SGD, the same for the teacher, the plain student and the distilled one."""

    epochs: _Positive = Field(200, description="passes over the training images, those of the search split among them")
    learning_rate: _Rate = Field(0.1, description="of SGD at the start")
    schedule: Literal["cosine", "step", "constant"] = Field("cosine", description="how the learning rate falls")
    milestones: Annotated[tuple[_Fraction, ...], Strict(False)] = Field((0.3, 0.6, 0.8), description="of `step`: fractions of the epochs")
    decay: _Fraction = Field(0.2, description="of `step`: factor at each milestone")
    momentum: _Portion = Field(0.9, description="of SGD")
    nesterov: bool = Field(True, description="momentum in Nesterov's form")
    weight_decay: _Weight = Field(5e-4, description="L2 term 0.5 wd sum ||w||^2 over all that is trained")
    clip_norm: _Rate | None = Field(None, description="largest norm of the gradient, over all variables together")
    ema: _Portion | None = Field(None, description="decay of a moving average of the weights, which is then what counts")
    label_smoothing: _Portion = Field(0.0, description="share of the label's probability that is spread over all classes")
    mixup: _Weight = Field(0.0, description="alpha of the Beta distribution that pairs of images are mixed by; 0 mixes none")
    precision: Precision = Field("float32", description="that networks compute in; weights are float32; auto: what this device does fast")
    jit_compile: bool = Field(False, description="compile the steps of both stages with XLA, on one device; XLA is slow on processors")
    steps_per_execution: _Positive = Field(1, description="most steps of a training between two looks at it; above 1 for one device")
    evaluate_every: _Positive = Field(1, description="epochs between looks at the test set; the last is always looked at")
    choose_best: bool = Field(False, description="keep the epoch of the best accuracy on the validation split, and not the last one")

    @pydantic.field_validator("milestones")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError(f"must ascend. Received: {list(value)}")
        return value


class SearchConfig(_Section):
    """Stage 1: the aggregation search (Algorithm 1 of the paper)."""

    mode: Literal["group_wise", "joint"] = Field("group_wise", description="one group after the other, or all at once")
    objective: Literal["bridge", "st", "ts", "student"] = Field("bridge", description="what student and beta minimise")
    order: Literal["first", "second"] = Field("first", description="plain alternation, or beta looks one step of the weights ahead")
    repetitions: _Positive = Field(1, description="searches with the next seeds too, for the spread of alpha; the first one counts")
    epochs: _Positive = Field(10, description="passes over the training half (group_wise: for each group)")
    warmup_epochs: _NotNegative = Field(0, description="of these, first epochs that leave beta as it is")
    gamma_st: _Weight = Field(1.0, description="weight of the student-to-teacher path")
    gamma_ts: _Weight = Field(4.0, description="weight of the teacher-to-student path")
    gamma_fd: _Weight = Field(1.0, description="objective `student`: weight of the feature distance")
    distance: Distance = Field("l2_normalised", description="objective `student`: the feature distance")
    regulariser: Literal["none", "squared_norm", "entropy"] = Field("none", description="R: of beta, or of alpha")
    lambda_: _Weight = Field(1e-3, description="weight of R")
    learning_rate: _Rate = Field(0.05, description="of SGD on the weights at the start; it falls along a cosine")
    momentum: _Portion = Field(0.9, description="of SGD on the weights")
    weight_decay: _Weight = Field(5e-4, description="L2 term 0.5 wd sum ||w||^2 over the weights")
    beta_learning_rate: _Rate = Field(5e-3, description="of Adam on beta")
    beta_decays: Annotated[tuple[_Portion, _Portion], Strict(False)] = Field((0.5, 0.999), description="Adam's decay rates for beta")
    beta_init: _Weight = Field(1e-3, description="standard deviation of beta at the start")
    standardise: bool = Field(False, description="divide each candidate by its root mean square before the sum")
    entropy_bound: _Portion = Field(0.05, description="alpha of N blocks has collapsed where its entropy is below this share of ln N")
    stop_on_collapse: bool = Field(False, description="end the search of a group there (mode joint: of all groups)")

    @pydantic.model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be smaller than epochs={self.epochs}. Received: {self.warmup_epochs}")
        weights = {"bridge": self.gamma_st + self.gamma_ts, "st": self.gamma_st, "ts": self.gamma_ts}
        if weights.get(self.objective, 1) == 0:
            raise ValueError(f"objective={self.objective!r} needs a gamma above 0 for its path")
        return self


class DistilConfig(_Section):
    """Stage 2: what is added to the student's loss."""

    methods: dict[str, _Weight | None] = Field(
        {"dfa": None}, description="method to weight; null takes the weight that the method recommends"
    )
    options: dict[str, _Options] = Field({}, description="method to its options")
    ce_weight: _Weight = Field(1.0, description="weight of the cross-entropy with the labels")
    aggregation: _Aggregation = Field(
        "searched", description="searched, last, first, average, random, an alphas.json, or alpha itself as [[...], ...] by group"
    )
    discretise: bool = Field(False, description="give the largest weight of each group everything (the paper keeps alpha soft)")
    warmup_epochs: dict[str, _Positive] = Field({}, description="method to epochs over which its weight rises from 0")
    epochs: _Positive | None = Field(None, description="of both students; null takes train.epochs")
    learning_rate: _Rate | None = Field(None, description="of both students; null takes train.learning_rate")

    @property
    def aggregation_file(self) -> str | None:
        """The `alphas.json` that is named, if one is."""
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
                    raise ValueError(f"{field} names a method that methods lacks. Received: {name!r}")
        return self


class CheckpointConfig(_Section):
    """From where an interrupted stage goes on. It decides nothing of the result, and so is in no hash."""

    every: _Positive = Field(200, description="steps between checkpoints; the ends of epochs make one too")
    keep: _Positive = Field(2, description="checkpoints that are kept: the last ones")


class TuneConfig(_Section):
    """What bin/tune.py tries: values of other fields of this configuration. It decides nothing of a run, and so is in no hash."""

    space: _Space = Field({}, description="dotted name of a field to the values that it may have")
    tuner: Literal["random", "bayesian", "hyperband"] = Field("bayesian", description="what chooses the values of the next trial")
    trials: _Positive = Field(12, description="how many; of hyperband its brackets decide that")
    initial_trials: _Positive | None = Field(None, description="of bayesian: first ones at random; null takes three for each field")
    factor: Annotated[int, Field(ge=2, lt=2**31)] = Field(3, description="of hyperband: how much rarer and longer trials get")
    objective: Literal["validation_accuracy", "validation_loss"] = Field("validation_accuracy", description="of the student in the end")
    seeds: _Positive = Field(1, description="students of a trial, with the next seeds too; the mean of their objective counts")

    @pydantic.model_validator(mode="after")
    def _sensible(self) -> Self:
        for name in self.space:
            if any(_within(name, field) or _within(field, name) for field in _IMAGES):
                raise ValueError(f"space must leave seeds and images alone, or trials cannot be compared. Received: {shortened(name)}")
            if inner := [other for other in self.space if other != name and _within(other, name)]:
                raise ValueError(f"space must have a field once. Received: {name!r} and {inner[0]!r}")
            if self.tuner == "hyperband" and any(_within(field, name) for field in ("train.epochs", "distil.epochs")):
                raise ValueError(f"tuner='hyperband' decides distil.epochs itself, up to those of the configuration. Received: {name!r}")
        return self


_IMAGES = (
    *("seed", "data.seed", "data.name", "data.data_dir", "data.options"),
    *("data.validation_fraction", "data.train_limit_per_class"),
)
"""Fields that decide which images there are, and which of them trials are compared on."""


def _within(name: str, field: str) -> bool:
    """Whether a dotted name is that of a field, or of something in it."""
    return f"{name}.".startswith(f"{field}.")


class Config(_Section):
    """Everything that decides the result of a run."""

    seed: _Seed = Field(0, description="of all that is random: splits, first weights, order of the images, variations")
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()
    distil: DistilConfig = DistilConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    tune: TuneConfig = TuneConfig()
    tensorboard: bool = Field(True, description="write down for TensorBoard what each epoch comes to; it decides nothing of the result")
    strategy: Literal["auto", "gpu", "mirrored", "multi_worker"] = Field(
        "auto",
        description="auto: all GPUs, else one device; gpu: all GPUs, of which there must be one; mirrored: also CPUs; "
        "multi_worker: those of all processes that TF_CONFIG names",
    )

    @pydantic.model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.data.search_fraction + self.data.validation_fraction >= 1:
            raise ValueError("data.search_fraction + data.validation_fraction must be below 1")
        if self.search.order == "second" and self.train.precision == "mixed_float16":
            raise ValueError("search.order='second' has no loss scaling, which train.precision='mixed_float16' needs. Use mixed_bfloat16")
        return self

    @pydantic.model_validator(mode="after")
    def _tunable(self) -> Self:
        """Every value of the space must be one that its field takes; whether values go together, trials will show."""
        for name, domain in self.tune.space.items():
            for value in domain.extremes:
                try:
                    self.trial({name: value})
                except _DisagreementError:
                    continue
                except UserError as error:
                    raise ValueError(f"tune.space: {error}") from None
        return self

    def to_json(self) -> str:
        """The configuration as JSON text; `from_json` reads it back equal."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Config":
        """Reads and validates JSON text.

        Raises:
            UserError: naming the field, what was received, and the nearest right name.
        """
        with _explained():
            return cls.model_validate_json(text)

    def override(self, assignments: Sequence[str]) -> "Config":
        """A copy with fields replaced, as the command line gives them: `replace` for text.

        Args:
            assignments: `"key.path=value"` each; the value is JSON, or else taken as a string. Of two for a field the last counts.

        Raises:
            UserError: if a field is unknown or a value does not fit.

        Examples:
            >>> Config().override(["search.mode=joint", "train.epochs=3"]).train.epochs
            3
        """
        values: dict[str, Any] = {}
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            if not equals:
                raise UserError(f"an override must read key.path=value. Received: {shortened(assignment)}")
            values.pop(key, None)
            values[key] = _parse(text)
        try:
            json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"overrides must be finite numbers and UTF-8 text. Received: {shortened(list(assignments))} ({error})"
            ) from None
        return self.replace(values)

    def replace(self, values: Mapping[str, Any]) -> "Config":
        """A copy with fields replaced.

        Args:
            values: by the dotted name of a field, or of a key inside one, as `distil.methods.kd`; in this order.

        Raises:
            UserError: if a field is unknown or a value does not fit.

        Examples:
            >>> Config().replace({"search.mode": "joint", "train.epochs": 3}).train.epochs
            3
        """
        tree = self.model_dump()
        for key, value in values.items():
            _assign(tree, key, value)
        with _explained():
            return Config.model_validate(tree)

    def trial(self, values: Mapping[str, JsonValue]) -> "Config":
        """A copy for one trial: with values by dotted name, and without the space that they are from.

        Raises:
            UserError: if a field is unknown, a value does not fit it, or values do not go together.
        """
        return self.model_copy(update={"tune": TuneConfig()}).replace(values)

    @property
    def student_train(self) -> TrainConfig:
        """The schedule of both students: `train`, with the epochs and learning rate of `distil` where given."""
        changes = {name: getattr(self.distil, name) for name in ("epochs", "learning_rate")}
        return self.train.model_copy(update={name: value for name, value in changes.items() if value is not None})

    @property
    def teacher_precision(self) -> str:
        """What the teacher computes in while it teaches."""
        return self.teacher.precision or self.train.precision

    @property
    def method(self) -> str:
        """The name of the distilled student's directory: its methods, joined by `+`."""
        return "+".join(sorted(self.distil.methods)) or "plain"

    @property
    def data_seed(self) -> int:
        """What decides which images are used and how they are split."""
        return self.seed if self.data.seed is None else self.data.seed

    @property
    def augmentation(self) -> dict[str, Any]:
        """How training images are varied: arguments of `dfa_tf.splits.Split.batches`. Where they are not, each has one view."""
        varied = self.data.augmentation
        return {**varied, "views": self.data.views if any(varied.values()) else 1, "view_seed": self.data_seed}

    def stage_fields(self, stage: str) -> dict[str, Any]:
        """The fields that a stage reads. Paths are left out: the content behind them counts.

        Args:
            stage: one of `STAGES`.
        """
        data = self.data.model_dump(mode="json", exclude={"data_dir": True, "options": {"archive"}})
        view = {"tap", "groups"}
        student = self.student.model_dump(mode="json", exclude={"path"} | ({"name", "options"} if self.student.path else set()))
        plain = {
            "seed": self.seed,
            "data": {key: value for key, value in data.items() if key != "search_fraction"},
            "student": {key: value for key, value in student.items() if key not in view},
            "train": self.student_train.model_dump(mode="json"),
        }
        teacher = {**self.teacher.model_dump(mode="json", include=view | {"batchnorm"}), "precision": self.teacher_precision}
        if stage == "plain":
            return plain
        if stage == "search":
            return {
                "seed": self.seed,
                "data": data,
                "teacher": teacher,
                "student": student,
                "train": self.train.model_dump(mode="json", include={"precision", "jit_compile"}),
                "search": self.search.model_dump(mode="json"),
            }
        if stage == "distil":
            distil = self.distil.model_dump(mode="json", exclude={"epochs", "learning_rate"})
            if self.distil.aggregation_file is not None:
                distil["aggregation"] = "file"
            return {**plain, "student": student, "teacher": teacher, "distil": distil, "search": {"standardise": self.search.standardise}}
        if stage in ("evaluate", "export", "report") or (stage == "teacher" and self.teacher.path is not None):
            return {"seed": self.seed, "data": plain["data"]}
        if stage == "teacher":
            network = self.teacher.model_dump(mode="json", include={"name", "options"})
            return {**plain, "teacher": network, "train": self.train.model_dump(mode="json")} | {"student": {}}
        raise UserError(f"unknown stage. Received: {stage!r}. {nearest(stage, STAGES)}")

    def stage_hash(self, stage: str, *inputs: str) -> str:
        """The hash of a stage: the fields that it reads and the digests of the artifacts that it reads."""
        text = json.dumps([stage, self.stage_fields(stage), inputs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class _DisagreementError(UserError):
    """Fields of which each is right, and which do not go together."""


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Raises what pydantic refuses as a UserError of one line."""
    try:
        yield
    except pydantic.ValidationError as error:
        raise (_DisagreementError if _is_disagreement(error) else UserError)(explain(error)) from None


def _is_disagreement(error: pydantic.ValidationError) -> bool:
    """Whether no field is wrong by itself: then a section has refused what its fields are together."""
    return all(each["type"] == "value_error" and each["loc"] in ((), *((name,) for name in _SECTIONS.values())) for each in error.errors())


def _parse(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(constant)  # NaN and infinity are not JSON

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return text


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets a field, and copies the dictionaries on the way to it. The schema refuses unknown keys, where it can list its fields."""
    *parents, last = key.split(".")
    node = tree
    for part in parents:
        inner = node.get(part, {})
        if not isinstance(inner, Mapping):
            raise UserError(f"unknown field. Received: {shortened(key)}. {nearest(key, field_names())}")
        node[part] = dict(inner)
        node = node[part]
    node[last] = value


def field_names() -> list[str]:
    """Every field of the schema by its dotted name."""
    return list(_names(Config, ""))


def _names(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _names(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


_SECTIONS = {
    field.annotation.__name__: name
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, _Section)
}


def fields_of(section: str) -> list[tuple[str, str, str]]:
    """What the fields of a section say of themselves: name, default as JSON, and meaning with the words that they take.

    Args:
        section: its name; empty for the fields that are in none.
    """
    default = getattr(Config(), section) if section else Config()
    found = []
    for name, field in type(default).model_fields.items():
        if not isinstance(field.default, _Section):
            words = [word for word in get_args(field.annotation) if isinstance(word, str)]
            meaning = "; ".join(filter(None, [field.description, " | ".join(words)]))
            found.append((f"{section}.{name}".removeprefix("."), json.dumps(field.default), meaning))
    return found


_WORDS = {
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "Input should be an object"),
    **dict.fromkeys(("list_type", "tuple_type"), "Input should be a valid array"),
}
"""The words of JSON, whose pydantic has others for the same mistake in Python values."""


def explain(error: pydantic.ValidationError) -> str:
    """One line about the first mistake: the field, the rule, what was received, the nearest right name."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"]]
    if error.title in _SECTIONS and error.title != "Config":
        parts.insert(0, _SECTIONS[error.title])
    field = ".".join(parts)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown field. Received: {shortened(field)}. {nearest(field, [*field_names(), *_SECTIONS.values()])}{more}"
    if first["type"] == "json_invalid":
        return f"a configuration must be JSON. {first['msg']}"
    message = _WORDS.get(first["type"], first["msg"]).removeprefix("Value error, ")
    received = "" if "Received" in message else f". Received: {shortened(first['input'])}"
    return f"{field or 'config'}: {message}{received}{more}"
