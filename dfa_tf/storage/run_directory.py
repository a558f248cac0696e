"""The run directory: every path that is written, atomic writes, the lock, and the reading of files that may be anything."""

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dfa_tf.errors import UserError, shortened
from dfa_tf.process import workers

JSON_LIMIT = 1 << 20
"""Bytes that a JSON file may have. What a run writes has some thousands; what comes from elsewhere is trusted with no more."""
_CHUNK = 1 << 20
_SCRATCH = re.compile(r"\.?dfa_tf-[0-9a-f]{16}")  # the names of scratch folders
_MARK = ".made-by-dfa_tf"
_SIGNATURE = b"dfa_tf has made this folder for a short time, and removes it. Whoever works in it holds a lock on this file.\n"
_RETIRED = ".replaced"  # in a scratch folder: a directory whose place another one is about to take
_PART = re.compile(r"(group|repetition)[1-9]\d*")  # the names of the folders that the parts of a stage have
_ADDRESS = re.compile(rb'(, )?"shared_object_id": \d+')


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
    kind = _kind(path)
    if kind in ("", "a directory"):
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        if stat.S_ISREG(os.fstat(held).st_mode):
            return held
        os.close(held)
        kind = _kind(path)
    raise UserError(f"the lock of a run directory must be a regular file. Received: {path}, which is {kind}: remove it")


def _kind(path: Path) -> str:
    """What is there in place of a regular file, in words; empty for a regular file, and where there is nothing."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return ""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "of another kind")


_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file to read its bytes. Links are followed; what is not a regular file is refused, and never waited for.

    Raises:
        OSError: if it is none, as a named pipe, a device or a directory; or if it cannot be read.
    """
    return open(path, "rb", opener=_regular)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raises OSError unless `open_regular` opens this; for readers that take no open file."""
    os.close(_regular(path, os.O_RDONLY | os.O_CLOEXEC))


def _regular(path: str | os.PathLike[str], flags: int) -> int:
    mode = os.stat(path).st_mode  # before it is opened: to open a device may do something
    if stat.S_ISREG(mode):
        descriptor = os.open(path, flags | os.O_NONBLOCK)  # or a named pipe that has just come would be waited for
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return descriptor
        os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    kind = _KINDS.get(stat.S_IFMT(mode), "of another kind")
    raise OSError(errno.EINVAL, f"Not a regular file, but {kind}", os.fspath(path))


def read_bytes(path: str | os.PathLike[str], what: str) -> bytes:
    """Reads a whole file.

    Args:
        path: of the file.
        what: the file must be, as a message says it.

    Raises:
        UserError: if it cannot be read, or is no regular file.
    """
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{what} must be a readable file. Received: {shortened(os.fspath(path))} ({error.strerror})") from None


def read_json(path: str | os.PathLike[str], what: str, parse: Callable[[bytes], Any] = json.loads, limit: int = JSON_LIMIT) -> Any:
    """Reads a JSON file, which may come from elsewhere: of a larger one than the limit nothing more is read.

    Args:
        path: of the file.
        what: the file must be, as a message says it.
        parse: turns its bytes into what is returned.
        limit: bytes that the file may have.

    Raises:
        UserError: if the file cannot be read, is too large, or is not JSON; or what `parse` raises.
    """
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise UserError(f"{what} must have at most {limit} bytes. Received: {shortened(os.fspath(path))}, which has more")
        return parse(content)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{what} must be a readable file. Received: {shortened(os.fspath(path))} ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} must be JSON. Received: {shortened(os.fspath(path))} ({str(error)[:80]})") from None


def read_result(directory: Path) -> dict[str, Any]:
    """The content of `result.json`, which a stage writes last; empty where the stage is not done."""
    return read_own(directory / "result.json")


def read_own(path: Path) -> dict[str, Any]:
    """A JSON object that a stage wrote, with its configuration under `"config"`; empty where there is none, or a damaged one.

    Raises:
        UserError: if something else than a readable file is in its place.
    """
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            check_regular(path)
    except OSError as error:
        raise UserError(f"what a stage wrote must be a readable file. Received: {path} ({error.strerror})") from None
    try:
        value = read_json(path, "what a stage wrote")
    except UserError:
        return {}
    return value if isinstance(value, dict) and isinstance(value.get("config", {}), dict) else {}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tells in one line where a file cannot be written.

    Raises:
        UserError: in place of an OSError, as of a full disk.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} must be writable, with room for it on the disk. Received: {error}") from error


@contextlib.contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yields a new folder for what is not to stay; it is removed in the end. What a kill leaves of it, `sweep` removes later.

    Args:
        parent: where it is made, hidden; in the system's folder for temporary files where None. What is left there by processes
            that were killed is removed first.

    Raises:
        UserError: if it cannot be made.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    with contextlib.ExitStack() as stack:
        with writing(place):
            folder = stack.enter_context(_scratch_folder(place, "" if parent is None else "."))
        yield folder


@contextlib.contextmanager
def _scratch_folder(place: Path, prefix: str) -> Iterator[Path]:
    sweep(place)
    folder, mark = _marked_folder(place, prefix)
    try:
        yield folder
    finally:
        try:
            _empty(folder)
            (folder / _MARK).unlink(missing_ok=True)  # last: what a kill leaves of the folder is known by it
        finally:
            os.close(mark)
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()


def _marked_folder(place: Path, prefix: str) -> tuple[Path, int]:
    """A new folder, and the descriptor of its mark, which is locked as long as that is open."""
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
    """Removes the scratch folders that processes of this user have left in a folder when they were killed. All else stays.

    One is removed only if it has the name and holds the mark of one, and nobody holds the lock on that.
    """
    for entry in _entries(folder):
        if _SCRATCH.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(OSError):  # it is in use, or another process removes it
                _remove_left(Path(entry.path))


def _remove_left(folder: Path) -> None:
    if folder.lstat().st_uid != os.geteuid():
        return
    try:
        mark = os.open(folder / _MARK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        folder.rmdir()  # the kill came before the mark, or behind it; a folder that holds anything stays
        return
    try:
        if not stat.S_ISREG(os.fstat(mark).st_mode):
            return
        content = os.read(mark, len(_SIGNATURE) + 1)
        is_begun = _SIGNATURE.startswith(content) and os.listdir(folder) == [_MARK]  # the kill came while the mark was written
        if content != _SIGNATURE and not is_begun:
            return
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for old in _entries(folder / _RETIRED):  # whose place nothing has taken
            if not os.path.lexists(folder.parent / old.name):
                os.rename(old.path, folder.parent / old.name)
        _empty(folder)
        os.unlink(folder / _MARK)
    finally:
        os.close(mark)
    folder.rmdir()


def _empty(folder: Path) -> None:
    """Removes all that a scratch folder holds, but for its mark."""
    for entry in _entries(folder):
        if entry.name == _MARK:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds; nothing where there is no folder that can be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def remove_own(folder: Path, names: re.Pattern[str]) -> None:
    """Removes the files of a stage, its folders of parts, and the folder, as far as they hold nothing else. No link within is followed.

    Args:
        folder: of the stage; it need not be there.
        names: of the files that the stage makes.
    """
    sweep(folder)
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            if _PART.fullmatch(entry.name):
                remove_own(Path(entry.path), names)
        elif entry.is_file(follow_symlinks=False) and names.fullmatch(entry.name):
            os.unlink(entry.path)
    with contextlib.suppress(OSError):  # it is not there, or not empty
        folder.rmdir()


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a path to write a file or a directory to, in a scratch folder beside `path`; it takes its place on success.

    The name is the same, because Keras reads the format from its suffix. Of several workers the chief alone writes: what the
    others would is thrown away.

    Raises:
        UserError: if it cannot be written, or what is neither a file nor a directory is in its place; nothing is left behind then.
    """
    if not workers.is_chief():
        with scratch_folder() as folder:
            yield folder / path.name
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if (kind := _kind(path)) not in ("", "a directory", "a symbolic link"):
            raise OSError(errno.EEXIST, f"It is {kind}", str(path))
        with _scratch_folder(path.parent, ".") as folder:
            yield folder / path.name
            _replace(folder / path.name, path, folder / _RETIRED / path.name)


