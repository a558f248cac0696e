"""The trials of a tuning, and their tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from dfa_tf.config import Config

LARGEST = "validation_accuracy"
MEASURES = (LARGEST, "validation_loss")
_HEADINGS = {"validation_accuracy": "validation %", "validation_loss": "validation loss"}


@dataclass(frozen=True)
class Trial:
    """A configuration that was tried.

    Attributes:
        number: from 1, in the order in which they were asked for.
        values: of the fields by dotted name.
        results: the `result.json` of each of its students, in the order of the seeds; empty where it failed.
        directories: of these students.
        failed: why it failed; empty where it did not.
    """

    number: int
    values: Mapping[str, JsonValue]
    results: Sequence[Mapping[str, Any]] = ()
    directories: Sequence[Path] = ()
    failed: str = ""

    def mean(self, measure: str) -> float | None:
        """Over its students, of a number of their `result.json`; None where it failed."""
        return None if self.failed else float(np.mean([result[measure] for result in self.results]))

    def deviation(self, measure: str) -> float | None:
        """The standard deviation of it, as of a sample; None with less than two students."""
        return float(np.std([result[measure] for result in self.results], ddof=1)) if len(self.results) > 1 else None

    def numbers(self, root: Path) -> dict[str, Any]:
        """A row of the CSV, with directories relative to that of the tuning."""
        measures: dict[str, float | None] = {}
        for measure in MEASURES:
            measures |= {measure: self.mean(measure), f"{measure}_std": self.deviation(measure)}
        students = " ".join(str(directory.relative_to(root)) for directory in self.directories)
        values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in self.values.items()}
        return {"trial": self.number, **measures, **values, "failed": self.failed, "students": students}


def ranked(trials: Sequence[Trial], objective: str) -> list[Trial]:
    """The best one first, of equal ones the earlier; those that failed last."""
    sign = -1 if objective == LARGEST else 1
    return sorted(trials, key=lambda trial: (bool(trial.failed), sign * (trial.mean(objective) or 0.0)))


def shown_values(trial: Trial, objective: str) -> dict[str, str]:
    """A row of the table for readers: the objective first, accuracy in percent."""

    def spread(measure: str) -> str:
        scale, digits = (100, 2) if measure == LARGEST else (1, 4)
        mean, deviation = trial.mean(measure), trial.deviation(measure)
        if mean is None:
            return "failed"
        return f"{scale * mean:.{digits}f}" + ("" if deviation is None else f" ± {scale * deviation:.{digits}f}")

    shown = {_HEADINGS[measure]: spread(measure) for measure in sorted(MEASURES, key=lambda measure: measure != objective)}
    return {"trial": str(trial.number), **shown, **{name: shown_value(value) for name, value in trial.values.items()}}


def shown_value(value: JsonValue) -> str:
    """A value of a field for readers."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def notes(trials: Sequence[Trial], config: Config) -> list[str]:
    """How to read the table, and why trials failed."""
    count = config.tune.seeds
    spread = f" Mean ± standard deviation over {count} seeds." if count > 1 else ""
    reading = f"Ranked by {config.tune.objective}, of the student as it is in the end; trials never see the test set.{spread}"
    return [reading, *(f"Failed: trial {trial.number}: {trial.failed}" for trial in trials if trial.failed)]
