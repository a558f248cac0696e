"""Graceful interruption: a signal is recorded, and work that can be resumed stops at its next checkpoint."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from dfa_tf.process import workers


class _Stop:
    """State of the whole process, as signals are: whether they are deferred, and whether one was received."""

    deferred = False
    requested = False


def listen() -> None:
    """Handles SIGTERM and SIGINT as requests to stop, for the rest of the process.

    Outside `deferred` they raise KeyboardInterrupt at once; inside, a second signal does.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note)


def renew() -> None:
    """Restores the handler of SIGTERM, which TensorFlow replaces when it starts the server of a worker."""
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _note(number: int, frame: FrameType | None) -> None:
    if not _Stop.deferred or _Stop.requested:
        raise KeyboardInterrupt
    _Stop.requested = True


def requested() -> bool:
    """Whether any worker has received a signal to stop. The work then saves its state and raises KeyboardInterrupt.

    All workers of a training must call this at the same points.
    """
    return workers.any_of(_Stop.requested)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Lets the work inside the block decide when it stops.

    Raises:
        KeyboardInterrupt: at the end, if there was a signal that the work has not handled.
    """
    _Stop.deferred, _Stop.requested = True, False
    try:
        yield
        if requested():
            raise KeyboardInterrupt
    finally:
        _Stop.deferred = _Stop.requested = False
