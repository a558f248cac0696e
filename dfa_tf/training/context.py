"""The surroundings of a stage: devices, checkpoints, display, events, teacher cache."""

from dataclasses import dataclass

import tensorflow as tf

from dfa_tf.process.status import ReportStep
from dfa_tf.training.checkpoints import Checkpoints
from dfa_tf.training.teacher_cache import TeacherCache
from dfa_tf.training.tensorboard import EventLog


@dataclass(frozen=True)
class StageContext:
    """The surroundings of a stage. They do not affect results: the strategy and the teacher cache change only rounding.

    Attributes:
        strategy: for several devices; the networks are copied into its scope. None means the current strategy.
        checkpoints: hold the state, from which an interrupted stage resumes.
        report: called after each step.
        events: takes the numbers of each epoch for TensorBoard.
        teacher_cache: keeps the teacher's outputs on disk, where it can.
    """

    strategy: tf.distribute.Strategy | None = None
    checkpoints: Checkpoints | None = None
    report: ReportStep | None = None
    events: EventLog | None = None
    teacher_cache: TeacherCache | None = None


ALONE = StageContext()
"""One device; nothing is kept or shown."""
