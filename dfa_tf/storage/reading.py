"""Safe reading of files from elsewhere: regular files only, JSON of limited size, digests."""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from dfa_tf.errors import UserError, shortened

JSON_LIMIT = 1 << 20
"""Largest size of a JSON file in bytes; those that a run writes have a few thousand."""
_CHUNK = 1 << 20
_ADDRESS = re.compile(rb'(, )?"shared_object_id": \d+')


def kind_of(path: Path) -> str:
    """The kind of what `path` is, in words; empty if it is a regular file or does not exist."""
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
    """Opens a regular file to read its bytes. Follows links, and never blocks.

    Raises:
        OSError: if it cannot be read, or is not a regular file but, for example, a named pipe, a device or a directory.
    """
    return open(path, "rb", opener=_regular)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raises OSError unless `open_regular` can open the file; for readers that take a path only."""
    os.close(_regular(path, os.O_RDONLY | os.O_CLOEXEC))


def _regular(path: str | os.PathLike[str], flags: int) -> int:
    mode = os.stat(path).st_mode  # before opening it, since opening a device may have effects
    if stat.S_ISREG(mode):
        descriptor = os.open(path, flags | os.O_NONBLOCK)  # non-blocking, in case it has just become a named pipe
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
        what: the file is, for messages.

    Raises:
        UserError: if it cannot be read, or is not a regular file.
    """
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{what} must be a readable file. Received: {shortened(os.fspath(path))} ({error.strerror})") from None


def read_json(path: str | os.PathLike[str], what: str, parse: Callable[[bytes], Any] = json.loads, limit: int = JSON_LIMIT) -> Any:
    """Reads a JSON file of limited size.

    Args:
        path: of the file.
        what: the file is, for messages.
        parse: turns the bytes into the result.
        limit: largest size in bytes.

    Raises:
        UserError: if the file cannot be read, is too large, or is not JSON; or raised by `parse`.
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
    """The content of `result.json`, which a stage writes last; empty if the stage is not done."""
    return read_own(directory / "result.json")


def read_own(path: Path) -> dict[str, Any]:
    """A JSON object that a stage wrote, with its configuration under `"config"`; empty if it is missing or damaged.

    Raises:
        UserError: if it is not a readable regular file.
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


def digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    For a `.keras` file it covers the architecture and the weights only: the metadata hold the date, and Keras marks
    objects that layers share by their address in memory.

    Raises:
        UserError: if it cannot be read, or is a damaged archive.
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
