"""The statistics of a comparison: means and deviations over the seeds, and paired differences."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from dfa_tf.aggregation.weights import AggregationWeights

CONFIDENCE = 0.95
_ACCURACIES = {"test_accuracy": "accuracy", "test_accuracy_best": "best_accuracy"}


@dataclass(frozen=True)
class Cell:
    """One trained student.

    Attributes:
        row: its name.
        seed: of the student.
        result: its `result.json`.
        search_seconds: 0 where its row has not searched.
        weights: that its row has searched; None where it has not.
    """

    row: str
    seed: int
    result: Mapping[str, Any]
    search_seconds: float
    weights: AggregationWeights | None = None

    def numbers(self) -> dict[str, Any]:
        """A row of the CSV of all cells."""
        kept = ("test_accuracy", "test_accuracy_best", "test_loss", "parameters", "steps", "seconds", "examples_per_second")
        chosen_by = [name for name in ("validation_accuracy", "validation_loss") if name in self.result]
        numbers = {name: self.result[name] for name in (*chosen_by, *kept)}
        return {"row": self.row, "seed": self.seed, **numbers, "search_seconds": self.search_seconds}


def summarise(cells: Sequence[Cell], baseline: str) -> list[dict[str, Any]]:
    """The table: a row for each way to train, by falling mean accuracy after the last epoch: on the validation split if there is one.

    Args:
        cells: trained students.
        baseline: name of the row that differences are to; they are of the seeds that both rows have.

    Returns:
        Mean and standard deviation (of a sample) of accuracy and best accuracy, 0..1, on the test set and, where all have one,
        of accuracy on the validation split; the mean paired difference to the baseline, of the accuracy that ranks, and half the
        width of its 95 % interval (Student's t; None with less than two seeds); means of seconds, of seconds of the search, and
        of images a second; the seeds.
    """
    by_row: dict[str, dict[int, Cell]] = {}
    for cell in cells:
        by_row.setdefault(cell.row, {})[cell.seed] = cell
    has_validation = all("validation_accuracy" in cell.result for cell in cells)
    accuracies = {"validation_accuracy": "validation", **_ACCURACIES} if has_validation else _ACCURACIES
    ranking, label = next(iter(accuracies.items()))
    table = []
    for name, trained in by_row.items():
        others = by_row.get(baseline, {}) if name != baseline else {}
        differences = [trained[seed].result[ranking] - others[seed].result[ranking] for seed in trained if seed in others]
        table.append({"row": name, **_row(trained, accuracies, differences)})
    return sorted(table, key=lambda row: -row[f"{label}_mean"])


def _row(trained: Mapping[int, Cell], accuracies: Mapping[str, str], differences: Sequence[float]) -> dict[str, Any]:
    """The numbers of one row.

    Args:
        trained: its students by seed.
        accuracies: keys of the results, with the names that they have in the row.
        differences: to the baseline, by seed.
    """
    row: dict[str, Any] = {}
    results = [cell.result for cell in trained.values()]
    for key, label in accuracies.items():
        row[f"{label}_mean"], row[f"{label}_std"] = mean_and_deviation([result[key] for result in results])
    row["difference"], row["interval"] = interval(differences)
    row["seconds"] = float(np.mean([result["seconds"] for result in results]))
    row["search_seconds"] = float(np.mean([cell.search_seconds for cell in trained.values()]))
    row["images_per_second"] = float(np.mean([result["examples_per_second"] for result in results]))
    row["seeds"] = joined(trained)
    return row


def interval(differences: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean of paired differences and half the width of its 95 % confidence interval, by Student's t; None without two differences."""
    if not differences:
        return None, None
    mean = float(np.mean(differences))
    if len(differences) == 1:
        return mean, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # SciPy warns of nearly equal differences; their interval is a point all the same
        low, high = stats.ttest_1samp(differences, 0.0).confidence_interval(CONFIDENCE)
    return mean, float(high - low) / 2


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation, as of a sample; no deviation of a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def joined(seeds: Iterable[int]) -> str:
    """Seeds as text."""
    return " ".join(map(str, seeds))
