"""Progress of the stages in the terminal: a live display, or plain lines where output is no terminal."""

import contextlib
import functools
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from dfa_tf.process import status, workers
from dfa_tf.process.status import ReportStep

_SECONDS_BETWEEN_LINES = 5
_SILENCE = 8  # seconds without a line, after which one says what is being done
_STARTING, _BETWEEN = "starting", "getting ready"


class Reporter:
    """Shows what is being done; of several workers the chief shows it.

    A context manager around all of the work. In a terminal its last lines are kept up to date: the stage, how far it has come,
    and either the steps, the time left, the speed and the latest numbers, or what else is being done (`dfa_tf.process.status`) and for
    how long. Elsewhere the same is told in a line now and then, so that there is never silence for more than ten seconds.

    Args:
        stages: names of the stages that there will be, in their order. How long one took tells what the next of its name will take.
        quiet: show nothing.
    """

    def __init__(self, stages: Sequence[str] = (), *, quiet: bool = False) -> None:
        self._stages, self._quiet, self._number = list(stages), quiet, 0
        self._seconds: dict[str, list[float]] = {}
        self._said: set[str] = set()
        self._stage: _Stage | None = None
        self._console: Console | None = None
        self._display = contextlib.ExitStack()
        self._spinner = Spinner("line")
        self._last_line = -math.inf

    def __enter__(self) -> Self:
        status.begin(_BETWEEN)
        if not self._quiet and workers.is_chief():
            self._console = Console(file=_stderr(), stderr=True)
            self._show()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._display.close()
        self._console = None

    @contextlib.contextmanager
    def stage(self, name: str, *, label: str = "", images: int | None = None) -> Iterator[ReportStep]:
        """Opens a stage and yields what its steps are reported to.

        Args:
            name: of the stage.
            label: stands before it in the display.
            images: of a step, where steps are of images.
        """
        self._number += 1
        stage = _Stage(name, self._title(label + name), images)
        with self._shown():
            self._stage = stage
            status.begin(_STARTING)
            if not self._is_live:
                self._print(f"{stage.title}: {_STARTING}")
            try:
                yield self._report
            finally:
                self._stage = None
                status.begin(_BETWEEN)
            seconds = time.monotonic() - stage.start
            self._seconds.setdefault(name, []).append(seconds)
            self._print(f"{stage.title}: done in {seconds:.1f} s" if seconds < 60 else f"{stage.title}: done in {_span(seconds)}")

    def skipped(self, name: str, *, label: str = "") -> None:
        """Says that a stage was done before."""
        self._number += 1
        if name in self._seconds:
            self._seconds[name].append(0.0)  # stages of this run share it, so the next ones may do so too
        with self._shown():
            self._print(f"{self._title(label + name)}: done before")

    def say(self, line: str) -> None:
        """Says something about the run as a whole, once."""
        if line not in self._said:
            self._said.add(line)
            self._print(line)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the terminal to what the work inside prints."""
        self._display.close()
        try:
            yield
        finally:
            self._show()

    def _shown(self) -> contextlib.AbstractContextManager[object]:
        """Shows what is done inside of it, also where nobody has entered this context manager."""
        return self if self._console is None else contextlib.nullcontext()

    def _title(self, name: str) -> str:
        return f"[{self._number}/{len(self._stages)}] {name}"

    @property
    def _is_live(self) -> bool:
        return self._console is not None and self._console.is_terminal and not self._console.is_dumb_terminal

    def _show(self) -> None:
        if self._is_live:
            # Made anew each time, because one that is shown again begins by erasing the lines that it had. Where stdout is not the
            # terminal, what goes there must not come here.
            live = Live(get_renderable=self._picture, console=self._console, transient=True, redirect_stdout=sys.stdout.isatty())
            self._display.enter_context(live)
        elif self._console is not None:
            self._last_line = time.monotonic()
            self._display.enter_context(_every_second(self._break_silence))

    def _print(self, line: str) -> None:
        if self._console is not None:
            self._last_line = time.monotonic()
            self._console.print(line, soft_wrap=True, markup=False, highlight=False, emoji=False)

    def _report(self, done: int, total: int, numbers: dict[str, float]) -> None:
        stage = self._stage
        if stage is None:
            return
        stage.report(done, total, numbers)
        if not self._is_live and time.monotonic() - stage.last_line >= _SECONDS_BETWEEN_LINES:
            stage.last_line = time.monotonic()
            self._print(self._line())

    def _break_silence(self) -> None:
        if time.monotonic() - self._last_line >= _SILENCE:
            self._print(self._line())

    def _line(self) -> str:
        stage, told = self._stage, ", ".join(self._told())
        return told if stage is None else f"{stage.title}: {told}"

    def _told(self) -> list[str]:
        """What is being done: the steps where one was reported since it began, or else for how long."""
        stage, (what, since) = self._stage, status.now()
        if stage is None or stage.reported < since:
            return [what, f"{_span(time.monotonic() - since)} so far"]
        return [*([what] if what != _STARTING else []), f"step {stage.done}/{stage.total}", self._left(stage), *stage.told()]

    def _left(self, stage: "_Stage") -> str:
        """The time left of the stage, and of all where there was a stage of the name of each one to come, or this is one."""
        left, names = stage.left, self._stages[self._number :]
        if left is None:
            return "time left not known yet"
        known = {stage.name: [stage.reported - stage.start + left], **self._seconds}
        if not names or not all(name in known for name in names):
            return f"{_span(left)} left"
        whole = left + sum(sum(known[name]) / len(known[name]) for name in names)
        return f"{_span(left)} left ({_span(whole)} of all)"

    def _picture(self) -> RenderableType:
        stage = self._stage
        self._spinner.update(text=Text(", ".join(self._told())))
        if stage is None:
            return self._spinner
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        share = f"{stage.done / stage.total:.0%}" if stage.total else ""
        head.add_row(Text(stage.title), ProgressBar(stage.total or None, stage.done, pulse=not stage.total), share)
        return Group(head, self._spinner)


class _Stage:
    """How far a stage has come. Attributes: what was reported last, and when; when a line told of a step last."""

    def __init__(self, name: str, title: str, images: int | None) -> None:
        self.name, self.title, self._images = name, title, images
        self.start = time.monotonic()
        self.done, self.total, self.numbers = 0, 0, dict[str, float]()
        self.reported = self.last_line = -math.inf
        # The pace counts from the first step, which is slow because it is traced, or comes after what is no step.
        self._first: tuple[float, int] | None = None

    def report(self, done: int, total: int, numbers: dict[str, float]) -> None:
        self.reported = time.monotonic()
        if self._first is None or self._first[1] == done:
            self._first = (self.reported, done)
        self.done, self.total, self.numbers = done, total, numbers

    @property
    def pace(self) -> float | None:
        """Seconds of a step; None where it is not known yet."""
        first, done = self._first, self.done  # another thread may report meanwhile
        return None if first is None or done <= first[1] else (self.reported - first[0]) / (done - first[1])

    @property
    def left(self) -> float | None:
        """Seconds that are left; None where that is not known yet."""
        pace = self.pace
        return None if pace is None else pace * (self.total - self.done)

    def told(self) -> list[str]:
        """The speed and the numbers."""
        pace = self.pace
        speed = [f"{self._images / pace:,.0f} images/s"] if pace and self._images is not None else []
        return [*speed, *(f"{name} {value:.3g}" for name, value in self.numbers.items())]


def _span(seconds: float) -> str:
    """A time as people read it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _stderr() -> TextIO:
    """Where stderr leads now: what is written there is seen also while `startup.silent_stderr` holds back what others write."""
    try:
        is_own = sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):
        is_own = False
    return _copy_of_stderr() if is_own else sys.stderr


@functools.cache
def _copy_of_stderr() -> TextIO:
    # Never closed: who logs to `sys.stderr` while it is redirected to the display may keep what it was then.
    return open(os.dup(2), "w", encoding=sys.stderr.encoding, errors="backslashreplace", buffering=1)


@contextlib.contextmanager
def _every_second(beat: Callable[[], None]) -> Iterator[None]:
    """Calls a function every second, from a thread that does not keep the process alive."""
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(1.0):
            beat()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
