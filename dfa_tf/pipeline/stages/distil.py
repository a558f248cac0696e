"""Stage 2: the distilled student."""

import os
from pathlib import Path
from typing import Any

from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import Config
from dfa_tf.distillation.distil import distil
from dfa_tf.distillation.preparing import takes_aggregation
from dfa_tf.errors import UserError, shortened
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.pairing import keep_paired_groups
from dfa_tf.pipeline.run import Run
from dfa_tf.pipeline.stages.base import TrainingStage
from dfa_tf.process.status import ReportStep
from dfa_tf.storage.reading import digest
from dfa_tf.training.checkpoints import Checkpoints
from dfa_tf.training.measuring import Stopwatch


class DistilStage(TrainingStage):
    """Trains the student with the methods of `distil.methods`; writes `student.keras` and the `alphas.json` that it used."""

    name = "distil"
    reads_teacher = True

    @classmethod
    def title(cls, config: Config) -> str:
        return config.method

    @property
    def directory(self) -> Path:
        return self.run.directory.student(self.run.config.method)

    def inputs(self) -> list[str]:
        inputs = [digest(self.run.teacher_file()), *self.run.student_digests()]
        alphas = aggregation_file(self.run)
        return inputs if alphas is None else [*inputs, digest(alphas)]

    def work(self, checkpoints: Checkpoints, report: ReportStep) -> dict[str, Any]:
        watch, run = Stopwatch(), self.run
        student, teacher = keep_paired_groups(run.build_student(), run.load_teacher())
        aggregation = load_aggregation(run, teacher)
        trained = distil(
            teacher, student, run.splits, run.config, aggregation=aggregation, directory=self.directory,
            callbacks=run.inputs.callbacks, context=self.context(checkpoints, report),
        )  # fmt: skip
        if aggregation is not None:
            aggregation.save(self.directory / "alphas.json")
        return self.save(trained, "student.keras", watch, checkpoints)


def aggregation_file(run: Run) -> Path | None:
    """The file of aggregation weights that the methods read: of the search, or of `distil.aggregation`; None where they read none.

    Raises:
        UserError: if the file is not there, or the search is not done with this configuration.
    """
    settings = run.config.distil
    if not takes_aggregation(run.config):
        return None
    if settings.aggregation == "searched":
        return run.runner.finished(run.directory.search / "alphas.json", "search", "search")
    named = settings.aggregation_file
    if named is not None and not os.path.isfile(named):
        raise UserError(f"distil.aggregation must be a file of aggregation weights. Received: {shortened(named)}")
    return None if named is None else Path(named)


def load_aggregation(run: Run, teacher: FeatureModel) -> AggregationWeights | None:
    """The aggregation weights for a teacher's groups; None where no method takes any. Errors as of `aggregation_file`."""
    if not takes_aggregation(run.config):
        return None
    if (file := aggregation_file(run)) is not None:
        return AggregationWeights.load(file, teacher)
    named, standardise = run.config.distil.aggregation, run.config.search.standardise
    if isinstance(named, str):
        return AggregationWeights.by_rule(named, teacher, seed=run.config.seed, standardise=standardise)
    return AggregationWeights.given(named, teacher, standardise=standardise)
