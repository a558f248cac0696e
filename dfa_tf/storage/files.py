"""Atomic writing: a file is complete, or not there."""

import contextlib
import csv
import errno
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dfa_tf.errors import writing
from dfa_tf.process import workers
from dfa_tf.storage.reading import kind_of
from dfa_tf.storage.scratch import RETIRED, bare_scratch_folder, scratch_folder


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a path in a scratch folder beside `path`, for a file or a directory that replaces `path` on success.

    The name stays the same, because Keras reads the format from its suffix. Of several workers only the chief writes; the
    files of the others are discarded.

    Raises:
        UserError: if it cannot be written, or `path` is neither a file nor a directory; nothing is left behind then.
    """
    if not workers.is_chief():
        with scratch_folder() as folder:
            yield folder / path.name
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if (kind := kind_of(path)) not in ("", "a directory", "a symbolic link"):
            raise OSError(errno.EEXIST, f"It is {kind}", str(path))
        with bare_scratch_folder(path.parent, ".") as folder:
            yield folder / path.name
            _replace(folder / path.name, path, folder / RETIRED / path.name)


def _replace(new: Path, path: Path, retired: Path) -> None:
    """Renames a file or a directory to `path`. An old one there is kept if the renaming fails."""
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
        rows: values by column. The columns are all names, in the order of their first appearance.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically. Refuses NaN and infinity, which are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
