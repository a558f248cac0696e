"""How a stage runs: skipped where it is done, refused where it was done otherwise, gone on with where it was interrupted."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from dfa_tf.config import Config
from dfa_tf.display.progress import Reporter
from dfa_tf.errors import UserError, writing
from dfa_tf.process import workers
from dfa_tf.process.status import ReportStep
from dfa_tf.storage.files import write_json, write_text
from dfa_tf.storage.reading import differing, read_result
from dfa_tf.storage.scratch import remove_own
from dfa_tf.training.checkpoints import Checkpoints
from dfa_tf.training.multi_worker import lost_workers_told

_EVENTS = re.compile(r"events\.out\.tfevents\.\d+\..+")  # the names that TensorFlow gives
Work: TypeAlias = Callable[[Checkpoints, ReportStep], dict[str, Any]]


class Stages:
    """The stages of one configuration. Up to a stage's first report a mistake leaves all as it was; `result.json` is written last.

    Args:
        config: of the run.
        config_file: where the configuration of the last stage that ran is written to.
        reporter: shows the stages.
        overwrite: replace the results that do not fit the configuration.
        label: stands before the names of the stages in the display.
    """

    def __init__(self, config: Config, config_file: Path, reporter: Reporter, *, overwrite: bool = False, label: str = "") -> None:
        self._config, self._config_file, self._reporter = config, config_file, reporter
        self._overwrite, self._label = overwrite, label

    def run(self, stage: str, directory: Path, inputs: Sequence[str], work: Work, *, title: str = "", events: Path | None = None) -> None:
        """Runs a stage unless its result is there. Of several workers the chief decides, and what was done before is told by it.

        Args:
            stage: its name in `Config.stage_fields`.
            directory: its own in the run directory.
            inputs: digests of what it is made from, beside the configuration.
            work: gives what `result.json` is to hold. It reports before it writes anything.
            title: in the display, where it is another than the name.
            events: of a stage that trains, the directory of what TensorBoard shows of it. Where the stage begins anew, it is emptied.

        Raises:
            UserError: if the result of another configuration is there, which is not to be overwritten; or a link in place of `events`.
        """
        title = title or stage
        fields = self._config.stage_fields(stage)
        config_hash = self._config.stage_hash(stage, *inputs)
        checkpoints = Checkpoints(directory / "checkpoints", self._config.checkpoints, {"config_hash": config_hash, "config": fields})
        workers.check_same("stage and inputs", {"stage": stage, "inputs": list(inputs)}, differing)
        replace = self._overwrite or stage in ("evaluate", "export", "report")
        if workers.decided(lambda: _is_done(directory, config_hash, fields, checkpoints, events, replace=replace)):
            self._reporter.skipped(title, label=self._label)
            return
        images = None if events is None else self._config.data.batch_size
        with self._reporter.stage(title, label=self._label, images=images) as report, lost_workers_told():
            begun = False

            def begin_and_report(done: int, total: int, numbers: dict[str, float]) -> None:
                nonlocal begun
                if not begun and workers.is_chief():
                    # All inputs are found right by now: an earlier result is no longer true from here on.
                    write_text(self._config_file, self._config.to_json())
                    (directory / "result.json").unlink(missing_ok=True)
                    if checkpoints.begin() and events is not None:
                        remove_own(events, _EVENTS)
                    begun = True
                report(done, total, numbers)

            result = work(checkpoints, begin_and_report)
            write_json(directory / "result.json", {**result, "config_hash": config_hash, "config": fields})
            if workers.is_chief():
                checkpoints.clear()
            workers.wait()  # the next stage reads what the chief has written

    def made(self, path: Path, stage: str, binary: str) -> Path:
        """A file that an earlier stage has made, if that stage is done and was done with this configuration.

        Args:
            path: in the directory of that stage.
            stage: its name in `Config.stage_fields`.
            binary: which makes it.

        Raises:
            UserError: if it is not; it says what to do.
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


def _is_done(
    directory: Path, config_hash: str, fields: dict[str, Any], checkpoints: Checkpoints, events: Path | None, *, replace: bool
) -> bool:
    """Whether a stage is done; its directory is made if not.

    Raises:
        UserError: if the directory holds a stage of another configuration, which is not to be replaced; or if what TensorBoard
            shows of the stage is behind a link, where it may be among files of others.
    """
    before = read_result(directory)
    if before.get("config_hash") == config_hash:
        checkpoints.clear()
        return True
    before = before or checkpoints.stage()
    if before.get("config_hash") != config_hash and before and not replace:
        different = ", ".join(differing(before.get("config", {}), fields)) or "the artifacts that it was made from"
        raise UserError(
            f"{directory} holds a stage of another configuration, which differs in: {different}. "
            "Use another --workdir, or --overwrite to replace it"
        )
    if events is not None and events.is_symlink():
        raise UserError(f"{events} must be a directory, where a stage removes its files of before. Received: a symbolic link")
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)  # better told now than after the training
    return False
