"""The status: set, replaced, and restored."""

import time
from collections.abc import Iterator

import pytest

from dfa_tf.process import status


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time that is noted, in seconds; set its one element."""
    now = [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with status.doing("a test"):
        yield now


def test_what_is_begun_is_shown_with_its_time(clock: list[float]) -> None:
    status.begin("training")
    assert status.now() == ("training", 10.0)


def test_afterwards_it_is_what_it_was_before_also_after_an_error(clock: list[float]) -> None:
    status.begin("epoch 1")
    clock[0] = 20.0
    with status.doing("evaluating"):
        assert status.now() == ("evaluating", 20.0)
        clock[0] = 30.0
        with pytest.raises(KeyError), status.doing("reading"):
            raise KeyError(status.now().since)
        assert status.now() == ("evaluating", 20.0)
    assert status.now() == ("epoch 1", 10.0)


def test_a_function_says_what_it_does_at_each_call(clock: list[float]) -> None:
    @status.doing("checking")
    def check() -> status.Activity:
        return status.now()

    assert check() == ("checking", 10.0)
    clock[0] = 40.0
    assert check() == ("checking", 40.0)
