"""Run directories that are locked, that cannot be written or whose artifacts are damaged; devices and workers that are not there."""

import fcntl
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
import tensorflow as tf
from mistakes import Mistake, members, packed

BINARIES = ("run", "train", "search", "distil", "evaluate", "export", "compare")
HELD: list[IO[str]] = []


def hold(folder: Path) -> None:
    """Locks INPUT/run as a run would."""
    (folder / "run").mkdir()
    HELD.append(open(folder / "run" / ".lock", "w"))  # noqa: SIM115 (closed after the case)
    fcntl.flock(HELD[-1], fcntl.LOCK_EX)


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    yield
    while HELD:
        HELD.pop().close()


def below(*names: str) -> Callable[[Path], object]:
    """Makes INPUT/run with something else where a run has these files or directories."""

    def write(folder: Path) -> None:
        for name in names:
            path = folder / "run" / name.rstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                path.mkdir()
                (path / "mine.txt").write_text("of someone else", encoding="utf-8")
            else:
                path.write_text("of someone else", encoding="utf-8")

    return write


def teacher(result: str, network: bytes | None = None) -> Callable[[Path], object]:
    """Makes INPUT/run with a teacher of this result.json."""

    def write(folder: Path) -> None:
        (folder / "run" / "teacher").mkdir(parents=True)
        (folder / "run" / "teacher" / "model.keras").write_bytes(packed(members()) if network is None else network)
        (folder / "run" / "teacher" / "result.json").write_text(result, encoding="utf-8")

    return write


def undone(result: str) -> Mistake:
    return Mistake("--workdir=INPUT/run", "model.keras is not there, or not done: run bin/train.py", "distil", teacher(result))


BUSY = "another process is working in the run directory"
WRITABLE, ROOM = "the run directory must be writable. Received: ", " must be writable, with room for it on the disk. Received: "
MADE = "model.keras was made with another configuration, which differs in: "
OTHERWISE = "teacher holds a stage of another configuration, which differs in: "
MISTAKES = [
    *(Mistake("--workdir=INPUT/run", f"{BUSY} ... run", binary, hold) for binary in BINARIES),
    Mistake("--workdir=/proc/run", f"{WRITABLE}/proc/run"),
    Mistake("--workdir=/dev/null", f"{WRITABLE}/dev/null"),
    Mistake("--workdir=/dev/full/run", f"{WRITABLE}/dev/full/run"),
    Mistake("--workdir=INPUT/run", f"{WRITABLE} ... run ... Is a directory", write=below(".lock/")),
    Mistake("--workdir=INPUT/run", f"run/teacher{ROOM} ... File exists", write=below("teacher")),
    Mistake("--workdir=INPUT/run", f"run/config.json{ROOM} ... Is a directory", write=below("config.json/")),
    *map(undone, ("", "{", '{"config_hash": "a', "[]", "null", "5", "[" * 100_000, " " * (2 << 20), '{"config": 5}', "\0")),
    Mistake("--workdir=INPUT/run", f"{MADE}data, seed", "search", teacher('{"config": {}, "config_hash": "a"}')),
    Mistake("--workdir=INPUT/run", f"{MADE}data", "distil", teacher('{"config_hash": "a", "config": {"seed": 0}}')),
    Mistake("--workdir=INPUT/run", f"{OTHERWISE}data, seed", "train", teacher('{"config_hash": "a", "config": {}}')),
    Mistake("--set seed=1", f"{OTHERWISE}seed. Use another --workdir, or --overwrite to replace it"),
    Mistake("--set data.batch_size=5", f"{OTHERWISE}data.batch_size. Use another --workdir", "run"),
    Mistake("--set seed=1", f"{MADE}seed", "distil"),
    Mistake("", "student.keras is not there, or not done: run bin/distil.py", "export"),
    Mistake("--workdir=INPUT/run", "model.keras is not there, or not done: run bin/train.py", "evaluate"),
    Mistake("--workdir=INPUT/run", "model.keras is not there, or not done: run bin/train.py", "search"),
    *(Mistake("", 'TF_CONFIG must be unset, or JSON as {"cluster":', binary, environment=("TF_CONFIG", "workers")) for binary in BINARIES),
    Mistake("", "TF_CONFIG must be unset, or JSON as ... Received: ''", environment=("TF_CONFIG", "")),
    Mistake("", "TF_CONFIG must be unset, or JSON as ... Received: 'null'", environment=("TF_CONFIG", "null")),
    Mistake("", "TF_CONFIG must be unset, or JSON as ... Received: '[[[", environment=("TF_CONFIG", "[" * 100_000)),
    Mistake("", "TF_CONFIG must be unset, or JSON as ... \"x\"}'", environment=("TF_CONFIG", '{"cluster": "x"}')),
    Mistake("--set strategy=multi_worker", "strategy=multi_worker needs TF_CONFIG in the environment, as ... Received: None", "run"),
    Mistake("--set strategy=multi_worker", "needs TF_CONFIG ... Received: '{}'", "compare", environment=("TF_CONFIG", "{}")),
    Mistake("INPUT", "a run directory holds a config.json, which its first stage writes. Received: ... which holds none", "report"),
    Mistake("WORLD/ran", "a run directory holds a config.json ... ran', which is no directory", "report"),
    Mistake("WORLD/run INPUT/none", "a run directory holds a config.json ... none', which is no directory", "report"),
    Mistake("INPUT/run", "config.json must be a configuration of this version of dfa_tf. a conf", "report", below("config.json")),
    Mistake("INPUT/run", "config.json", "report", below("config.json/")),
    Mistake("WORLD/run --output=/proc/page.html", "/proc/page.html must be writable, with room for it on the disk", "report"),
    Mistake("WORLD/run --output=INPUT/run/config.html/page.html", "page.html must be writable", "report", below("config.html")),
    Mistake("--set distil.discretise=true", "alphas.json is not there, or not done: run bin/search.py", "distil"),
]  # fmt: skip


@pytest.mark.parametrize(
    "mistake", MISTAKES, ids=[f"{number} {mistake.binary} {mistake.told[:60]}" for number, mistake in enumerate(MISTAKES)]
)
def test_a_directory_that_cannot_be_used_is_refused(mistake: Mistake, refused: Callable[[Mistake], None]) -> None:
    refused(mistake)


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="there is a GPU")
@pytest.mark.parametrize("binary", BINARIES)
def test_a_gpu_is_refused_where_there_is_none(binary: str, refused: Callable[[Mistake], None]) -> None:
    refused(Mistake("--set strategy=gpu", "strategy=gpu needs a GPU that TensorFlow can use. Received: a machine with none", binary))


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", packed(members())[:3000]], ids=["empty", "start", "cut"])
def test_a_damaged_teacher_of_the_run_is_reported(damage: bytes, world: Path, tmp_path: Path, refused: Callable[[Mistake], None]) -> None:
    """Its result.json says that it is done, and with this configuration."""
    result = (world / "run" / "teacher" / "result.json").read_text(encoding="utf-8")
    assert json.loads(result)["config_hash"]
    flags = "--workdir=INPUT/run --set distil.aggregation=last"
    refused(Mistake(flags, "a model must be a .keras file. Received: ", "distil", teacher(result, damage)))
