"""The run directory: every path that is written, atomic writes, and the lock."""

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dfa_tf.errors import UserError, shortened
from dfa_tf.process import workers

JSON_LIMIT = 1 << 20
"""Bytes that a JSON file may have. What a run writes has some thousands; what comes from elsewhere is trusted with no more."""
_CHUNK = 1 << 20
_TEMPORARY = re.compile(r"\.\d+-.+")  # the names that `atomic` gives
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
            handle = open(self.path / ".lock", "w")  # noqa: SIM115 (closed below, after the stages ran)
        except OSError as error:
            raise UserError(f"the run directory must be writable. Received: {self.path} ({error})") from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is working in the run directory {self.path}") from None
            self._sweep()
            yield

    def _sweep(self) -> None:
        """Removes what processes that were killed had not finished writing; the lock says that none of them lives."""
        for leftover in self.path.rglob(".[0-9]*-*"):
            if _TEMPORARY.fullmatch(leftover.name):
                _remove(leftover)


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
        with open(path, "rb") as file:
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
    """A JSON object that a stage wrote, with its configuration under `"config"`; empty where there is none that can be read."""
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
def atomic(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write a file or a directory to; it takes its place on success.

    The temporary name keeps the suffix, because Keras reads the format from it. Of several workers the chief alone writes:
    what the others would is thrown away.

    Raises:
        UserError: if it cannot be written; nothing is left behind then.
    """
    if not workers.is_chief():
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
        return
    temporary, retired = (path.with_name(f".{os.getpid()}-{word}{path.name}") for word in ("", "old-"))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if path.is_dir() and temporary.is_dir():
                os.replace(path, retired)  # a directory can only be renamed onto one that is empty
            os.replace(temporary, path)
        finally:
            for leftover in (temporary, retired):
                _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
        UserError: if it is an archive that is damaged.
    """
    try:
        return _digest(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"an archive must be whole. Received: {path} ({error})") from None


def _digest(path: Path) -> str:
    sha = hashlib.sha256()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(set(archive.namelist()) - {"metadata.json"}):
                sha.update(name.encode())
                if name == "config.json":
                    sha.update(_ADDRESS.sub(b"", archive.read(name)))
                    continue
                with archive.open(name) as member:
                    while chunk := member.read(_CHUNK):
                        sha.update(chunk)
    else:
        with open(path, "rb") as file:
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
