"""Some mistakes in a new process, as a user makes them: the exit status, and one line on stderr."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mistakes import Mistake, members, packed, text

from dfa_tf.storage.reading import JSON_LIMIT
from dfa_tf.storage.run_directory import RunDir

ROOT = Path(__file__).resolve().parents[2]
MISTAKES = [
    Mistake("--confg=x", "Unknown command line flag 'confg'. Did you mean: config"),
    Mistake("more", "there are no arguments beside flags. Received: 'more'", "search"),
    Mistake("--set search.mode=jont", "search.mode: Input should be 'group_wise' or 'joint'. Received: 'jont'", "run"),
    Mistake("--config=INPUT/mine.py", "mine.py must be a Python file that runs. Received: SystemExit", write=text("mine.py", "exit()")),
    Mistake("--config=INPUT/mine.json", "recursion limit exceeded", "evaluate", text("mine.json", "[" * 100_000)),
    Mistake("--config=INPUT/mine.json", "a configuration must be JSON", "export", text("mine.json", b"\xff")),
    Mistake("--workdir=/dev/null/run", "the run directory must be writable. Received: /dev/null/run", "distil"),
    Mistake("--set data.batch_size=0", "data.batch_size: Input should be greater than or equal to 1. Received: 0", "compare"),
    Mistake("--workdir=", "--workdir must name a directory. Received: nothing"),
    Mistake(
        "--overwrite --set teacher.path=INPUT/t.keras",
        "a model must be a .keras file that Keras loads. Received: ... (Unable to synchronously open file",
        write=text("t.keras", packed({**members(), "model.weights.h5": b"none"})),
    ),
    Mistake("--config=INPUT/mine.json", "--config must have at most", write=text("mine.json", " " * (JSON_LIMIT + 1))),
]


def run(arguments: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bin" / arguments[0]), *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.name for mistake in MISTAKES])
def test_a_mistake_in_a_new_process(
    mistake: Mistake,
    arguments: Callable[[Mistake], list[str]],
    checked: Callable[[Mistake, str], None],
    content: Callable[[], dict[Path, bytes]],
) -> None:
    command = arguments(mistake)
    before = content()
    done = run(command)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    checked(mistake, done.stderr)
    assert content() == before


def test_a_full_disk_is_reported_and_leaves_nothing_half_written(
    arguments: Callable[[Mistake], list[str]], checked: Callable[[Mistake, str], None], tmp_path: Path
) -> None:
    """No file may grow beyond 10,000 bytes: the configuration fits, and the teacher's network does not."""
    mistake = Mistake("--workdir=INPUT/run", "teacher/model.keras must be writable, with room for it on the disk. Received: ")
    done = run(arguments(mistake), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)))
    assert done.returncode == 2, done.stderr
    checked(mistake, done.stderr)
    written = {path.name for path in RunDir(tmp_path / "run").path.rglob("*") if path.is_file()}
    assert written == {".lock", "config.json", "stage.json"}
