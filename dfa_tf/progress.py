"""Progress of the stages in the terminal: a live bar, or plain lines where output is no terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dfa_tf.training import Step

_SECONDS_BETWEEN_LINES = 5


class Reporter:
    """Shows stages one after the other, each with the time that it has left.

    Args:
        stages: how many there will be.
        quiet: show nothing.
    """

    def __init__(self, stages: int, *, quiet: bool = False) -> None:
        self._stages, self._quiet, self._number = stages, quiet, 0
        self._console = Console(stderr=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[Step]:
        """Opens a stage and yields what its steps are reported to."""
        self._number += 1
        title = f"[{self._number}/{self._stages}] {name}"
        start = time.monotonic()
        if self._quiet:
            yield lambda done, total, numbers: None
            return
        with self._live(title, start) if self._console.is_terminal else self._lines(title, start) as report:
            yield report
        _say(f"{title}: done in {time.monotonic() - start:.1f} s")

    def skipped(self, name: str) -> None:
        """Says that a stage was done before."""
        self._number += 1
        if not self._quiet:
            _say(f"[{self._number}/{self._stages}] {name}: done before")

    @contextmanager
    def _live(self, title: str, start: float) -> Iterator[Step]:
        note = TextColumn("{task.fields[note]}", markup=False)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), note)
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(title, total=None, note="starting")

            def report(done: int, total: int, numbers: dict[str, float]) -> None:
                progress.update(task, completed=done, total=total, note=_note(start, done, total, numbers))

            yield report

    @contextmanager
    def _lines(self, title: str, start: float) -> Iterator[Step]:
        last = 0.0
        _say(f"{title}: starting")

        def report(done: int, total: int, numbers: dict[str, float]) -> None:
            nonlocal last
            if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                _say(f"{title}: step {done}/{total}, {_note(start, done, total, numbers)}")

        yield report


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _note(start: float, done: int, total: int, numbers: dict[str, float]) -> str:
    left = (time.monotonic() - start) / done * (total - done)
    return ", ".join([f"{left:.0f} s left", *(f"{name} {value:.3g}" for name, value in numbers.items())])
