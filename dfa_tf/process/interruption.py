"""Stopping at a good moment: a signal is noted, and work that can be gone on with ends at its next checkpoint."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from dfa_tf.process import workers


class _Stop:
    """Signals are of the whole process, and so is this: whether they are to be noted, and whether one was."""

    deferred = False
    requested = False


def listen() -> None:
    """Takes SIGTERM and SIGINT for a request to stop, for the rest of the process.

    Outside of `deferred` they raise KeyboardInterrupt at once, and so does a second one inside of it.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note)


def renew() -> None:
    """Puts the handler of SIGTERM back in its place, which TensorFlow takes when it becomes the server of a worker."""
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _note(number: int, frame: FrameType | None) -> None:
    if not _Stop.deferred or _Stop.requested:
        raise KeyboardInterrupt
    _Stop.requested = True


def requested() -> bool:
    """Whether a signal waits for the work to stop, at any of the workers. The work then saves its state and raises KeyboardInterrupt.

    All workers of a training must ask at the same points of it.
    """
    return workers.any_of(_Stop.requested)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Lets the work inside decide when it stops.

    Raises:
        KeyboardInterrupt: at the end, if a signal came that the work did not answer.
    """
    _Stop.deferred, _Stop.requested = True, False
    try:
        yield
        if requested():
            raise KeyboardInterrupt
    finally:
        _Stop.deferred = _Stop.requested = False
