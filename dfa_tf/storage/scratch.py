"""Scratch folders with a mark of their origin, and the removal of those that killed processes have left."""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dfa_tf.errors import writing

_SCRATCH = re.compile(r"\.?dfa_tf-[0-9a-f]{16}")  # the names of scratch folders
_MARK = ".made-by-dfa_tf"
_SIGNATURE = b"dfa_tf has made this folder for a short time, and removes it. Whoever works in it holds a lock on this file.\n"
RETIRED = ".replaced"  # in a scratch folder: a directory that is about to be replaced
_PART = re.compile(r"(group|repetition)[1-9]\d*")  # names of the folders of a stage's parts


@contextlib.contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yields a new temporary folder and removes it at the end. If the process is killed, a later `sweep` removes it.

    Args:
        parent: folder in which to create it, hidden; None takes the system's folder for temporary files. Folders that killed
            processes have left there are removed first.

    Raises:
        UserError: if it cannot be created.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    with contextlib.ExitStack() as stack:
        with writing(place):
            folder = stack.enter_context(bare_scratch_folder(place, "" if parent is None else "."))
        yield folder


@contextlib.contextmanager
def bare_scratch_folder(place: Path, prefix: str) -> Iterator[Path]:
    """Like `scratch_folder`, in an existing folder, and without turning an OSError into a UserError."""
    sweep(place)
    folder, mark = _marked_folder(place, prefix)
    try:
        yield folder
    finally:
        try:
            _empty(folder)
            (folder / _MARK).unlink(missing_ok=True)  # last, since it identifies a folder that a kill leaves
        finally:
            os.close(mark)
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()


def _marked_folder(place: Path, prefix: str) -> tuple[Path, int]:
    """A new folder, and the descriptor of its mark, which stays locked while the descriptor is open."""
    while True:
        folder = place / f"{prefix}dfa_tf-{secrets.token_hex(8)}"
        folder.mkdir(0o700)
        with contextlib.ExitStack() as undo:
            undo.callback(folder.rmdir)
            try:
                mark = os.open(folder / _MARK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:  # another process has swept the folder, which was still empty
                undo.pop_all()
                continue
            undo.callback((folder / _MARK).unlink)
            undo.callback(os.close, mark)
            with contextlib.suppress(OSError):  # where a file system has no locks, nothing is swept either
                fcntl.flock(mark, fcntl.LOCK_EX)
            if not os.fstat(mark).st_nlink:  # it was swept while it was not locked
                undo.pop_all()
                os.close(mark)
                continue
            rest = _SIGNATURE
            while rest:
                rest = rest[os.write(mark, rest) :]
            undo.pop_all()
            return folder, mark


def sweep(folder: Path) -> None:
    """Removes the scratch folders that killed processes of this user have left in a folder. Everything else stays.

    A scratch folder is removed only if its name and its mark match, and no process holds the lock on the mark.
    """
    for entry in _entries(folder):
        if _SCRATCH.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(OSError):  # in use, or being removed by another process
                _remove_left(Path(entry.path))


def _remove_left(folder: Path) -> None:
    if folder.lstat().st_uid != os.geteuid():
        return
    try:
        mark = os.open(folder / _MARK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        folder.rmdir()  # killed before the mark was written or after it was removed; a folder with content stays
        return
    try:
        if not stat.S_ISREG(os.fstat(mark).st_mode):
            return
        content = os.read(mark, len(_SIGNATURE) + 1)
        is_begun = _SIGNATURE.startswith(content) and os.listdir(folder) == [_MARK]  # killed while writing the mark
        if content != _SIGNATURE and not is_begun:
            return
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for old in _entries(folder / RETIRED):  # not replaced yet
            if not os.path.lexists(folder.parent / old.name):
                os.rename(old.path, folder.parent / old.name)
        _empty(folder)
        os.unlink(folder / _MARK)
    finally:
        os.close(mark)
    folder.rmdir()


def _empty(folder: Path) -> None:
    """Removes the content of a scratch folder, except its mark."""
    for entry in _entries(folder):
        if entry.name == _MARK:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def remove_own(folder: Path, names: re.Pattern[str]) -> None:
    """Removes the files of a stage, then its folders if they are empty. Follows no links.

    Args:
        folder: of the stage; it may be missing.
        names: of the files that the stage writes.
    """
    sweep(folder)
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            if _PART.fullmatch(entry.name):
                remove_own(Path(entry.path), names)
        elif entry.is_file(follow_symlinks=False) and names.fullmatch(entry.name):
            os.unlink(entry.path)
    with contextlib.suppress(OSError):  # missing, or not empty
        folder.rmdir()
