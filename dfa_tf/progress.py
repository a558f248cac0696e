"""Progress of the stages in the terminal: a live bar, or plain lines where output is no terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dfa_tf import workers
from dfa_tf.training import Step

_SECONDS_BETWEEN_LINES = 5


class Reporter:
    """Shows stages one after the other, each with the time that it has left; of several workers the chief shows them.

    Args:
        stages: how many there will be.
        quiet: show nothing.
    """

    def __init__(self, stages: int, *, quiet: bool = False) -> None:
        self._stages, self._quiet, self._number = stages, quiet, 0
        self._said: set[str] = set()
        self._console = Console(stderr=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[Step]:
        """Opens a stage and yields what its steps are reported to."""
        self._number += 1
        title = f"[{self._number}/{self._stages}] {name}"
        start = time.monotonic()
        if self._quiet or not workers.is_chief():
            yield lambda done, total, numbers: None
            return
        with self._live(title) if self._console.is_terminal else self._lines(title) as report:
            yield report
        _say(f"{title}: done in {time.monotonic() - start:.1f} s")

    def skipped(self, name: str) -> None:
        """Says that a stage was done before."""
        self._number += 1
        if not self._quiet and workers.is_chief():
            _say(f"[{self._number}/{self._stages}] {name}: done before")

    def say(self, line: str) -> None:
        """Says something about the run as a whole, once."""
        if not self._quiet and line not in self._said:
            self._said.add(line)
            _say(line)

    @contextmanager
    def _live(self, title: str) -> Iterator[Step]:
        note = TextColumn("{task.fields[note]}", markup=False)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), note)
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(title, total=None, note="starting")

            clock = _Clock()

            def report(done: int, total: int, numbers: dict[str, float]) -> None:
                progress.update(task, completed=done, total=total, note=clock.note(done, total, numbers))

            yield report

    @contextmanager
    def _lines(self, title: str) -> Iterator[Step]:
        last, clock = 0.0, _Clock()
        _say(f"{title}: starting")

        def report(done: int, total: int, numbers: dict[str, float]) -> None:
            nonlocal last
            if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                _say(f"{title}: step {done}/{total}, {clock.note(done, total, numbers)}")

        yield report


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Clock:
    """Tells the time left from the pace since the first step, which is slow because it is traced, or comes after what is no step."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def note(self, done: int, total: int, numbers: dict[str, float]) -> str:
        now = time.monotonic()
        if self._first is None or self._first[1] == done:
            self._first = (now, done)
        start, before = self._first
        left = f"{(now - start) / (done - before) * (total - done):.0f} s left" if done > before else "time left not known yet"
        return ", ".join([left, *(f"{name} {value:.3g}" for name, value in numbers.items())])
