"""Several methods over several seeds: a grid of students of one teacher, and the table of it."""

import gc
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from dfa_tf import plugins
from dfa_tf.aggregation.weights import AggregationWeights, spread
from dfa_tf.config import Config
from dfa_tf.display import page
from dfa_tf.display.progress import Reporter
from dfa_tf.distillation.distil import needs_search
from dfa_tf.errors import DivergenceError, UserError, nearest
from dfa_tf.pipeline.building import build_splits
from dfa_tf.pipeline.pipeline import Pipeline
from dfa_tf.process import workers
from dfa_tf.storage.files import write_csv, write_text
from dfa_tf.storage.reading import read_result
from dfa_tf.storage.run_directory import RunDir
from dfa_tf.training import strategies

CONFIDENCE = 0.95


class Row(NamedTuple):
    """A row of the table: one way to train the student.

    Attributes:
        name: as the table shows it.
        methods: the distillation methods; none for the plain student.
        overrides: further changes of the configuration, `"key.path=value"` each.
    """

    name: str
    methods: tuple[str, ...]
    overrides: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Row":
        """Reads `"kd"`, `"dfa+kd"`, `"plain"`, or with a name and overrides `"last: dfa; distil.aggregation=last"`.

        Raises:
            UserError: if a method is unknown or the text is none of these.
        """
        label, colon, rest = text.partition(":")
        what, *overrides = (part.strip() for part in (rest if colon else text).split(";"))
        methods = () if what == "plain" else tuple(what.split("+"))
        for method in methods:
            if method not in (known := [*plugins.names("losses"), "plain"]) or method == "plain":
                raise UserError(f"a row is plain, or methods joined by +. Received: {method!r} in {text!r}. {nearest(method, known)}")
        name = label.strip() if colon else what
        if bool(overrides) != bool(colon) or not name or not all(part.isalnum() or part in "+-_." for part in name):
            raise UserError(
                f"a row with overrides reads NAME: METHODS; KEY=VALUE; ..., with a name of letters, digits and +-_. Received: {text!r}"
            )
        return cls(name, methods, tuple(overrides))

    def config(self, base: Config, seed: int) -> Config:
        """The configuration of this row's student with a seed.

        The training images are those of the base's seed for every student: they are what the teacher has learned from.
        A method keeps the weight and the options that the base gives it.
        """
        distil = base.distil
        mine: dict[str, Any] = {
            "seed": seed,
            "data.seed": base.data_seed,
            "distil.methods": {name: distil.methods.get(name) for name in self.methods},
            "distil.options": {name: distil.options[name] for name in self.methods if name in distil.options},
            "distil.warmup_epochs": {name: distil.warmup_epochs[name] for name in self.methods if name in distil.warmup_epochs},
        }
        return base.override([*(f"{key}={json.dumps(value)}" for key, value in mine.items()), *self.overrides])


@dataclass(frozen=True)
class Cell:
    """One student that is trained. Attributes: its row; its seed; what `result.json` and the search's say of it; what was searched."""

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


class Shown(NamedTuple):
    """A table as people read it: its title, its rows, and the paragraphs below it."""

    title: str
    rows: Sequence[Mapping[str, str]]
    below: Sequence[str]


