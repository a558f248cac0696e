"""Progress where output is no terminal: a line now and then, with the time left."""

import pytest

from dfa_tf import progress
from dfa_tf.progress import Reporter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the reporter sees, in seconds; set its one element."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_tell_stage_step_time_left_and_numbers(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(2)
    reporter.skipped("teacher")
    clock[0] = 100.0
    with reporter.stage("search") as report:
        clock[0] = 110.0
        report(1, 11, {"loss": 2.5})
        clock[0] = 111.0
        report(2, 11, {"loss": 2.0})
        clock[0] = 120.0
        report(6, 11, {"loss": 1.0})
    assert capsys.readouterr().err.splitlines() == [
        "[1/2] teacher: done before",
        "[2/2] search: starting",
        "[2/2] search: step 1/11, time left not known yet, loss 2.5",
        # Five steps took ten seconds since the first, and five are left; the line of step 2 came too soon to show.
        "[2/2] search: step 6/11, 10 s left, loss 1",
        "[2/2] search: done in 20.0 s",
    ]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(1, quiet=True)
    with reporter.stage("search") as report:
        report(1, 2, {"loss": 1.0})
    reporter.skipped("search")
    captured = capsys.readouterr()
    assert captured.err + captured.out == ""
