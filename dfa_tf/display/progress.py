"""Progress of the stages: a live display in a terminal, or plain lines elsewhere."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from dfa_tf.display.stage_progress import StageProgress, span
from dfa_tf.display.views import State, View, view_of
from dfa_tf.process import status, workers
from dfa_tf.process.status import ReportStep

_STARTING, _BETWEEN = "starting", "getting ready"


class Reporter:
    """Shows what is being done; of several workers the chief shows it.

    A context manager around all of the work. A terminal shows the stage, how far it has come, and either the steps, the remaining
    time, the speed and the latest numbers, or what else is being done (`dfa_tf.process.status`) and for how long. Elsewhere lines
    say the same now and then, with never more than ten seconds of silence.

    Args:
        stages: names of the stages to come, in order. Stages of one name are expected to take equally long.
        quiet: show nothing.
    """

    def __init__(self, stages: Sequence[str] = (), *, quiet: bool = False) -> None:
        self._stages, self._quiet, self._number = list(stages), quiet, 0
        self._seconds: dict[str, list[float]] = {}
        self._said: set[str] = set()
        self._stage: StageProgress | None = None
        self._view: View | None = None  # None outside of the context manager
        self._shown = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def _open(self) -> View:
        status.begin(_BETWEEN)
        self._view = view = view_of(self._state, quiet=self._quiet or not workers.is_chief())
        self._shown.enter_context(view.open())
        return view

    def _close(self) -> None:
        self._shown.close()
        self._view = None

    @contextlib.contextmanager
    def stage(self, name: str, *, label: str = "", images: int | None = None) -> Iterator[ReportStep]:
        """Opens a stage and yields the function that its steps are reported to.

        Args:
            name: of the stage.
            label: stands before it in the display.
            images: of a step, where steps are of images.
        """
        self._number += 1
        with self._entered() as view:
            self._stage = stage = StageProgress(name, self._title(label + name), images)
            status.begin(_STARTING)
            view.started(stage, _STARTING)

            def report(done: int, total: int, numbers: dict[str, float]) -> None:
                stage.report(done, total, numbers)
                view.stepped()

            try:
                yield report
            finally:
                self._stage = None
                status.begin(_BETWEEN)
            seconds = time.monotonic() - stage.start
            self._seconds.setdefault(name, []).append(seconds)
            view.print(f"{stage.title}: done in {seconds:.1f} s" if seconds < 60 else f"{stage.title}: done in {span(seconds)}")

    def skipped(self, name: str, *, label: str = "") -> None:
        """Says that a stage was done before."""
        self._number += 1
        if name in self._seconds:
            self._seconds[name].append(0.0)  # stages of this run share it, so the next ones may do so too
        with self._entered() as view:
            view.print(f"{self._title(label + name)}: done before")

    def say(self, line: str) -> None:
        """Says something about the run as a whole, once."""
        if line not in self._said:
            self._said.add(line)
            if self._view is not None:
                self._view.print(line)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the terminal to what the work inside prints."""
        self._shown.close()
        try:
            yield
        finally:
            if self._view is not None:
                self._shown.enter_context(self._view.open())

    @contextlib.contextmanager
    def _entered(self) -> Iterator[View]:
        """The view; opened for what is done inside where nobody has entered this context manager."""
        if self._view is not None:
            yield self._view
            return
        try:
            yield self._open()
        finally:
            self._close()

    def _title(self, name: str) -> str:
        return f"[{self._number}/{len(self._stages)}] {name}"

    def _state(self) -> State:
        """What is being done: the steps where one was reported since it began, or else for how long."""
        stage, (what, since) = self._stage, status.now()
        if stage is None or stage.reported < since:
            return State(stage, f"{what}, {span(time.monotonic() - since)} so far")
        words = [*([what] if what != _STARTING else []), f"step {stage.done}/{stage.total}", self._left(stage), *stage.numbers()]
        return State(stage, ", ".join(words))

    def _left(self, stage: StageProgress) -> str:
        """The remaining time of the stage; and of all, where each name to come was timed before or is this one's."""
        left, names = stage.left, self._stages[self._number :]
        if left is None:
            return "time left not known yet"
        known = {stage.name: [stage.reported - stage.start + left], **self._seconds}
        if not names or not all(name in known for name in names):
            return f"{span(left)} left"
        whole = left + sum(sum(known[name]) / len(known[name]) for name in names)
        return f"{span(left)} left ({span(whole)} of all)"
