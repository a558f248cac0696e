"""The plain student: the baseline of the distilled one."""

from pathlib import Path
from typing import Any

from dfa_tf.distillation.distil import distil
from dfa_tf.pipeline.stages.base import TrainingStage
from dfa_tf.process.status import ReportStep
from dfa_tf.training.checkpoints import Checkpoints
from dfa_tf.training.measuring import Stopwatch


class PlainStage(TrainingStage):
    """Trains the student without a teacher, on the schedule of the distilled one; writes `student.keras`."""

    name = "plain"

    @property
    def directory(self) -> Path:
        return self.run.directory.student("plain")

    def inputs(self) -> list[str]:
        return self.run.student_digests()

    def work(self, checkpoints: Checkpoints, report: ReportStep) -> dict[str, Any]:
        watch, run = Stopwatch(), self.run
        context = self.context(checkpoints, report)
        trained = distil(None, run.build_student(), run.splits, run.config, directory=self.directory, context=context)
        return self.save(trained, "student.keras", watch, checkpoints)
