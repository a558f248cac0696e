"""The files of a teacher cache: one `.npy` file for each output, within a bound of disk space."""

import contextlib
import errno
import functools
import io
import logging
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from dfa_tf.errors import writing

_LOG = logging.getLogger(__name__)
_GIB = 1 << 30
_NAME = re.compile(r"[0-9a-f]{32}\.npy(\.part)?")  # of the files


class CachedFile:
    """A file of one output: whole, growing, or missing."""

    def __init__(self, path: Path, rows: int, output: Any) -> None:
        self.path, self.part = path, path.with_name(f"{path.name}.part")
        self._dtype = np.dtype(tf.as_dtype(output.dtype).as_numpy_dtype)
        header, shape = io.BytesIO(), (rows, *output.shape[1:])
        described = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, described)
        self._header, self._row = header.getvalue(), math.prod(shape[1:]) * self._dtype.itemsize
        self.bytes = len(self._header) + rows * self._row

    @property
    def whole(self) -> bool:
        return _is_file(self.path) and self.path.stat().st_size == self.bytes

    @property
    def bytes_there(self) -> int:
        return self.bytes if self.whole else self.part.stat().st_size if _is_file(self.part) else 0

    @property
    def rows_there(self) -> int:
        return max(0, self.bytes_there - len(self._header)) // self._row

    def read(self) -> np.ndarray:
        """A memory map of all rows."""
        os.utime(self.path)  # was used now
        return np.load(self.path, mmap_mode="r", allow_pickle=False).view(self._dtype)  # of bfloat16 the file knows the size alone

    def remove(self) -> None:
        for path in (self.path, self.part):
            if _is_file(path):
                path.unlink()

    @contextlib.contextmanager
    def growing(self, start: int) -> Iterator[Callable[[np.ndarray], Any]]:
        """Yields a function that appends rows to the first `start` ones; at the end of the context the file is whole."""
        for path in (self.path, self.part):
            if os.path.lexists(path) and not _is_file(path):
                raise FileExistsError(errno.EEXIST, f"{path.name} is no regular file")
        with open(self.part, "ab", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            file.truncate(len(self._header) + start * self._row if start else 0)
            if not start:
                file.write(self._header)
            yield lambda values: file.write(values.tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.part, self.path)


def _is_file(path: Path) -> bool:
    """Whether a regular file, not a link, is at this path."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def make_room(folder: Path, files: Collection[CachedFile], gib: float) -> bool:
    """Whether all of these files fit; removes other files of caches for that, the least recently used first.

    Args:
        folder: of the files; it is made.
        files: that are wanted.
        gib: GiB that the folder's files may have. A warning says why the files do not fit.

    Raises:
        UserError: if the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    wanted, missing = sum(file.bytes for file in files), sum(file.bytes - file.bytes_there for file in files)
    needs = f"the teacher's outputs are not kept: they need {wanted / _GIB:.3g} GiB"
    if wanted > gib * _GIB:
        warn_once(f"{needs}, and teacher.cache_gib is {gib:g}")
        return False
    ours = {path for file in files for path in (file.path, file.part)}
    made = (path for path in folder.glob("*.npy*") if _NAME.fullmatch(path.name) and _is_file(path))
    others = sorted((path for path in made if path not in ours), key=lambda path: path.stat().st_mtime)
    held, free = sum(path.stat().st_size for path in others), shutil.disk_usage(folder).free
    while others and (held + wanted > gib * _GIB or missing > free):
        size = others[0].stat().st_size
        others.pop(0).unlink()
        held, free = held - size, free + size
    if missing > free:
        warn_once(f"{needs}, and {folder} has room for {free / _GIB:.3g}")
        return False
    return True


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning once in a process: many rows and seeds have the same reason."""
    _LOG.warning(message)
