"""The one exception for a person's mistake, and the nearest right word."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """A mistake of the person who called, told in one line.

    The message states the rule, what was received, and the nearest right thing. Binaries print it
    without a traceback and exit with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


class DivergenceError(UserError):
    """A training or a search whose numbers are no longer finite."""


class LostWorkerError(Exception):
    """Another worker of this training has ended, or cannot be reached.

    Binaries print it and exit with status 75: the same commands, started again, go on from the last checkpoint.
    """


def shortened(value: Any) -> str:
    """What was received, as a message shows it: its `repr`, of which at most 300 characters, with the end, where a path has its name."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"{type(value).__name__} of too many levels"
    return text if len(text) <= 300 else f"{text[:147]}...{text[-150:]}"


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint that names the choices nearest to `word`, or all of them where they are few.

    Args:
        word: what was received.
        choices: what would have been right.

    Returns:
        For example `"Did you mean 'search.epochs'?"`, or an empty string where nothing is near.
    """
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.6)
    if close:
        return "Did you mean " + " or ".join(repr(choice) for choice in close) + "?"
    if 0 < len(choices) <= 12:
        return "Choose from " + ", ".join(sorted(choices)) + "."
    return ""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says in one line where a file cannot be written.

    Raises:
        UserError: in place of an OSError, as of a full disk.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} must be writable, with room for it on the disk. Received: {error}") from error
