"""The status line of the process: slow work sets it, and a display reads it at any time."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

ReportStep = Callable[[int, int, dict[str, float]], None]
"""Called after each step, with the steps done, the total of steps, and the latest numbers by name."""


class Activity(NamedTuple):
    """Attributes: what the process does; since when, in seconds of `time.monotonic`."""

    what: str
    since: float


class _Process:
    """The status belongs to the whole process, as its terminal does."""

    now = Activity("", 0.0)


def now() -> Activity:
    """What the process does now."""
    return _Process.now


def begin(what: str) -> None:
    """Sets what the process does from now on."""
    _Process.now = Activity(what, time.monotonic())


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Sets what the process does inside the block, for work without a count of steps; restores the previous status afterwards."""
    before = _Process.now
    begin(what)
    try:
        yield
    finally:
        _Process.now = before
