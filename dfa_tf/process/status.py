"""What the process is doing, in words: work that takes a while says so here, and a display looks when it likes."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

ReportStep = Callable[[int, int, dict[str, float]], None]
"""Is told of progress: steps done, steps in all, the latest numbers by name."""


class Activity(NamedTuple):
    """Attributes: what is being done; since when, in seconds of `time.monotonic`."""

    what: str
    since: float


class _Process:
    """What is being done is of the whole process, as its terminal is."""

    now = Activity("", 0.0)


def now() -> Activity:
    """What is being done."""
    return _Process.now


def begin(what: str) -> None:
    """Says what is being done from here on."""
    _Process.now = Activity(what, time.monotonic())


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Says what the work inside does, of which no steps are counted; afterwards it is again what it was before."""
    before = _Process.now
    begin(what)
    try:
        yield
    finally:
        _Process.now = before
