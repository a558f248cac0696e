"""A small form of the stress test: a real process, killed with SIGKILL, and run again."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_a_search_that_was_killed_ends_as_one_that_was_not() -> None:
    command = [sys.executable, "tests/stress/kill_resume.py", "--kills=1", "--stages=search_joint"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("search_joint: killed 1 times")
    assert done.stdout.endswith("the same, bit for bit\n")
