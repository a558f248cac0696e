"""The run directory: all its paths, and its lock."""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from dfa_tf.errors import UserError
from dfa_tf.process import workers
from dfa_tf.storage.reading import kind_of
from dfa_tf.storage.scratch import sweep


class RunDir:
    """The paths of one run, which are the only interface between the stages.

    Args:
        path: the run directory itself; `lock` creates it.
        search: directory of a search that several runs share; None keeps the search in the run directory.
    """

    def __init__(self, path: str | os.PathLike[str], search: Path | None = None) -> None:
        self.path = Path(path)
        self._search = search

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def teacher(self) -> Path:
        return self.path / "teacher"

    @property
    def search(self) -> Path:
        return self.path / "search" if self._search is None else self._search

    def student(self, method: str) -> Path:
        """The directory of the student distilled by `method`: the name of a plug-in, or several names joined by `+`."""
        return self.path / "distil" / method

    @property
    def given_student(self) -> Path:
        """The directory of the student that was passed in Python, before its training."""
        return self.path / "student"

    def events(self, stage: str) -> Path:
        """The directory of a stage's event files for TensorBoard: `teacher`, `search`, or the method of a student."""
        return self.path / "tensorboard" / stage

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the directory for this process; of several workers, for the chief. The kernel releases the lock when the process dies.

        Raises:
            UserError: if another process holds the lock, or the directory cannot be created or written.
        """
        if not workers.is_chief():
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held = _open_lock(self.path / ".lock")
        except OSError as error:
            raise UserError(f"the run directory must be writable. Received: {self.path} ({error})") from error
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is working in the run directory {self.path}") from None
            self._sweep()
            yield
        finally:
            os.close(held)

    def _sweep(self) -> None:
        """Removes unfinished files of killed processes. Hidden folders and links are not searched."""
        for place, folders, _ in os.walk(self.path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            sweep(Path(place))


def _open_lock(path: Path) -> int:
    """The descriptor of a lock file, created if it is missing. Never writes to it, and follows no link.

    Raises:
        OSError: if it cannot be opened.
        UserError: if it is not a regular file.
    """
    kind = kind_of(path)
    if kind in ("", "a directory"):
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        if stat.S_ISREG(os.fstat(held).st_mode):
            return held
        os.close(held)
        kind = kind_of(path)
    raise UserError(f"the lock of a run directory must be a regular file. Received: {path}, which is {kind}: remove it")
