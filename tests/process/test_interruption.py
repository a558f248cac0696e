"""Signals: raised at once, or recorded while deferred."""

import os
import signal
from collections.abc import Iterator

import pytest

from dfa_tf.process import interruption


@pytest.fixture(autouse=True)
def _listening() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    interruption.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_once_where_nothing_is_deferred(number: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    assert not interruption.requested()


TOLD: list[bool] = []


def deferring(*numbers: int) -> None:
    """Deferred work that gets these signals; records, before the first and after each one, whether a stop is requested."""
    with interruption.deferred():
        TOLD[:] = [interruption.requested()]
        for number in numbers:
            os.kill(os.getpid(), number)
            TOLD.append(interruption.requested())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_deferred_work_is_asked_to_stop_and_stops_at_its_end_at_the_latest(number: int) -> None:
    deferring()
    assert TOLD == [False]
    with pytest.raises(KeyboardInterrupt):
        deferring(number)
    assert TOLD == [False, True]
    assert not interruption.requested()


def test_a_second_signal_stops_deferred_work_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        deferring(signal.SIGINT, signal.SIGINT)
    assert TOLD == [False, True], "the work did not come back from the second one"
