"""Progress: lines where output is no terminal, a live display where it is one, the time left, and never a long silence."""

import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from dfa_tf.display import views
from dfa_tf.display.progress import Reporter
from dfa_tf.process import status


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the reporter sees, in seconds; set its one element."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


class Terminal(io.StringIO):
    """Says that it is a terminal."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What was written, without what only moves the cursor or colours; the live display is drawn many times."""
        return [line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())) if line.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Terminal]:
    """Puts a terminal of so many columns in the place of stderr, in an environment without a word about terminals but what is given."""

    def put(columns: int = 100, **environment: str) -> Terminal:
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "30", **environment}.items():
            monkeypatch.setenv(name, value)
        made = Terminal()
        monkeypatch.setattr(sys, "stderr", made)
        return made

    return put


# Lines


def test_lines_tell_stage_step_time_left_and_numbers(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(["teacher", "search"]) as reporter:
        reporter.skipped("teacher")
        clock[0] = 100.0
        with reporter.stage("search", images=50) as report:
            clock[0] = 110.0
            report(1, 11, {"loss": 2.5})
            clock[0] = 111.0
            report(2, 11, {"loss": 2.0})
            status.begin("epoch 2/3")
            clock[0] = 120.0
            report(6, 11, {"loss": 1.0, "accuracy": 0.5})
    assert capsys.readouterr().err.splitlines() == [
        "[1/2] teacher: done before",
        "[2/2] search: starting",
        "[2/2] search: step 1/11, time left not known yet, loss 2.5",
        # Five steps took ten seconds since the first, and five are left; the line of step 2 came too soon to show.
        "[2/2] search: epoch 2/3, step 6/11, 10 s left, 25 images/s, loss 1, accuracy 0.5",
        "[2/2] search: done in 20.0 s",
    ]


def test_the_time_left_of_all_is_told_once_every_name_to_come_was_timed(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {"teacher": 5, "search": 100, "dfa": 60, "plain": 20}
    names = ["teacher", "search", "dfa", "plain", "search", "dfa", "plain"]
    with Reporter(names) as reporter:
        for number, name in enumerate(names):
            if number == 4:
                reporter.skipped(name, label="seed 1, ")
                continue
            with reporter.stage(name, label=f"seed {number // 4}, ") as report:
                report(0, 10, {})
                clock[0] += seconds[name] / 2
                report(5, 10, {})
                clock[0] += seconds[name] / 2
    told = [line.partition("step 5/10, ")[2] for line in capsys.readouterr().err.splitlines() if "step 5/10" in line]
    # From the first plain student on each name to come was timed: 10 s of it, 100 s, 60 s and once more its own 20 s.
    assert told == ["50 s left", "30 s left", "10 s left (3 min 10 s of all)", "30 s left (50 s of all)", "10 s left"]


def test_a_stage_that_was_shared_once_may_be_so_again(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(["search", "search", "dfa", "search"]) as reporter:
        with reporter.stage("search"):
            clock[0] += 100
        reporter.skipped("search")
        with reporter.stage("dfa") as report:
            report(0, 2, {})
            clock[0] += 10
            report(1, 2, {})
    # 10 s of this one, and 50 s, the mean of 100 s and none.
    assert "10 s left (1 min 0 s of all)" in capsys.readouterr().err


def test_silence_is_broken_by_what_is_being_done(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(["teacher"]) as reporter:
        with status.doing("reading the images"):
            clock[0] = 7.0
            reporter._view.break_silence()
            clock[0] = 8.0
            reporter._view.break_silence()
            clock[0] = 15.0
            reporter._view.break_silence()
        with reporter.stage("teacher") as report:
            clock[0] = 100.0
            reporter._view.break_silence()
            report(1, 3, {"loss": 1.0})
            clock[0] = 104.0
            report(2, 3, {"loss": 0.5})
            clock[0] = 108.0
            reporter._view.break_silence()  # a step takes long
            with status.doing("evaluating"):
                clock[0] = 190.0
                reporter._view.break_silence()
    assert capsys.readouterr().err.splitlines() == [
        "reading the images, 8 s so far",
        "[1/1] teacher: starting",
        "[1/1] teacher: starting, 1 min 25 s so far",
        "[1/1] teacher: step 1/3, time left not known yet, loss 1",
        "[1/1] teacher: step 2/3, 4 s left, loss 0.5",
        "[1/1] teacher: evaluating, 1 min 22 s so far",
        "[1/1] teacher: done in 2 min 55 s",
    ]


def test_a_thread_breaks_the_silence_within_ten_seconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Here within two, so that the test need not wait."""
    monkeypatch.setattr(views, "SILENCE", 0.5)
    assert views.SILENCE + 1 < 10
    with Reporter(), status.doing("waiting"):
        time.sleep(1.3)
    assert capsys.readouterr().err == "waiting, 1 s so far\n"


def test_something_about_the_run_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter() as reporter:
        for _ in range(2):
            reporter.say("train.precision=auto: float32 [on a CPU] :smile:")
    assert capsys.readouterr().err == "train.precision=auto: float32 [on a CPU] :smile:\n"


def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(views, "SILENCE", 0)
    with Reporter(["search"], quiet=True) as reporter:
        reporter.say("something")
        with reporter.stage("search") as report:
            report(1, 2, {"loss": 1.0})
            time.sleep(1.2)
        reporter.skipped("search")
    captured = capsys.readouterr()
    assert captured.err + captured.out == ""


def test_a_stage_shows_itself_where_nothing_is_around_it(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(["search", "dfa"])
    reporter.skipped("search")
    with reporter.stage("dfa"):
        pass
    assert capsys.readouterr().err.splitlines() == ["[1/2] search: done before", "[2/2] dfa: starting", "[2/2] dfa: done in 0.0 s"]


def test_a_stage_that_fails_is_not_said_to_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), Reporter(["dfa"]) as reporter, reporter.stage("dfa"):
        raise KeyError
    assert capsys.readouterr().err == "[1/1] dfa: starting\n"


# The live display


@pytest.fixture
def live(clock: list[float], terminal: Callable[..., Terminal]) -> Callable[..., Terminal]:
    """A terminal in which a stage was shown at step 6 of 11, ten seconds after the first, and what was said before and after it."""

    def live(columns: int = 100, **environment: str) -> Terminal:
        shown = terminal(columns, **environment)
        with Reporter(["teacher", "search"]) as reporter:
            reporter.skipped("teacher")
            with reporter.stage("search", label="seed 1, ", images=50) as report:
                clock[0] += 10
                report(1, 11, {"loss": 2.5})
                status.begin("epoch 2/3")
                clock[0] += 10
                report(6, 11, {"loss": 1.0})
                draw()
        return shown

    return live


def draw() -> None:
    """Waits for what is drawn four times a second."""
    time.sleep(0.6)


def test_a_terminal_shows_stage_bar_and_what_is_told_of_steps(live: Callable[..., Terminal]) -> None:
    lines = live().lines()
    bars = [line for line in lines if line.startswith("[2/2] seed 1, search ") and line.endswith("55%")]
    assert {len(line) for line in bars} == {100}
    assert any(re.fullmatch(r"[-\\|/] epoch 2/3, step 6/11, 10 s left, 25 images/s, loss 1", line) for line in lines)
    assert lines[0] == "[1/2] teacher: done before"
    assert "[2/2] seed 1, search: done in 20.0 s" in lines


def test_a_narrow_terminal_wraps_what_is_told_and_keeps_the_bar(live: Callable[..., Terminal]) -> None:
    lines = live(40).lines()
    assert max(map(len, lines)) <= 40
    assert [line for line in lines if line.startswith("[2/2] seed 1, search ") and line.endswith("55%")]
    assert any(line.endswith("images/s, loss 1") for line in lines)


def test_no_color_is_respected(live: Callable[..., Terminal]) -> None:
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9;]*m")
    assert colour.search(live().getvalue())
    assert not colour.search(live(NO_COLOR="1").getvalue())


def test_a_dumb_terminal_has_lines(live: Callable[..., Terminal]) -> None:
    dumb = live(TERM="dumb")
    assert "\x1b" not in dumb.getvalue()
    assert "[2/2] seed 1, search: starting" in dumb.lines()


def test_what_is_no_step_is_told_with_its_time(terminal: Callable[..., Terminal]) -> None:
    shown = terminal(100)
    with Reporter(["export"]) as reporter:
        for what in ("loading TensorFlow", "reading the images"):
            with status.doing(what):
                draw()
        with reporter.stage("export"), status.doing("writing student.onnx"):
            draw()
    lines = shown.lines()
    for what in ("loading TensorFlow", "reading the images", "writing student.onnx"):
        assert any(re.fullmatch(rf"[-\\|/] {what}, [01] s so far", line) for line in lines), what
    assert any(line.startswith("[1/1] export ") for line in lines)


def test_a_pause_leaves_the_terminal_as_it_is(terminal: Callable[..., Terminal]) -> None:
    shown = terminal(100)
    with Reporter() as reporter:
        with reporter.paused():
            before = shown.getvalue()
            time.sleep(0.4)
            assert shown.getvalue() == before
            assert before.endswith("\x1b[?25h") or "\x1b[?25h" in before, "the cursor is shown again"
            shown.write("a table\n")
        with status.doing("going on"):
            draw()
    after = shown.getvalue().partition("a table\n")[2]
    assert "going on" in after
    assert not re.match(r"(\x1b\[\?25l)?\r?(\x1b\[2K)?\x1b\[1A", after), "nothing of the table is erased"


def test_what_goes_to_stdout_stays_there_where_that_is_no_terminal(
    terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, out = terminal(100), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    with Reporter():
        print("a result")
    assert out.getvalue() == "a result\n"
    assert "a result" not in shown.getvalue()


# Processes of their own


def in_a_terminal(code: str, *, seconds: float = 60) -> tuple[int, str]:
    """Runs Python code with stderr in a terminal; gives its exit status and what was shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # it has ended
            break
        shown += part
        if b"kill me" in shown:
            process.send_signal(signal.SIGTERM)
    os.close(ours)
    return process.wait(timeout=10), shown.decode()


def test_what_is_held_back_does_not_hold_the_display_back() -> None:
    code, shown = in_a_terminal(
        "import os, time\n"
        "from dfa_tf.process import startup, status\n"
        "from dfa_tf.display.progress import Reporter\n"
        "with Reporter(), startup.silent_stderr(), status.doing('converting'):\n"
        "    os.write(2, b'noise')\n"
        "    time.sleep(0.6)\n"
    )
    assert code == 0
    assert "converting" in shown
    assert "noise" not in shown


def test_a_signal_ends_the_process_at_once() -> None:
    start = time.monotonic()
    code, _ = in_a_terminal(
        "import time\n"
        "from dfa_tf.process import status\n"
        "from dfa_tf.display.progress import Reporter\n"
        "with Reporter(), status.doing('kill me'):\n"
        "    time.sleep(50)\n"
    )
    assert code == -signal.SIGTERM
    assert time.monotonic() - start < 20


def test_the_display_loads_no_tensorflow(fresh_process: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = fresh_process("import sys, dfa_tf.display.progress; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_a_run_without_a_terminal_writes_no_control_sequences(fresh_process: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = fresh_process(
        "from dfa_tf.display.progress import Reporter\n"
        "with Reporter(['dfa']) as reporter, reporter.stage('dfa') as report:\n"
        "    report(1, 2, {'loss': 1.0})\n"
    )
    lines = ["[1/1] dfa: starting", "[1/1] dfa: step 1/2, time left not known yet, loss 1", "[1/1] dfa: done in 0.0 s"]
    assert (done.stdout, done.stderr.splitlines()) == ("", lines)
