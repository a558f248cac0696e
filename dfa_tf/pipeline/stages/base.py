"""What a stage is: its name, its directory, what it reads, and its work."""

import abc
from pathlib import Path
from typing import Any, ClassVar

from dfa_tf.config import Config
from dfa_tf.distillation.distil import Distilled
from dfa_tf.networks.keras_file import save_model
from dfa_tf.pipeline.results import network_result
from dfa_tf.pipeline.run import Run
from dfa_tf.process import workers
from dfa_tf.process.status import ReportStep
from dfa_tf.storage.files import atomic
from dfa_tf.training.checkpoints import Checkpoints
from dfa_tf.training.context import StageContext
from dfa_tf.training.measuring import Stopwatch
from dfa_tf.training.teacher_cache import TeacherCache
from dfa_tf.training.tensorboard import EventLog


class Stage(abc.ABC):
    """A stage of a run.

    Attributes:
        name: in `Config.stage_fields`.
        run: that it is a stage of.
    """

    name: ClassVar[str]

    def __init__(self, run: Run) -> None:
        self.run = run

    @classmethod
    def title(cls, config: Config) -> str:
        """Its name in the display."""
        return cls.name

    @property
    @abc.abstractmethod
    def directory(self) -> Path:
        """Where it writes, with `result.json` last."""

    @property
    def events(self) -> Path | None:
        """Where a stage that trains writes its numbers for TensorBoard."""
        return None

    @abc.abstractmethod
    def inputs(self) -> list[str]:
        """Digests of what it is made from, beside the configuration."""

    @abc.abstractmethod
    def work(self, checkpoints: Checkpoints, report: ReportStep) -> dict[str, Any]:
        """Does the work; it reports before it writes anything.

        Args:
            checkpoints: where its state is saved.
            report: called after each step.

        Returns:
            The content of `result.json`.
        """

    def execute(self) -> None:
        """Runs the stage unless its result is there."""
        title = self.title(self.run.config)
        self.run.runner.run(self.name, self.directory, self.inputs(), self.work, title=title, events=self.events)


class ChiefStage(Stage):
    """A stage that only the chief of several workers runs, while the others wait."""

    def execute(self) -> None:
        """Runs the stage at the chief. What it raises there, every worker raises."""
        workers.decided(self.execute_alone)

    def execute_alone(self) -> None:
        """What the chief does."""
        super().execute()


class TrainingStage(Stage):
    """A stage that trains, and so has steps, checkpoints and events."""

    reads_teacher: ClassVar[bool] = False

    @property
    def events(self) -> Path:
        return self.run.directory.events(self.title(self.run.config))

    def context(self, checkpoints: Checkpoints, report: ReportStep, part: str = "") -> StageContext:
        """What the training, or a part of it, runs in."""
        config, events = self.run.config, None
        if config.tensorboard:
            events = EventLog(self.events / part, config.stage_fields(self.name), config.data.batch_size)
        return StageContext(self.run.strategy, checkpoints, report, events, self._teacher_cache() if self.reads_teacher else None)

    def _teacher_cache(self) -> TeacherCache | None:
        """Where the teacher's outputs are kept, if they are: beside its file, so that all students of a comparison share them."""
        gib = self.run.config.teacher.cache_gib
        return TeacherCache(self.run.teacher_file().parent / "outputs", gib) if gib else None

    def save(self, trained: Distilled, name: str, watch: Stopwatch, checkpoints: Checkpoints) -> dict[str, Any]:
        """Saves a trained network under a name in the stage's directory; gives the content of `result.json`."""
        with atomic(self.directory / name) as temporary:
            save_model(trained.student, temporary)
        config = self.run.config
        measured = watch.result(trained.steps, config.data.batch_size, checkpoints.seconds_before)
        return network_result(trained, config.seed, measured)
