"""The `result.json` of each stage, and the trajectory of a search: the parts that are read back."""

from typing import Annotated

import pydantic
from pydantic import BaseModel, ConfigDict, Field

_Share = Annotated[float, Field(ge=0, le=1)]


class _Read(BaseModel):
    """The part of a JSON file that is read; other keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Tested(_Read):
    test_accuracy: _Share | None = None
    test_accuracy_best: _Share | None = None
    test_loss: float | None = None
    parameters: int | None = None


class StageResult(_Tested):
    """The `result.json` of a training or a search; of a search it has no accuracy."""

    config_hash: str = ""
    seed: int | None = None
    validation_accuracy: _Share | None = None
    steps: int | None = None
    seconds: float | None = None
    examples_per_second: float | None = None
    peak_memory_mb: float | None = None
    versions: dict[str, str] = {}


class Evaluated(_Tested):
    """A row of the evaluation: the network's name, its method (None for the teacher), its costs, and the digest of its file."""

    name: str
    method: str | None
    digest: str = ""
    macs: int | None = None
    bytes: int | None = None
    images_per_second: float | None = None


class Evaluation(_Read):
    """The `result.json` of the evaluation."""

    rows: list[Evaluated]
    description: str = ""
    test_images: int = 0


class Export(_Read):
    """The `result.json` of the export: the methods of the student, and what identifies it."""

    student: str = ""
    source: str = ""


class TrajectoryRow(_Read):
    """A row of `trajectory.csv`: alpha of one block of one group, counted from 1, after an epoch."""

    epoch: int
    group: Annotated[int, Field(ge=1)]
    block: str
    alpha: pydantic.FiniteFloat
