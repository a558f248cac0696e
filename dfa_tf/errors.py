"""The exception for a user's mistake, and hints at the nearest right word."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """A mistake of the user, explained in one line.

    The message states the rule, what was received, and the nearest right value. Binaries print it
    without a traceback and exit with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


class DivergenceError(UserError):
    """A training or a search whose numbers are no longer finite."""


class LostWorkerError(Exception):
    """Another worker of this training has ended, or cannot be reached.

    Binaries print it and exit with status 75: run the same commands again to resume from the last checkpoint.
    """


def shortened(value: Any) -> str:
    """A received value as messages show it: its `repr`, cut to 300 characters in the middle, since a path ends with its name."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"{type(value).__name__} of too many levels"
    return text if len(text) <= 300 else f"{text[:147]}...{text[-150:]}"


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint that names the choices nearest to `word`, or all choices if they are at most 12.

    Args:
        word: the received word.
        choices: the accepted words.

    Returns:
        For example `"Did you mean 'search.epochs'?"`, or an empty string if none is near.
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
    """Explains in one line why a file cannot be written.

    Raises:
        UserError: in place of an OSError, such as that of a full disk.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} must be writable, with room for it on the disk. Received: {error}") from error