class Comparison:
    """A grid of students, a row for each way to train and a column for each seed, with one teacher for all.

    Finished students are never trained again: every cell is a stage of a run directory, also after a kill.

    Args:
        config: what all rows share. Its own `distil.methods` only say weights and options of methods that rows name.
        run: the directory of the comparison: `teacher/`, the run directories of the cells, and `comparison/`.
        rows: with names of their own.
        seeds: of each row.
        baseline: name of the row that the others are compared with.
        overwrite: replace cells of another configuration, which are refused otherwise.
        quiet: show no progress.

    Raises:
        UserError: if rows or seeds repeat, the baseline is no row, or a row does not fit the configuration.
    """

    def __init__(
        self,
        config: Config,
        run: RunDir,
        rows: Sequence[Row],
        seeds: Sequence[int],
        *,
        baseline: str,
        overwrite: bool = False,
        quiet: bool = False,
    ) -> None:
        names = [row.name for row in rows]
        for what, values in (("rows", names), ("seeds", list(seeds))):
            if not values or len(set(values)) < len(values):
                raise UserError(f"{what} must be different, and at least one. Received: {values}")
        if baseline not in names:
            raise UserError(f"the baseline must be a row. Received: {baseline!r}. {nearest(baseline, names)}")
        self._config, self._run, self._baseline, self._overwrite = config, run, baseline, overwrite
        # Seed by seed, so that a table of all rows is there as early as can be.
        self._cells = [(row, seed, row.config(config, seed)) for seed in seeds for row in rows]
        self._rows, self._seeds = names, list(seeds)
        stages = [name for _, _, cell in self._cells for name in (*(["search"] if needs_search(cell) else []), cell.method)]
        self._reporter = Reporter(["teacher", *stages], quiet=quiet)

    def run(self) -> None:
        """Trains what is not trained yet, and writes the tables anew after each student."""
        with self._reporter:
            done, failed = self._train()
        if workers.is_chief():
            for title, rows, below in self._tables(done, failed):
                print_table(rows, title, below)

    def _train(self) -> tuple[list[Cell], list[dict[str, Any]]]:
        strategies.begin(self._config)  # before the data are read, as the strategy of several workers asks for
        pending = [cell for cell in self._cells if not read_result(self._student(*cell))]
        if pending and not len(build_splits(self._config).test):
            raise UserError(f"a comparison ranks by accuracy on a test set. Received: {self._config.data.name} without a test set")
        for cell in {cell[0].name: cell for cell in reversed(pending)}.values():  # the first one of each row
            self._pipeline(*cell).check()
        Pipeline(self._config, self._run, self._reporter, overwrite=self._overwrite).train_teacher()
        done: list[Cell] = []
        failed: list[dict[str, Any]] = []
        for row, seed, config in self._cells:
            try:
                done.append(self._trained(row, seed, config))
            except DivergenceError as error:
                failed.append({"row": row.name, "seed": seed, "failed": str(error)})
            self._write(done, failed)
            keras.backend.clear_session()
            gc.collect()
        return done, failed

    def _pipeline(self, row: Row, seed: int, config: Config) -> Pipeline:
        return Pipeline(
            config,
            self._directory(row, seed),
            self._reporter,
            overwrite=self._overwrite,
            teacher=self._run.teacher / "model.keras",
            label=f"seed {seed}, {row.name}: ",
        )

    def _directory(self, row: Row, seed: int) -> RunDir:
        """Rows without overrides share a run directory, and so a search."""
        return RunDir(self._run.path / "cells" / (row.name if row.overrides else "usual") / f"seed{seed}")

    def _student(self, row: Row, seed: int, config: Config) -> Path:
        return self._directory(row, seed).student(config.method)

    def _trained(self, row: Row, seed: int, config: Config) -> Cell:
        result = self._pipeline(row, seed, config).train_student()
        if not needs_search(config):
            return Cell(row.name, seed, result, 0.0)
        search = self._directory(row, seed).search
        return Cell(row.name, seed, result, read_result(search)["seconds"], AggregationWeights.load(search / "alphas.json"))

    def _title(self) -> str:
        teacher = read_result(self._run.teacher)["test_accuracy"]
        return f"{self._config.data.name}, student {self._config.student.name}, teacher {teacher:.2%}, seeds {_joined(self._seeds)}"

    def _write(self, cells: Sequence[Cell], failed: Sequence[Mapping[str, Any]]) -> None:
        folder, tables = self._run.path / "comparison", self._tables(cells, failed)
        write_csv(folder / "cells.csv", [*(cell.numbers() for cell in cells), *failed])
        write_csv(folder / "table.csv", summarise(cells, self._baseline))
        write_csv(folder / "alphas.csv", alphas_of(cells))
        write_text(folder / "table.md", "\n".join(markdown(rows, title, below) for title, rows, below in tables))
        write_text(folder / "table.html", html(tables))

    def _tables(self, cells: Sequence[Cell], failed: Sequence[Mapping[str, Any]]) -> list[Shown]:
        """What people read: the accuracies and, where rows have searched, the aggregation weights."""
        accuracies = [shown_values(row) for row in summarise(cells, self._baseline)]
        alphas = shown_alphas(cells)
        return [
            Shown(self._title(), accuracies, notes(failed)),
            *([Shown("Searched aggregation weights by group and block", alphas, [_READING_ALPHAS])] if alphas else []),
        ]


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

    accuracies = {"test_accuracy": "accuracy", "test_accuracy_best": "best_accuracy"}
    if all("validation_accuracy" in cell.result for cell in cells):
        accuracies = {"validation_accuracy": "validation", **accuracies}
    ranking = next(iter(accuracies))

    def values(name: str, key: str) -> list[float]:
        return [cell.result[key] for cell in by_row[name].values()]

    table = []
    for name, trained in by_row.items():
        row: dict[str, Any] = {"row": name}
        for key, label in accuracies.items():
            row[f"{label}_mean"], row[f"{label}_std"] = _mean_and_deviation(values(name, key))
        both = [seed for seed in trained if seed in by_row.get(baseline, {})] if name != baseline else []
        differences = [trained[seed].result[ranking] - by_row[baseline][seed].result[ranking] for seed in both]
        row["difference"], row["interval"] = interval(differences)
        row["seconds"] = float(np.mean(values(name, "seconds")))
        row["search_seconds"] = float(np.mean([cell.search_seconds for cell in trained.values()]))
        row["images_per_second"] = float(np.mean(values(name, "examples_per_second")))
        row["seeds"] = _joined(trained)
        table.append(row)
    return sorted(table, key=lambda row: -row[f"{accuracies[ranking]}_mean"])


