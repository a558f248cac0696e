"""Where progress is shown: drawn live in a terminal, as lines elsewhere, or not at all."""

import contextlib
import functools
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from dfa_tf.display.stage_progress import StageProgress

SECONDS_BETWEEN_LINES = 5
SILENCE = 8
"""Seconds without a line, after which one says what is being done."""


class State(NamedTuple):
    """What to show. Attributes: the stage, None between stages; what is being done, in words."""

    stage: StageProgress | None
    words: str


class View(Protocol):
    """A place to show progress in."""

    def open(self) -> contextlib.AbstractContextManager[object]:
        """Shows the state while the context lasts."""

    def started(self, stage: StageProgress, words: str) -> None:
        """Called when a stage starts."""

    def stepped(self) -> None:
        """Called after each step."""

    def print(self, line: str) -> None:
        """Prints a line that stays."""


def view_of(state: Callable[[], State], *, quiet: bool) -> View:
    """The view for this process.

    Args:
        state: gives what to show, from any thread.
        quiet: show nothing.
    """
    if quiet:
        return HiddenView()
    console = Console(file=_stderr(), stderr=True)
    return LiveView(console, state) if console.is_terminal and not console.is_dumb_terminal else LineView(console, state)


class HiddenView:
    """Shows nothing."""

    def open(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def started(self, stage: StageProgress, words: str) -> None:
        pass

    def stepped(self) -> None:
        pass

    def print(self, line: str) -> None:
        pass


class LiveView(HiddenView):
    """The last lines of a terminal: the stage with its bar, and what is being done. Drawn four times a second."""

    def __init__(self, console: Console, state: Callable[[], State]) -> None:
        self._console, self._state, self._spinner = console, state, Spinner("line")

    def open(self) -> contextlib.AbstractContextManager[object]:
        # Made anew each time, because a Live that is shown again first erases the lines that it had. Where stdout is not the
        # terminal, what goes there must not come here.
        return Live(get_renderable=self._picture, console=self._console, transient=True, redirect_stdout=sys.stdout.isatty())

    def print(self, line: str) -> None:
        _print(self._console, line)

    def _picture(self) -> RenderableType:
        stage, words = self._state()
        self._spinner.update(text=Text(words))
        if stage is None:
            return self._spinner
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        share = f"{stage.done / stage.total:.0%}" if stage.total else ""
        head.add_row(Text(stage.title), ProgressBar(stage.total or None, stage.done, pulse=not stage.total), share)
        return Group(head, self._spinner)


class LineView:
    """A line now and then: after steps, and when there was none for some seconds."""

    def __init__(self, console: Console, state: Callable[[], State]) -> None:
        self._console, self._state = console, state
        self._last_line = self._last_step = -math.inf

    def open(self) -> contextlib.AbstractContextManager[object]:
        self._last_line = time.monotonic()
        return _every_second(self.break_silence)

    def started(self, stage: StageProgress, words: str) -> None:
        self._last_step = -math.inf
        self.print(f"{stage.title}: {words}")

    def stepped(self) -> None:
        if time.monotonic() - self._last_step >= SECONDS_BETWEEN_LINES:
            self._last_step = time.monotonic()
            self._print_state()

    def break_silence(self) -> None:
        """Prints what is being done, unless a line was printed a short time ago."""
        if time.monotonic() - self._last_line >= SILENCE:
            self._print_state()

    def print(self, line: str) -> None:
        self._last_line = time.monotonic()
        _print(self._console, line)

    def _print_state(self) -> None:
        stage, words = self._state()
        self.print(words if stage is None else f"{stage.title}: {words}")


def _print(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False, emoji=False)


def _stderr() -> TextIO:
    """Where stderr leads now: what is written there is seen even while `startup.silent_stderr` holds back other output."""
    try:
        is_own = sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):
        is_own = False
    return _copy_of_stderr() if is_own else sys.stderr


@functools.cache
def _copy_of_stderr() -> TextIO:
    # Never closed: a logger that writes to `sys.stderr` while it is redirected to the display may keep what it was then.
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
