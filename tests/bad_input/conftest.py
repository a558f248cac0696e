"""One mistake among correct inputs: the call of a binary, and the checks of its refusal."""

import importlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mistakes import CONFIG, Mistake, network

from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import Config
from dfa_tf.networks.features import FeatureModel
from dfa_tf.pipeline.pipeline import run_stages
from dfa_tf.pipeline.stages import TeacherStage
from dfa_tf.storage.run_directory import RunDir

ALONE = ("describe", "predict", "report")
"""Binaries without a run directory."""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with right inputs, and the run directory `run` whose teacher stage is done."""
    folder = tmp_path_factory.mktemp("world")
    teacher = network(blocks=2)
    teacher.save(folder / "teacher.keras")
    network().save(folder / "student.keras")
    (folder / "config.json").write_text(CONFIG.replace("WORLD", str(folder)), encoding="utf-8")
    AggregationWeights.by_rule("average", FeatureModel.from_model(teacher)).save(folder / "alphas.json")
    run = RunDir(folder / "run")
    with run.lock():
        run_stages(Config.from_json((folder / "config.json").read_bytes()), run, [TeacherStage], quiet=True)
    return folder


@pytest.fixture
def content(world: Path, tmp_path: Path) -> Callable[[], dict[Path, bytes]]:
    """Every file of WORLD and INPUT but the lock, which may be made."""

    def content() -> dict[Path, bytes]:
        files = (path for folder in (world, tmp_path) for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
        return {path: path.read_bytes() for path in files}

    return content


@pytest.fixture(scope="session")
def checked() -> Callable[[Mistake, str], None]:
    """Checks that stderr holds one line, of bounded length, with all that it must contain."""

    def checked(mistake: Mistake, err: str) -> None:
        assert err.startswith(f"{mistake.binary}.py: "), err
        assert (err.count("\n"), err[-1:]) == (1, "\n"), err
        assert "Traceback" not in err
        assert len(err) < 1500, f"{len(err)} characters"
        rest = err
        for words in mistake.told.split(" ... "):
            _, found, rest = rest.partition(words)
            assert found, f"{words!r} is not (or not there) in: {err}"

    return checked


@pytest.fixture
def arguments(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Mistake], list[str]]:
    """Writes the inputs of a mistake, sets its environment, and returns its command line."""

    def arguments(mistake: Mistake) -> list[str]:
        if mistake.write is not None:
            mistake.write(tmp_path)
        if mistake.environment is not None:
            monkeypatch.setenv(*mistake.environment)
        flags = mistake.flags.replace("WORLD", str(world)).replace("INPUT", str(tmp_path))
        run = [] if mistake.binary in ALONE else [f"--config={world / 'config.json'}", f"--workdir={world / 'run'}", "--quiet"]
        return [f"{mistake.binary}.py", *run, *shlex.split(flags)]

    return arguments


@pytest.fixture
def refused(
    arguments: Callable[[Mistake], list[str]],
    content: Callable[[], dict[Path, bytes]],
    checked: Callable[[Mistake, str], None],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Mistake], None]:
    """Calls a binary's main in this process and checks that it refuses: status 2, one line, and no file is changed."""

    def refused(mistake: Mistake) -> None:
        monkeypatch.setattr(sys, "argv", arguments(mistake))
        monkeypatch.chdir(tmp_path)  # so that a run directory of no name would be seen
        before = content()
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(f"dfa_tf.bin.{mistake.binary}").main()
        err = capfd.readouterr().err
        assert stopped.value.code == 2, err
        checked(mistake, err)
        assert content() == before

    return refused
