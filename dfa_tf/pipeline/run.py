"""A run: what its stages share."""

from pathlib import Path

from dfa_tf.config import Config
from dfa_tf.display.progress import Reporter
from dfa_tf.images.splits import Splits
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.keras_file import check_keras_file
from dfa_tf.networks.precision import resolved
from dfa_tf.pipeline.building import build_network, check_options
from dfa_tf.pipeline.inputs import ConfiguredInputs, RunInputs
from dfa_tf.pipeline.stage_runner import StageRunner
from dfa_tf.storage.reading import digest
from dfa_tf.storage.run_directory import RunDir
from dfa_tf.training import strategies


class Run:
    """The configuration, the run directory, the data and the networks. Operations become deterministic for the whole process.

    Args:
        config: of the run.
        directory: the run directory, held by this process.
        reporter: shows the stages.
        overwrite: replace results of another configuration, which are refused otherwise.
        teacher: a trained `.keras` file to use as it is, in place of the run's own.
        label: stands before the names of the stages in the display.
        inputs: data and teacher; those of the configuration where None.
        test: whether the stages evaluate on the test set; without it they report on the validation split alone.

    Attributes:
        config: with `train.precision` resolved for this machine.
        directory: as given.
        reporter: as given.
        inputs: where data and teacher come from.
        strategy: that networks are trained with.
        runner: runs the stages.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDir,
        reporter: Reporter,
        *,
        overwrite: bool = False,
        teacher: Path | None = None,
        label: str = "",
        inputs: RunInputs | None = None,
        test: bool = True,
    ) -> None:
        check_options(config)
        self.config = resolved(config, reporter.say)
        self.strategy = strategies.begin(self.config)
        self.directory, self.reporter, self._shared_teacher, self._test = directory, reporter, teacher, test
        self.inputs: RunInputs = inputs or ConfiguredInputs(self.config)
        self.runner = StageRunner(self.config, directory.config, reporter, overwrite=overwrite, label=label)

    @property
    def splits(self) -> Splits:
        """The data, without the test set where the stages must not see it."""
        splits = self.inputs.splits
        return splits if self._test else splits.without_test()

    def checked_splits(self) -> Splits:
        """The splits.

        Raises:
            UserError: if a network cannot be trained on batches of them as the configuration asks.
        """
        data, splits = self.config.data, self.splits
        (splits.train + splits.search).batches(data.batch_size, seed=self.config.seed, **self.config.augmentation)
        strategies.check_batch(data.batch_size, self.strategy.num_replicas_in_sync)
        return splits

    def build_student(self) -> FeatureModel:
        """The student as its training starts."""
        return build_network(self.config.student, self.config, self.splits)

    def teacher_file(self) -> Path:
        """The trained teacher.

        Raises:
            UserError: if it is not trained yet, or was trained with another configuration.
        """
        return self._shared_teacher or self.runner.finished(self.directory.teacher / "model.keras", "teacher", "train")

    def load_teacher(self) -> FeatureModel:
        """The trained teacher, loaded; errors as of `teacher_file`."""
        return self.inputs.load_teacher(self.teacher_file())

    def teacher_digests(self) -> list[str]:
        """What the teacher's stage is made from, beside the configuration."""
        return _file_digest("teacher.path", self.inputs.teacher_file) + self.inputs.data_digests()

    def student_digests(self) -> list[str]:
        """What every training of the student is made from, beside the configuration and a teacher."""
        path = self.config.student.path
        return _file_digest("student.path", None if path is None else Path(path)) + self.inputs.data_digests()


def _file_digest(field: str, path: Path | None) -> list[str]:
    """The digest of the file that a field of the configuration names, if it names one."""
    if path is None:
        return []
    check_keras_file(path, field)
    return [digest(path)]
