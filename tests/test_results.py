"""The evidence: every table of RESULTS.md follows from its committed cells."""

import csv
import re
from itertools import groupby
from pathlib import Path

import pytest

from dfa_tf.aggregation.weights import AggregationWeights, GroupWeights
from dfa_tf.pipeline.compare.statistics import Cell, summarise
from dfa_tf.pipeline.compare.tables import shown_alphas, shown_values

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = sorted(path.parent for path in (ROOT / "results").glob("*/cells.csv"))
TEXT = (ROOT / "RESULTS.md").read_text(encoding="utf-8")


def lines_of(text: str) -> list[list[str]]:
    """The rows of Markdown tables, each as a list of fields."""
    return [[field.strip() for field in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def searched(folder: Path) -> dict[tuple[str, str], AggregationWeights]:
    """The searched aggregation weights of each cell, by row and seed."""
    path, found = folder / "alphas.csv", {}
    for cell, lines in groupby(read(path) if path.exists() else [], key=lambda line: (line["row"], line["seed"])):
        groups = [[*blocks] for _, blocks in groupby(lines, key=lambda line: line["group"])]
        weights = tuple(
            GroupWeights(blocks=tuple(one["block"] for one in group), alpha=tuple(float(one["alpha"]) for one in group)) for group in groups
        )
        found[cell] = AggregationWeights(teacher="wrn_28_2", groups=weights)
    return found


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_table_of_the_results_follows_from_its_cells(folder: Path) -> None:
    weights, cells = searched(folder), []
    for row in read(folder / "cells.csv"):
        name, seed = row.pop("row"), row.pop("seed")
        numbers = {key: float(value) for key, value in row.items()}
        cells.append(Cell(name, int(seed), numbers, numbers["search_seconds"], weights.get((name, seed))))
    assert {cell.row for cell in cells if cell.search_seconds} == {cell.row for cell in cells if cell.weights}
    made = lines_of((folder / "table.md").read_text(encoding="utf-8"))
    baseline = next(line[0] for line in made if "" in line)
    shown = [[*row.values()] for row in [*map(shown_values, summarise(cells, baseline)), *shown_alphas(cells)]]
    assert [line for line in made if line[0] not in ("row", "---")] == shown
    published = lines_of(TEXT)
    assert [line for line in shown if line not in published] == []


def test_the_results_name_where_the_cells_of_each_table_are() -> None:
    assert FOLDERS
    assert {folder.name for folder in FOLDERS} == set(re.findall(r"`results/(\w+)/`", TEXT))
