"""The report: one page that shows the run."""

from pathlib import Path
from typing import Any

from dfa_tf.pipeline.stages.base import ChiefStage
from dfa_tf.process.status import ReportStep
from dfa_tf.reporting.report import write
from dfa_tf.reporting.run_reader import files_of
from dfa_tf.storage.reading import digest
from dfa_tf.training.checkpoints import Checkpoints


class ReportStage(ChiefStage):
    """Writes the page and its figures."""

    name = "report"

    @property
    def directory(self) -> Path:
        return self.run.directory.report

    def inputs(self) -> list[str]:
        directory = self.run.directory
        read = [file for file in files_of(directory) if file != directory.config]
        return [self.run.config.to_json(), *(f"{file.relative_to(directory.path)}:{digest(file)}" for file in read)]

    def work(self, checkpoints: Checkpoints, report: ReportStep) -> dict[str, Any]:
        report(1, 1, {})  # from here on config.json is that of this run
        return {"page": write([self.run.directory.path]).name}
