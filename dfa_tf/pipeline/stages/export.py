"""The export: the distilled student in other formats, each compared with it."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfa_tf.display.run_tables import parity_table
from dfa_tf.errors import UserError
from dfa_tf.export.formats import FORMATS, check_replaceable, choose, write_all
from dfa_tf.export.parity import check
from dfa_tf.export.student import read_student
from dfa_tf.pipeline.run import Run
from dfa_tf.pipeline.stages.base import ChiefStage
from dfa_tf.process.status import ReportStep, doing
from dfa_tf.storage.files import atomic, write_json
from dfa_tf.storage.reading import digest, read_json, read_result
from dfa_tf.storage.scratch import scratch_folder
from dfa_tf.training.checkpoints import Checkpoints


class ExportStage(ChiefStage):
    """Writes the formats that are asked for, and those that are there already: again where the student has changed.

    Every file is measured again; `parity.json` compares it with the student.

    Args:
        run: that it is a stage of.
        formats: names in `dfa_tf.export.formats.FORMATS`, or `"all"`.
        table: print the parity.
    """

    name = "export"

    def __init__(self, run: Run, formats: Sequence[str] = ("saved_model",), *, table: bool = False) -> None:
        super().__init__(run)
        self._formats, self._table = formats, table

    @property
    def directory(self) -> Path:
        return self.run.directory.export

    def inputs(self) -> list[str]:
        """The student and the formats.

        Raises:
            UserError: if a format is unknown or its packages are missing.
        """
        return [digest(self._student), *self._wanted]

    @functools.cached_property
    def _student(self) -> Path:
        method = self.run.config.method
        file = self.run.directory.student(method) / "student.keras"
        return self.run.runner.finished(file, "distil" if method != "plain" else "plain", "distil")

    @functools.cached_property
    def _before(self) -> dict[str, Any]:
        """The result of the last export; read once, because the work removes it."""
        return read_result(self.directory)

    @functools.cached_property
    def _wanted(self) -> list[str]:
        return choose([*self._formats, *self._before.get("formats", [])])

    @functools.cached_property
    def _source(self) -> str:
        """Identifies what files are made from: the student's weights and the data that calibrate int8."""
        return self.run.config.stage_hash("export", digest(self._student))

    def _target(self, name: str) -> Path:
        return self.directory / FORMATS[name].file

    def _kept(self) -> dict[str, Path]:
        """Files of the last export that were made from the same student."""
        if self._before.get("source") != self._source:
            return {}
        return {name: self._target(name) for name in self._before["formats"] if self._target(name).exists()}

    def work(self, checkpoints: Checkpoints, report: ReportStep) -> dict[str, Any]:
        with doing("reading the student"):
            student = read_student(self._student, self.run.splits, seed=self.run.config.seed)
        kept = self._kept()
        missing = [name for name in self._wanted if name not in kept]
        for name in missing:
            check_replaceable(self._target(name))
        with scratch_folder(self.directory) as folder:
            made, failed = write_all(missing, student, folder)
            results, refused = check(self._student, student.model, kept | made, self.run.splits.examples)
            report(1, 1, {})  # before anything is replaced
            for name in made.keys() & results.keys():
                with atomic(self._target(name)) as temporary:
                    made[name].rename(temporary)
        write_json(self.directory / "parity.json", {name: parity._asdict() for name, parity in results.items()})
        done = [name for name in self._wanted if name in results]
        return {"student": self.run.config.method, "source": self._source, "formats": done, "refused": failed | refused}

    def execute_alone(self) -> None:
        """Runs the stage, and prints the parity where asked for.

        Raises:
            UserError: if files exceed their formats' tolerance; they do not replace earlier ones.
        """
        super().execute_alone()
        if self._table:
            with self.run.reporter.paused():
                parity_table(read_json(self.directory / "parity.json", "what an export writes"), title=str(self._student))
        if refused := read_result(self.directory).get("refused"):
            raise UserError("not exported: " + "; ".join(f"{name}, for {reason}" for name, reason in refused.items()))
