"""How far a stage has come, and in words: steps, remaining time, speed, numbers."""

import math
import time


class StageProgress:
    """The steps of one stage.

    Args:
        name: of the stage.
        title: as the display shows it.
        images: of a step, where steps are of images.

    Attributes:
        start: in seconds of `time.monotonic`, and so are the other times.
        done: steps done at the last report.
        total: all steps; 0 before the first report.
        reported: time of the last report.
    """

    def __init__(self, name: str, title: str, images: int | None) -> None:
        self.name, self.title, self._images = name, title, images
        self.start = time.monotonic()
        self.done, self.total, self._numbers = 0, 0, dict[str, float]()
        self.reported = -math.inf
        # The pace counts from the first step, which is slow because it is traced, or comes after other work.
        self._first: tuple[float, int] | None = None

    def report(self, done: int, total: int, numbers: dict[str, float]) -> None:
        """Takes a report of steps."""
        self.reported = time.monotonic()
        if self._first is None or self._first[1] == done:
            self._first = (self.reported, done)
        self.done, self.total, self._numbers = done, total, numbers

    @property
    def pace(self) -> float | None:
        """Seconds of a step; None before the second step."""
        first, done = self._first, self.done  # another thread may report meanwhile
        return None if first is None or done <= first[1] else (self.reported - first[0]) / (done - first[1])

    @property
    def left(self) -> float | None:
        """Remaining seconds; None before the second step."""
        pace = self.pace
        return None if pace is None else pace * (self.total - self.done)

    def numbers(self) -> list[str]:
        """The speed and the latest numbers, in words."""
        pace = self.pace
        speed = [f"{self._images / pace:,.0f} images/s"] if pace and self._images is not None else []
        return [*speed, *(f"{name} {value:.3g}" for name, value in self._numbers.items())]


def span(seconds: float) -> str:
    """A time in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
