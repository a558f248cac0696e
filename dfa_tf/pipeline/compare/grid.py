"""The grid of a comparison: a student for each row and seed, all of one teacher."""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras

from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import Config
from dfa_tf.display.progress import Reporter
from dfa_tf.display.tables import Table, html, markdown, print_table
from dfa_tf.errors import DivergenceError, UserError, nearest
from dfa_tf.pipeline.building import build_splits
from dfa_tf.pipeline.checking import check
from dfa_tf.pipeline.compare.rows import Row
from dfa_tf.pipeline.compare.statistics import Cell, joined, summarise
from dfa_tf.pipeline.compare.tables import alphas_of, tables
from dfa_tf.pipeline.pipeline import train_student
from dfa_tf.pipeline.run import Run
from dfa_tf.pipeline.stages import SearchStage, TeacherStage, student_stages
from dfa_tf.process import workers
from dfa_tf.storage.files import write_csv, write_text
from dfa_tf.storage.reading import read_result
from dfa_tf.storage.run_directory import RunDir
from dfa_tf.training import strategies


class _Student(NamedTuple):
    """A student to train. Attributes: its row, its seed, its configuration, its run directory."""

    row: str
    seed: int
    config: Config
    directory: RunDir

    @property
    def folder(self) -> Path:
        """Of its last stage."""
        return self.directory.student(self.config.method)

    def cell(self) -> Cell:
        """What its stages have written."""
        result, search = read_result(self.folder), self.directory.search
        if SearchStage not in student_stages(self.config):
            return Cell(self.row, self.seed, result, 0.0)
        return Cell(self.row, self.seed, result, read_result(search)["seconds"], AggregationWeights.load(search / "alphas.json"))


class Comparison:
    """A grid of students, a row for each way to train and a column for each seed, with one teacher for all.

    Finished students are never trained again: every cell is a stage of a run directory, also after a kill.

    Args:
        config: what all rows share. Its own `distil.methods` only give weights and options for the methods of the rows.
        directory: of the comparison: `teacher/`, the run directories of the cells, and `comparison/`.
        rows: with different names.
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
        directory: RunDir,
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
        self._config, self._directory, self._baseline, self._overwrite = config, directory, baseline, overwrite
        # Seed by seed, so that a table of all rows is there as early as possible.
        self._students = [
            _Student(row.name, seed, row.config(config, seed), _directory(directory, row, seed)) for seed in seeds for row in rows
        ]
        self._seeds = list(seeds)
        stages = [stage.title(each.config) for each in self._students for stage in student_stages(each.config)]
        self._reporter = Reporter([TeacherStage.title(config), *stages], quiet=quiet)

    def run(self) -> None:
        """Trains what is not trained yet, and rewrites the tables after each student."""
        with self._reporter:
            done, failed = self._train()
        if workers.is_chief():
            for table in self._tables(done, failed):
                print_table(table)

    def _train(self) -> tuple[list[Cell], list[dict[str, Any]]]:
        self._check()
        TeacherStage(Run(self._config, self._directory, self._reporter, overwrite=self._overwrite)).execute()
        done: list[Cell] = []
        failed: list[dict[str, Any]] = []
        for student in self._students:
            try:
                train_student(self._run(student))
                done.append(student.cell())
            except DivergenceError as error:
                failed.append({"row": student.row, "seed": student.seed, "failed": str(error)})
            self._write(done, failed)
            keras.backend.clear_session()
            gc.collect()
        return done, failed

    def _check(self) -> None:
        """Checks the first student of each row that is not trained yet."""
        strategies.begin(self._config)  # before the data are read, as the strategy of several workers asks for
        pending = [student for student in self._students if not read_result(student.folder)]
        if pending and not len(build_splits(self._config).test):
            raise UserError(f"a comparison ranks by accuracy on a test set. Received: {self._config.data.name} without a test set")
        for student in {student.row: student for student in reversed(pending)}.values():
            check(self._run(student))

    def _run(self, student: _Student) -> Run:
        return Run(
            student.config,
            student.directory,
            self._reporter,
            overwrite=self._overwrite,
            teacher=self._directory.teacher / "model.keras",
            label=f"seed {student.seed}, {student.row}: ",
        )

    def _write(self, cells: Sequence[Cell], failed: Sequence[Mapping[str, Any]]) -> None:
        folder, shown = self._directory.path / "comparison", self._tables(cells, failed)
        write_csv(folder / "cells.csv", [*(cell.numbers() for cell in cells), *failed])
        write_csv(folder / "table.csv", summarise(cells, self._baseline))
        write_csv(folder / "alphas.csv", alphas_of(cells))
        write_text(folder / "table.md", "\n".join(map(markdown, shown)))
        write_text(folder / "table.html", html(shown))

    def _tables(self, cells: Sequence[Cell], failed: Sequence[Mapping[str, Any]]) -> list[Table]:
        teacher = read_result(self._directory.teacher)["test_accuracy"]
        about = f"{self._config.data.name}, student {self._config.student.name}, teacher {teacher:.2%}"
        return tables(cells, failed, baseline=self._baseline, title=f"{about}, seeds {joined(self._seeds)}")


def _directory(comparison: RunDir, row: Row, seed: int) -> RunDir:
    """The run directory of a cell. Rows without overrides share one, and so a search."""
    return RunDir(comparison.path / "cells" / (row.name if row.overrides else "usual") / f"seed{seed}")
