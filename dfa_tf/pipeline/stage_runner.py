"""How a stage runs: skipped where it is done, refused where another configuration did it, resumed where it was interrupted."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from dfa_tf.config import Config
from dfa_tf.display.progress import Reporter
from dfa_tf.errors import UserError, writing
from dfa_tf.process import workers
from dfa_tf.process.status import ReportStep
from dfa_tf.storage.files import write_json, write_text
from dfa_tf.storage.reading import differing, read_result
from dfa_tf.storage.scratch import remove_own
from dfa_tf.training.checkpoints import Checkpoints
from dfa_tf.training.multi_worker import lost_workers_reported

_EVENTS = re.compile(r"events\.out\.tfevents\.\d+\..+")  # the names that TensorFlow gives
_REPLACED = ("evaluate", "export", "report")  # cheap stages, whose results of another configuration are replaced without being asked
Work: TypeAlias = Callable[[Checkpoints, ReportStep], dict[str, Any]]


class StageRunner:
    """Runs the stages of one configuration.

    Up to a stage's first report a mistake leaves everything as it was; `result.json` is written last.

    Args:
        config: of the run.
        config_file: where the configuration of the last stage that ran is written to.
        reporter: shows the stages.
        overwrite: replace results of another configuration.
        label: stands before the names of the stages in the display.
    """

    def __init__(self, config: Config, config_file: Path, reporter: Reporter, *, overwrite: bool = False, label: str = "") -> None:
        self._config, self._config_file, self._reporter = config, config_file, reporter
        self._overwrite, self._label = overwrite, label

    def run(self, stage: str, directory: Path, inputs: Sequence[str], work: Work, *, title: str = "", events: Path | None = None) -> None:
        """Runs a stage unless its result is there. Of several workers the chief decides that.

        Args:
            stage: its name in `Config.stage_fields`.
            directory: its own in the run directory.
            inputs: digests of what it is made from, beside the configuration.
            work: returns the content of `result.json`. It reports before it writes anything.
            title: in the display; the name where empty.
            events: TensorBoard's directory of a stage that trains; emptied where the stage starts from the beginning.

        Raises:
            UserError: if a result of another configuration is there and must not be replaced; or a link in place of `events`.
        """
        title = title or stage
        fields, config_hash = self._config.stage_fields(stage), self._config.stage_hash(stage, *inputs)
        checkpoints = Checkpoints(directory / "checkpoints", self._config.checkpoints, {"config_hash": config_hash, "config": fields})
        folder = _StageFolder(directory, config_hash, fields, checkpoints, events)
        workers.check_same("stage and inputs", {"stage": stage, "inputs": list(inputs)}, differing)
        replace = self._overwrite or stage in _REPLACED
        if workers.decided(lambda: folder.is_done(replace=replace)):
            self._reporter.skipped(title, label=self._label)
            return
        images = None if events is None else self._config.data.batch_size
        with self._reporter.stage(title, label=self._label, images=images) as report, lost_workers_reported():
            result = work(checkpoints, self._beginning(folder, report))
            write_json(directory / "result.json", {**result, "config_hash": config_hash, "config": fields})
            if workers.is_chief():
                checkpoints.clear()
            workers.wait()  # the next stage reads what the chief has written

    def _beginning(self, folder: "_StageFolder", report: ReportStep) -> ReportStep:
        """Reports; at the first report, when all inputs are known to be right, the earlier result is removed."""
        first = True

        def begin_and_report(done: int, total: int, numbers: dict[str, float]) -> None:
            nonlocal first
            if first and workers.is_chief():
                write_text(self._config_file, self._config.to_json())
                folder.remove_result()
                first = False
            report(done, total, numbers)

        return begin_and_report

    def finished(self, path: Path, stage: str, binary: str) -> Path:
        """A file of an earlier stage, which must be done with this configuration.

        Args:
            path: in the directory of that stage.
            stage: its name in `Config.stage_fields`.
            binary: which runs it.

        Raises:
            UserError: if it is not done; it says what to run.
        """
        made = read_result(path.parent)
        if not made or not path.exists():
            raise UserError(f"{path} is not there, or not done: run bin/{binary}.py with the same --config and --workdir first")
        different = differing(made.get("config", {}), self._config.stage_fields(stage))
        if different:
            raise UserError(
                f"{path} was made with another configuration, which differs in: {', '.join(different)}. "
                f"Use another --workdir, or replace it with bin/{binary}.py --overwrite"
            )
        return path


class _StageFolder(NamedTuple):
    """A stage in its directory.

    Attributes:
        directory: its own in the run directory.
        config_hash: of the fields that it reads and of its inputs.
        fields: of the configuration that it reads.
        checkpoints: from which it resumes.
        events: TensorBoard's directory of it.
    """

    directory: Path
    config_hash: str
    fields: dict[str, Any]
    checkpoints: Checkpoints
    events: Path | None

    def is_done(self, *, replace: bool) -> bool:
        """Whether the stage is done; if not, its directory is made.

        Args:
            replace: what another configuration has made.

        Raises:
            UserError: if another configuration ran the stage here and must not be replaced; or if `events` is a link, behind
                which files of others may be.
        """
        before = read_result(self.directory)
        if before.get("config_hash") == self.config_hash:
            self.checkpoints.clear()
            return True
        before = before or self.checkpoints.stage()
        if before and before.get("config_hash") != self.config_hash and not replace:
            different = ", ".join(differing(before.get("config", {}), self.fields)) or "the artifacts that it was made from"
            raise UserError(
                f"{self.directory} holds a stage of another configuration, which differs in: {different}. "
                "Use another --workdir, or --overwrite to replace it"
            )
        if self.events is not None and self.events.is_symlink():
            raise UserError(f"{self.events} must be a directory, where a stage removes its files of before. Received: a symbolic link")
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)  # an error here is better than one after the training
        return False

    def remove_result(self) -> None:
        """Removes the earlier result, and what TensorBoard shows of it unless the stage resumes."""
        (self.directory / "result.json").unlink(missing_ok=True)
        if self.checkpoints.begin() and self.events is not None:
            remove_own(self.events, _EVENTS)
