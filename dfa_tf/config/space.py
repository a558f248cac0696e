"""Tuning: which values of which fields the trials try, and how."""

import json
from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field, JsonValue, Strict

from dfa_tf.config.sections import Json, Positive, Section
from dfa_tf.errors import shortened


class _Range(Section):
    """Numbers from `low` to `high`, both included."""

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    step: float | None = Field(None, allow_inf_nan=False, description="difference of neighbours; on a logarithmic scale their ratio")
    log: bool = Field(False, description="draw on a logarithmic scale")

    @pydantic.model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high. Received: low={self.low:g}, high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log=true needs a low above 0. Received: low={self.low:g}")
        least = 1 if self.log else 0
        if self.step is not None and self.step <= least:
            raise ValueError(f"step must be above {least}, as a {'ratio' if self.log else 'difference'}. Received: {self.step:g}")
        return self

    @property
    def extremes(self) -> tuple[JsonValue, ...]:
        """The values to check: if both fit the field, all between them do."""
        return (self.low, self.high)


class Int(_Range):
    """Integers, such as `Int(low=1, high=8)`."""

    kind: Literal["int"] = "int"
    low: int
    high: int
    step: int | None = Field(None, description="difference of neighbours; on a logarithmic scale their ratio")


class Float(_Range):
    """Numbers, such as `Float(low=1e-3, high=1e-1, log=True)`."""

    kind: Literal["float"] = "float"


class Choice(Section):
    """Unordered JSON values, such as `Choice(values=("searched", "last"))`."""

    kind: Literal["choice"] = "choice"
    values: Annotated[tuple[Json, ...], Strict(False)]

    @pydantic.model_validator(mode="after")
    def _sensible(self) -> Self:
        try:
            texts = [json.dumps(value, allow_nan=False, sort_keys=True) for value in self.values]
        except ValueError:
            raise ValueError("numbers must be finite") from None
        if len(set(texts)) < max(2, len(texts)):
            raise ValueError(f"values must be different, and at least two. Received: {list(self.values)}")
        return self

    @property
    def extremes(self) -> tuple[JsonValue, ...]:
        """The values to check: all of them."""
        return self.values


Domain = Annotated[Int | Float | Choice, Field(discriminator="kind")]
_Space = dict[str, Domain]
_IMAGES = (
    *("seed", "data.seed", "data.name", "data.data_dir", "data.options"),
    *("data.validation_fraction", "data.train_limit_per_class"),
)
"""Fields that decide which images there are, and on which of them trials are compared."""


class TuneConfig(Section):
    """The trials of bin/tune.py, which vary other fields of this configuration. Does not affect runs; excluded from hashes."""

    space: _Space = Field({}, description="values to try, by the dotted name of a field")
    tuner: Literal["random", "bayesian", "hyperband"] = Field("bayesian", description="algorithm that chooses the values of the next trial")
    trials: Positive = Field(12, description="number of trials; hyperband's brackets decide it instead")
    initial_trials: Positive | None = Field(None, description="with bayesian: number of random first trials; null takes three per field")
    factor: Annotated[int, Field(ge=2, lt=2**31)] = Field(
        3, description="with hyperband: factor by which trials become fewer and longer from round to round"
    )
    objective: Literal["validation_accuracy", "validation_loss"] = Field(
        "validation_accuracy", description="measure of the trained student"
    )
    seeds: Positive = Field(1, description="students per trial, with successive seeds; their mean objective counts")

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


def _within(name: str, field: str) -> bool:
    """Whether a dotted name is that of a field, or of a key inside it."""
    return f"{name}.".startswith(f"{field}.")
