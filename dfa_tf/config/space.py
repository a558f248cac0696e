"""What a field of the configuration may be in a trial: an integer, a number, or one of some values."""

import json
from typing import Annotated, Literal, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field, JsonValue, Strict


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Range(_Values):
    """Numbers from `low` to `high`, both of them included."""

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    step: float | None = Field(None, allow_inf_nan=False, description="between neighbours; of a logarithmic range their ratio")
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
        """The values that must fit the field, so that all of them do."""
        return (self.low, self.high)


class Int(_Range):
    """Whole numbers, as `Int(low=1, high=8)`."""

    kind: Literal["int"] = "int"
    low: int
    high: int
    step: int | None = Field(None, description="between neighbours; of a logarithmic range their ratio")


class Float(_Range):
    """Numbers, as `Float(low=1e-3, high=1e-1, log=True)`."""

    kind: Literal["float"] = "float"


class Choice(_Values):
    """Some values of any kind that JSON has, as `Choice(values=("searched", "last"))`; in no order."""

    kind: Literal["choice"] = "choice"
    values: Annotated[tuple[JsonValue, ...], Strict(False)]

    @pydantic.model_validator(mode="after")
    def _sensible(self) -> Self:
        try:
            told = [json.dumps(value, allow_nan=False, sort_keys=True) for value in self.values]
        except ValueError:
            raise ValueError("numbers must be finite") from None
        if len(set(told)) < max(2, len(told)):
            raise ValueError(f"values must be different, and at least two. Received: {list(self.values)}")
        return self

    @property
    def extremes(self) -> tuple[JsonValue, ...]:
        """The values that must fit the field: all of them."""
        return self.values


Domain = Annotated[Int | Float | Choice, Field(discriminator="kind")]
