"""Two workers on loopback, each a process of its own: they end as one process does, and together."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import keras
import numpy as np
import pytest
from mistakes import network

from dfa_tf.storage.reading import digest

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 240  # seconds, for the whole of a run
Finished = tuple[int, str, str]
"""Of a worker: the exit status, stdout and stderr."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the files of a teacher and a student of two groups, 8x8 and 4x4."""
    folder = tmp_path_factory.mktemp("workers")
    for name, blocks, width in (("teacher", 2, 6), ("student", 1, 4)):
        keras.utils.set_random_seed(blocks)
        network(blocks=blocks, width=width).save(folder / f"{name}.keras")
    return folder


def free_addresses(count: int = 2) -> list[str]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def command(folder: Path, run: str, binary: str, settings: Sequence[str]) -> list[str]:
    """Of a binary in a run directory: students that start from one file, and steps of ten images."""
    usual = [
        f"teacher.path={folder}/teacher.keras",
        f"student.path={folder}/student.keras",
        *("student.start=file", "data.batch_size=10", "data.train_limit_per_class=4", "train.epochs=2", "train.learning_rate=0.01"),
        *("search.mode=joint", "search.epochs=2", "search.warmup_epochs=0", "search.learning_rate=0.01", "search.beta_learning_rate=0.05"),
        *('distil.methods={"dfa": 1.0, "kd": 1.0}', "checkpoints.every=1"),
    ]
    flags = [f"--set={setting}" for setting in (*usual, *settings)]
    return [sys.executable, f"bin/{binary}.py", "--config=bundled", f"--workdir={folder / run}", *flags]


Start = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts workers; what of them still runs in the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(run: str, binary: str, *settings: str, numbers: Sequence[int] = (0, 1), only: dict[int, list[str]] | None = None):
        addresses = free_addresses()
        for number in numbers:
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": number}}
            mine = [*settings, "strategy=multi_worker", *(only or {}).get(number, [])]
            process = subprocess.Popen(
                command(folder, run, binary, mine),
                cwd=ROOT,
                env={**os.environ, "TF_CONFIG": json.dumps(task)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append(process)
        return started[-len(numbers) :]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finished(processes: Sequence[subprocess.Popen[str]]) -> list[Finished]:
    outputs = [process.communicate(timeout=LIMIT) for process in processes]
    return [(process.returncode, out, err) for process, (out, err) in zip(processes, outputs, strict=True)]


def alone(folder: Path, run: str, binary: str, *settings: str) -> None:
    done = subprocess.run([*command(folder, run, binary, settings), "--quiet"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def weights_of(run: Path, method: str) -> list[np.ndarray]:
    return keras.models.load_model(run / "distil" / method / "student.keras").get_weights()


def alphas_of(run: Path) -> list[list[float]]:
    return [group["alpha"] for group in json.loads((run / "search/alphas.json").read_text())["groups"]]


# In the suite: all the stages in one run of both, and what is told at the start


def test_two_workers_end_as_one_process_does_and_the_chief_alone_tells(folder: Path, start: Start) -> None:
    chief, other = finished(start("two", "run"))
    assert (chief[0], other[0]) == (0, 0), chief[2] + other[2]
    assert "dfa+kd student small" in chief[1]
    assert "[7/7] report: done" in chief[2]
    assert other[1] == ""
    assert [line for line in other[2].splitlines() if not line.startswith("WARNING: the teacher is right on")] == []
    alone(folder, "one", "run")
    for method in ("plain", "dfa+kd"):
        for ours, theirs in zip(weights_of(folder / "two", method), weights_of(folder / "one", method), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    np.testing.assert_allclose(np.concatenate(alphas_of(folder / "two")), np.concatenate(alphas_of(folder / "one")), atol=1e-4)
    assert max(np.ptp(alphas) for alphas in alphas_of(folder / "two")) > 0.01, "beta has moved"
    one, two = (
        sorted(str(path.relative_to(folder / run)).partition("tfevents")[0] for path in (folder / run).rglob("*")) for run in ("one", "two")
    )
    assert one == two, "of TensorBoard's files, whose names end with the time and the process, the chief alone writes"


def test_workers_of_different_configurations_are_refused_by_both(folder: Path, start: Start) -> None:
    for status, out, err in finished(start("different", "train", only={1: ["train.epochs=3"]})):
        assert (status, out) == (2, "")
        said = [line for line in err.splitlines() if not line.startswith("loading TensorFlow")]  # a slow machine says so meanwhile
        assert said == ["train.py: all workers must have the same configuration. Received: another one at worker 1, in train.epochs"]
    assert [path.name for path in (folder / "different").iterdir()] == [".lock"]


# What takes minutes


def until(process: subprocess.Popen[str], run: Path, pattern: str) -> None:
    """Waits until a file of that pattern is there."""
    while process.poll() is None and not any(run.glob(pattern)):
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()


LONG = ("train.epochs=12", "search.epochs=12")


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Path:
    """The same on two workers, to the end."""
    addresses = free_addresses()
    processes = [
        subprocess.Popen(
            command(folder, "undisturbed", "run", [*LONG, "strategy=multi_worker"]),
            cwd=ROOT,
            env={**os.environ, "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": number}})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    assert [status for status, _, _ in finished(processes)] == [0, 0]
    return folder / "undisturbed"


def same(run: Path, other: Path) -> None:
    """Bit for bit."""
    for name in ("distil/plain/student.keras", "distil/dfa+kd/student.keras", "search/trajectory.csv", "distil/dfa+kd/metrics.jsonl"):
        assert digest(run / name) == digest(other / name), name


@pytest.mark.slow
def test_a_lost_worker_ends_the_other_and_both_go_on(folder: Path, start: Start, undisturbed: Path) -> None:
    """Each of the two is killed once, within a training and within the search."""
    for lost, pattern in ((1, "distil/plain/checkpoints/*.npz"), (0, "search/checkpoints/*/*.npz")):
        processes = start("lost", "run", *LONG)
        until(processes[lost], folder / "lost", pattern)
        processes[lost].kill()
        before = time.monotonic()
        status, _, err = finished([processes[1 - lost]])[0]
        assert status == 75, err
        assert time.monotonic() - before < 60
        last = err.splitlines()[-1]
        assert re.fullmatch(
            r"run\.py: another worker of this training has ended, .*run the same commands again, at all workers, to go on", last
        )
        assert "Traceback" not in err
    assert [status for status, _, _ in finished(start("lost", "run", *LONG))] == [0, 0]
    same(folder / "lost", undisturbed)


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_both_behind_one_step(folder: Path, start: Start, undisturbed: Path) -> None:
    for told, pattern in ((1, "distil/plain/checkpoints/*.npz"), (0, "search/checkpoints/*/*.npz"), (1, "distil/dfa+kd/checkpoints/*.npz")):
        processes = start("stopped", "run", *LONG)
        until(processes[told], folder / "stopped", pattern)
        processes[told].send_signal(signal.SIGTERM)
        for status, _, err in finished(processes):
            assert status == 75, err
            assert err.endswith("run.py: stopped. Finished work is kept: run the same command again to resume\n")
    assert [status for status, _, _ in finished(start("stopped", "run", *LONG))] == [0, 0]
    same(folder / "stopped", undisturbed)


@pytest.mark.slow
def test_a_comparison_runs_on_two_workers(folder: Path, start: Start) -> None:
    run = "compared"
    processes = start(run, "compare", "search.repetitions=2")
    for status, _, err in finished(processes):
        assert status == 0, err
    assert (folder / run / "comparison/table.md").read_text().count("\n| ") >= 3
