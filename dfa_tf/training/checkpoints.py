"""The states of an unfinished stage, from which it resumes bit for bit after a kill.

A checkpoint is one `.npz` file, `STEP-CHECKSUM.npz`, that is written atomically. It holds arrays and JSON text, and no code.
`stage.json` beside the checkpoints names their stage and configuration.
"""

import hashlib
import io
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from dfa_tf.config import CheckpointConfig
from dfa_tf.errors import UserError
from dfa_tf.process import interruption, workers
from dfa_tf.storage.files import atomic, write_json
from dfa_tf.storage.reading import read_bytes, read_own
from dfa_tf.storage.scratch import remove_own

_LOG = logging.getLogger(__name__)
_NOTES = "notes"
_FILE = re.compile(r"\d{10,}-[0-9a-f]{32}\.npz")
_OWN = re.compile(rf"stage\.json|(damaged-)?{_FILE.pattern}")

Variable: TypeAlias = keras.Variable | tf.Variable
Value: TypeAlias = Variable | np.ndarray


class Saved:
    """A state that was read from a checkpoint.

    Attributes:
        step: updates before this state.
        notes: all of the state but its variables, as given to `Checkpoints.save`.
    """

    def __init__(self, step: int, arrays: Mapping[str, np.ndarray], notes: dict[str, Any]) -> None:
        self.step, self.notes = step, notes
        self._arrays = arrays

    def arrays(self, part: str) -> list[np.ndarray]:
        """The values of a part, in their order."""
        return [array for name, array in sorted(self._arrays.items()) if name.rpartition("/")[0] == part]

    def assign(self, part: str, variables: Sequence[Variable]) -> None:
        """Assigns the saved values to the variables of a part.

        Raises:
            UserError: if they are not the saved variables: another version of the program saved them.
        """
        arrays = self.arrays(part)
        if [array.shape for array in arrays] != [tuple(variable.shape) for variable in variables]:
            raise UserError(
                f"a checkpoint must be of the same version of the program. Received: one with other variables ({part}, step {self.step}). "
                "Start the stage again with --overwrite"
            )
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)


class Checkpoints:
    """The last states of one stage.

    Args:
        directory: of the stage's checkpoints; made when the first one is saved.
        config: how often a state is saved, and how many are kept.
        stage: identifies the stage's configuration: its hash and its fields, as in `result.json`.

    Attributes:
        seconds_before: seconds that the stage had taken before the restored state.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, stage: Mapping[str, Any]) -> None:
        self._directory, self._config, self._stage = directory, config, dict(stage)
        self._stage_file = directory / "stage.json"
        self.seconds_before = 0.0
        self._start = time.perf_counter()

    @property
    def config_hash(self) -> str:
        """The hash of the stage's configuration."""
        return self._stage["config_hash"]

    def part(self, name: str) -> "Checkpoints":
        """The checkpoints of a part of the stage; `begin` and `clear` of the stage apply to them too."""
        part = Checkpoints(self._directory / name, self._config, self._stage)
        part._stage_file = self._stage_file
        return part

    def stage(self) -> dict[str, Any]:
        """The stage that the existing checkpoints belong to: its hash and fields; empty without checkpoints."""
        return read_own(self._stage_file)

    def begin(self) -> bool:
        """Prepares for the checkpoints of this stage, and removes those of another configuration.

        Returns:
            Whether the stage starts from the beginning: no checkpoint of this configuration exists.
        """
        anew = self.stage() != self._stage
        if anew:
            self.clear()
            write_json(self._stage_file, self._stage)
        return anew

    def clear(self) -> None:
        """Removes all checkpoints after the stage; other files in their directory stay."""
        if self._directory.is_dir():
            if self._stage_file.is_file():
                self._stage_file.unlink()  # first: files left by a kill then belong to no stage
            remove_own(self._directory, _OWN)

    def wanted(self, step: int, made: int = 1) -> bool:
        """Whether to save after this step, the last of `made` at once: at the configured steps, and when a signal requests a stop."""
        return step % self._config.every < made or interruption.requested()

    def save(self, step: int, parts: Mapping[str, Sequence[Value]], notes: Mapping[str, Any]) -> None:
        """Saves a state, and removes all but the last ones. With several workers only the chief does so.

        Args:
            step: updates so far.
            parts: variables or arrays by part.
            notes: everything else in the state, as JSON.
        """
        if not workers.is_chief():
            return
        notes = {**notes, "seconds": self.seconds_before + time.perf_counter() - self._start}
        arrays = {f"{part}/{i:05d}": keras.ops.convert_to_numpy(v) for part, variables in parts.items() for i, v in enumerate(variables)}
        buffer = io.BytesIO()
        np.savez(buffer, **{_NOTES: np.frombuffer(json.dumps(notes).encode(), np.uint8), **arrays})
        content = buffer.getbuffer()
        with atomic(self._directory / f"{step:010d}-{_checksum(content)}.npz") as temporary, open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        for old in self._files()[: -self._config.keep]:
            old.unlink()

    def latest(self) -> Saved | None:
        """The newest undamaged state of this stage, if there is one. Damaged files are set aside with a warning."""
        name = workers.decided(self._newest_whole)
        if name is None:
            return None
        with np.load(self._directory / name, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        notes = json.loads(arrays.pop(_NOTES).tobytes())
        self.seconds_before = notes["seconds"]
        return Saved(int(name.partition("-")[0]), arrays, notes)

    def _newest_whole(self) -> str | None:
        """The file name of the newest undamaged state."""
        if self.stage() != self._stage:
            return None
        for file in reversed(self._files()):
            if _checksum(read_bytes(file, "a checkpoint")) == file.stem.partition("-")[2]:
                return file.name
            os.replace(file, file.with_name(f"damaged-{file.name}"))
            _LOG.warning("the checkpoint %s is damaged: it is set aside, and the one before it is used", file)
        return None

    def _files(self) -> list[Path]:
        return sorted(file for file in self._directory.glob("[0-9]*-*.npz") if _FILE.fullmatch(file.name))


def _checksum(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
