"""The run directory: every path that is written, and the lock."""

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
    """The paths of one run. It is the only interface between the stages.

    Args:
        path: the run directory itself; `lock` creates it.
        search: the directory of the search, where runs share it; in the run directory where None.
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
        """The directory of the student distilled by `method`, a plug-in's name, or several joined by `+`."""
        return self.path / "distil" / method

    @property
    def given_student(self) -> Path:
        """The directory of the student that was handed over in Python, as it was before the training."""
        return self.path / "student"

    def events(self, stage: str) -> Path:
        """The directory of what TensorBoard shows of a stage: `teacher`, `search`, or a student by its method."""
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
        """Holds the directory for one process, of several workers for the chief. The kernel lets go when the process dies.

        Raises:
            UserError: if another process holds it, or if it cannot be created or written.
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
        """Removes what processes that were killed had not finished writing. Nothing is looked for in hidden folders or behind links."""
        for place, folders, _ in os.walk(self.path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            sweep(Path(place))


def _open_lock(path: Path) -> int:
    """The descriptor of a lock file, which is made where there is none. It is not written to, and no link is followed to it.

    Raises:
        OSError: if it cannot be opened.
        UserError: if it is no regular file.
    """
    kind = kind_of(path)
    if kind in ("", "a directory"):
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        if stat.S_ISREG(os.fstat(held).st_mode):
            return held
        os.close(held)
        kind = kind_of(path)
    raise UserError(f"the lock of a run directory must be a regular file. Received: {path}, which is {kind}: remove it")
