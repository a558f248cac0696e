"""The tables of a comparison: accuracies by row, and searched aggregation weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from dfa_tf.aggregation.weights import AggregationWeights, spread
from dfa_tf.display.tables import Table
from dfa_tf.pipeline.compare.statistics import Cell, summarise

_READING = (
    "Mean ± standard deviation over the seeds, on the test set unless it says validation; ranked by the first column, after the "
    "last epoch; the best epoch was used for nothing. Differences are of the first column, paired by seed, with their 95 % interval."
)
_READING_ALPHAS = "Mean ± standard deviation over the seeds; the weights of a group sum to 1."


def tables(cells: Sequence[Cell], failed: Sequence[Mapping[str, Any]], *, baseline: str, title: str) -> list[Table]:
    """The accuracies and, where rows have searched, the aggregation weights.

    Args:
        cells: the trained students.
        failed: for each student whose training diverged: `row`, `seed`, and why it `failed`.
        baseline: name of the row that differences are to.
        title: of the first table.
    """
    accuracies = [shown_values(row) for row in summarise(cells, baseline)]
    alphas = shown_alphas(cells)
    return [
        Table.of(title, accuracies, notes(failed)),
        *([Table.of("Searched aggregation weights by group and block", alphas, [_READING_ALPHAS])] if alphas else []),
    ]


def shown_values(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of the table for readers: percent, and percentage points for differences."""

    def spread(value: float | None, deviation: float | None, sign: str = "") -> str:
        if value is None:
            return ""
        return f"{100 * value:{sign}.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")

    chosen_by = {"validation %": spread(row["validation_mean"], row["validation_std"])} if "validation_mean" in row else {}
    return {
        "row": row["row"],
        **chosen_by,
        "accuracy %": spread(row["accuracy_mean"], row["accuracy_std"]),
        "best epoch %": spread(row["best_accuracy_mean"], row["best_accuracy_std"]),
        "to baseline, points": spread(row["difference"], row["interval"], "+"),
        "seconds": f"{row['seconds']:.0f}",
        "of search": f"{row['search_seconds']:.0f}",
        "images/s": f"{row['images_per_second']:.0f}",
        "seeds": row["seeds"],
    }


def notes(failed: Sequence[Mapping[str, Any]]) -> list[str]:
    """How to read the table, and the students whose training diverged."""
    return [_READING, *(f"Failed: {cell['row']} with seed {cell['seed']}: {cell['failed']}" for cell in failed)]


def alphas_of(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The aggregation weights that were searched: row, seed, group, block, alpha."""
    return [
        {"row": cell.row, "seed": cell.seed, "group": number, "block": block, "alpha": alpha}
        for cell in cells
        if cell.weights is not None
        for number, group in enumerate(cell.weights.groups, start=1)
        for block, alpha in zip(group.blocks, group.alpha, strict=True)
    ]


def shown_alphas(cells: Sequence[Cell]) -> list[dict[str, str]]:
    """Mean and deviation over the seeds of the weights that each row has searched: a line for each group, a column for each block."""
    by_row: dict[str, list[AggregationWeights]] = {}
    for cell in cells:
        if cell.weights is not None:
            by_row.setdefault(cell.row, []).append(cell.weights)
    lines: dict[tuple[str, int], list[str]] = {}
    for name, searched in by_row.items():
        for one in spread(searched):
            deviation = f" ± {one['std']:.2f}" if len(searched) > 1 else ""
            lines.setdefault((name, int(one["group"])), []).append(f"{one['mean']:.2f}{deviation}")
    width = max(map(len, lines.values()), default=0)
    return [
        {"row": name, "group": str(group), **{f"block {j + 1}": values[j] if j < len(values) else "" for j in range(width)}}
        for (name, group), values in lines.items()
    ]