def _replace(new: Path, path: Path, retired: Path) -> None:
    """Renames a file or a directory to where an old one may be, which is kept if that fails."""
    if not (path.is_dir() and new.is_dir()):
        os.replace(new, path)
        return
    retired.parent.mkdir()
    try:
        os.replace(path, retired)  # a directory can only be renamed onto one that is empty
        os.replace(new, path)
    finally:
        if not os.path.lexists(path):
            os.replace(retired, path)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a CSV file atomically.

    Args:
        path: of the file.
        rows: values by column; the columns are all names in the order in which they first appear.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def digest(path: Path) -> str:
    """SHA-256 of what a file says, in hexadecimal.

    Of a `.keras` file only the architecture and the weights count: its metadata hold the date, and Keras
    marks what layers share by its address in memory.

    Raises:
        UserError: if it cannot be read, or is an archive that is damaged.
    """
    try:
        return _digest(path)
    except OSError as error:
        raise UserError(f"{path} must be a readable file. Received: {error.strerror}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"an archive must be whole. Received: {path} ({error})") from None


def _digest(path: Path) -> str:
    sha = hashlib.sha256()
    with open_regular(path) as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for name in sorted(set(archive.namelist()) - {"metadata.json"}):
                    sha.update(name.encode())
                    if name == "config.json":
                        sha.update(_ADDRESS.sub(b"", archive.read(name)))
                        continue
                    with archive.open(name) as member:
                        while chunk := member.read(_CHUNK):
                            sha.update(chunk)
        else:
            file.seek(0)
            while chunk := file.read(_CHUNK):
                sha.update(chunk)
    return sha.hexdigest()


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The dotted names of the fields in which two configurations differ."""
    fields = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            fields += [f"{key}.{name}" for name in differing(before, after)]
        elif before != after:
            fields.append(key)
    return fields
