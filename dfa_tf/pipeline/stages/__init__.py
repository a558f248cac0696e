"""The stages of a run, and which of them a configuration has."""

from dfa_tf.config import Config
from dfa_tf.distillation.preparing import needs_search
from dfa_tf.pipeline.stages.base import Stage, TrainingStage
from dfa_tf.pipeline.stages.distil import DistilStage
from dfa_tf.pipeline.stages.evaluate import EvaluateStage
from dfa_tf.pipeline.stages.export import ExportStage
from dfa_tf.pipeline.stages.plain import PlainStage
from dfa_tf.pipeline.stages.report import ReportStage
from dfa_tf.pipeline.stages.search import SearchStage
from dfa_tf.pipeline.stages.teacher import TeacherStage

__all__ = [
    "DistilStage",
    "EvaluateStage",
    "ExportStage",
    "PlainStage",
    "ReportStage",
    "SearchStage",
    "Stage",
    "TeacherStage",
    "all_stages",
    "student_stages",
]


def student_stages(config: Config) -> list[type[TrainingStage]]:
    """The stages that make the student from a teacher, in order: the search, where stage 2 reads searched weights, and stage 2.

    Without any method stage 2 is the training of the plain student.
    """
    last: type[TrainingStage] = DistilStage if config.distil.methods else PlainStage
    return [SearchStage, last] if needs_search(config) else [last]


def all_stages(config: Config) -> list[type[Stage]]:
    """Every stage of a run, in order."""
    return [TeacherStage, PlainStage, *student_stages(config), EvaluateStage, ExportStage, ReportStage]