def interval(differences: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean of paired differences and half the width of its 95 % confidence interval, by Student's t; None where there is none."""
    if not differences:
        return None, None
    mean, deviation = _mean_and_deviation(differences)
    if deviation is None:
        return mean, None
    count = len(differences)
    return mean, float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def _joined(seeds: Any) -> str:
    return " ".join(map(str, seeds))


def shown_values(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of the table as people read it: percent, and points of percent for differences."""

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


_READING = (
    "Mean ± standard deviation over the seeds, on the test set unless it says validation; ranked by the first column, after the "
    "last epoch; the best epoch was used for nothing. Differences are of the first column, paired by seed, with their 95 % interval."
)
_READING_ALPHAS = "Mean ± standard deviation over the seeds; the weights of a group sum to 1."


def notes(failed: Sequence[Mapping[str, Any]]) -> list[str]:
    """What stands below the table: how to read it, and the students that could not be trained."""
    return [_READING, *(f"Failed: {cell['row']} with seed {cell['seed']}: {cell['failed']}" for cell in failed)]


def markdown(rows: Sequence[Mapping[str, str]], title: str, below: Sequence[str]) -> str:
    """The table as Markdown, with paragraphs below it."""
    columns = list(rows[0]) if rows else []
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *(list(row.values()) for row in rows)] if rows else []
    return "\n".join([f"{title}\n", *("| " + " | ".join(line) + " |" for line in lines), *(f"\n{text}" for text in below)]) + "\n"


def html(tables: Sequence[Shown]) -> str:
    """The tables as a page of their own."""
    return page.render("table.html", tables=tables, title=tables[0].title)


def print_table(rows: Sequence[Mapping[str, str]], title: str, below: Sequence[str]) -> None:
    """The table in the terminal, with paragraphs below it."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in rows[0] if rows else ():
        table.add_column(name, justify="left" if name == "row" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    console = Console()
    if not console.is_terminal:
        console.width = 140
    console.print(table)
    for text in below:
        console.print(text, soft_wrap=True, highlight=False, markup=False)


def compare(
    config: Config,
    run: RunDir,
    rows: Sequence[str],
    seeds: Sequence[int],
    *,
    baseline: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Trains a student for each row and seed, and writes the tables.

    Args:
        config: what all rows share.
        run: the directory of the comparison, held by this process.
        rows: as `Row.parse` reads them.
        seeds: of each row.
        baseline: name of the row that the others are compared with; the first one where None.
        overwrite: replace cells of another configuration.
        quiet: show no progress.

    Returns:
        The folder of `cells.csv`, `alphas.csv`, `table.csv`, `table.md` and `table.html`.
    """
    parsed = [Row.parse(text) for text in rows]
    chosen = baseline if baseline is not None else (parsed[0].name if parsed else "")
    Comparison(config, run, parsed, seeds, baseline=chosen, overwrite=overwrite, quiet=quiet).run()
    return run.path / "comparison"
