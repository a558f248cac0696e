"""The search over fields: trials are ranked on the validation split, go on after a kill, and end in a configuration to run."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from calls import call_binary
from matplotlib.text import Text
from mistakes import network
from PIL import Image

from dfa_tf.config import Choice, Config, Float
from dfa_tf.config.experiments import load
from dfa_tf.display import figures
from dfa_tf.errors import UserError
from dfa_tf.pipeline.pipeline import run_stages
from dfa_tf.pipeline.stages import DistilStage, TeacherStage
from dfa_tf.pipeline.tune import tune
from dfa_tf.pipeline.tune.space import check_space
from dfa_tf.pipeline.tune.trials import Trial, notes, ranked, shown_values
from dfa_tf.storage.reading import digest, read_result
from dfa_tf.storage.run_directory import RunDir

pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`:UserWarning")
ROOT = Path(__file__).resolve().parents[2]
LEARNING_RATE = {"distil.learning_rate": {"kind": "float", "low": 1e-3, "high": 0.1, "log": True}}


def result(accuracy: float, loss: float = 1.0) -> dict[str, float]:
    return {"validation_accuracy": accuracy, "validation_loss": loss}


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def accuracy_of(row: dict[str, str]) -> float:
    return float(row["validation_accuracy"] or -1)


@pytest.fixture(scope="module", autouse=True)
def _eagerly() -> Iterator[None]:
    """A training of few steps takes longer to trace than to make."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """100 digits, of which 40 are held out; a teacher and a student of the least size from files, two steps of KD."""
    folder = tmp_path_factory.mktemp("networks")
    network(blocks=2).save(folder / "teacher.keras")
    network().save(folder / "student.keras")
    return Config().override(
        [
            *("data.batch_size=30", "data.train_limit_per_class=10", "data.validation_fraction=0.4", "data.search_fraction=0.3"),
            *(f"teacher.path={folder / 'teacher.keras'}", f"student.path={folder / 'student.keras'}"),
            *("train.epochs=1", "search.epochs=1", "search.mode=joint", 'distil.methods={"kd": 1.0}', "tune.tuner=random"),
        ]
    )


@pytest.fixture
def with_space(base: Config) -> Callable[..., Config]:
    """The base configuration with a space and further overrides."""

    def with_space(space: dict[str, Any], *overrides: str) -> Config:
        return base.override([*overrides, f"tune.space={json.dumps(space)}"])

    return with_space


def choice(*values: Any) -> dict[str, Any]:
    return {"kind": "choice", "values": list(values)}


# Trials


def test_the_best_trial_comes_first_and_failed_ones_last() -> None:
    trials = [
        Trial(1, {}, failed="it diverged"),
        Trial(2, {}, [result(0.5, 0.1)]),
        Trial(3, {}, [result(0.6, 0.2)]),
        Trial(4, {}, [result(0.6, 0.3)]),
    ]
    assert [trial.number for trial in ranked(trials, "validation_accuracy")] == [3, 4, 2, 1]
    assert [trial.number for trial in ranked(trials, "validation_loss")] == [2, 3, 4, 1]


def test_a_trial_counts_by_the_mean_over_its_seeds() -> None:
    trial = Trial(7, {"train.momentum": 0.12345678, "data.flip": True, "distil.aggregation": "last"}, [result(0.5, 1.0), result(0.54, 2.0)])
    assert trial.mean("validation_accuracy") == pytest.approx(0.52)
    assert trial.deviation("validation_accuracy") == pytest.approx(0.04 / np.sqrt(2))
    assert shown_values(trial, "validation_loss") == {
        "trial": "7",
        "validation loss": "1.5000 ± 0.7071",
        "validation %": "52.00 ± 2.83",
        "train.momentum": "0.1235",
        "data.flip": "true",
        "distil.aggregation": "last",
    }


def test_a_failed_trial_is_shown_as_failed_with_its_reason(base: Config) -> None:
    failed = Trial(2, {"data.flip": False}, failed="the training diverged")
    assert list(shown_values(failed, "validation_accuracy").values()) == ["2", "failed", "failed", "false"]
    assert notes([Trial(1, {}, [result(0.5)]), failed], base)[1:] == ["Failed: trial 2: the training diverged"]


def test_the_figure_has_a_panel_for_each_field_and_marks_the_best_and_what_failed() -> None:
    space = {"train.momentum": Float(low=0.1, high=0.9), "distil.aggregation": Choice(values=["last", [[1.0]]])}
    tried: Sequence[figures.Trial] = [
        ({"train.momentum": 0.2, "distil.aggregation": "last"}, 0.5),
        ({"train.momentum": 0.3, "distil.aggregation": "last"}, None),
        ({"train.momentum": 0.4, "distil.aggregation": [[1.0]]}, 0.4),
    ]
    for largest, best in ((True, [0.5, 0.5]), (False, [0.5, 0.4])):
        figure = figures.trials(tried, space, objective="validation_accuracy", largest=largest)
        course, momentum, aggregation = figure.axes
        lines = {line.get_label(): [list(line.get_xdata()), list(line.get_ydata())] for line in course.lines}
        assert (lines["trial"], lines["best so far"], lines["failed"][0]) == ([[1, 3], [0.5, 0.4]], [[1, 3], best], [2])
        assert [list(axes.lines[0].get_xdata()) for axes in (momentum, aggregation)] == [[0.2, 0.4], [0, 1]]
        assert {"train.momentum", "last", "[[1.0]]", "validation_accuracy"} <= {text.get_text() for text in figure.findobj(Text)}
    assert figures.png(figures.trials([({}, 0.5)], {}, objective="validation_loss", largest=False)).startswith(b"\x89PNG")


# Mistakes


@pytest.mark.parametrize(
    ("space", "overrides", "told"),
    [
        ({}, [], "tune.space must name a field and its values. Received: {}"),
        (LEARNING_RATE, ["data.validation_fraction=0"], "tuning chooses by the validation split, and there is none"),
        ({"teacher.name": choice("wrn_16_1", "wrn_16_2")}, [], "must decide something of a student. Received: 'teacher.name'"),
        ({"checkpoints.every": choice(10, 20)}, [], "Received: 'checkpoints.every', which decides nothing here"),
        ({"search.lambda_": choice(0.1, 0.2)}, [], "Received: 'search.lambda_', which decides nothing here"),
        ({"train.learning_rate": choice(0.1, 0.2)}, ["distil.learning_rate=0.1"], "Received: 'train.learning_rate'"),
        ({"distil.options.kd.temprature": choice(1, 2)}, [], "unknown option of kd. Received: 'temprature'. Did you mean 'temperature'"),
        ({"data.flip": choice(True, False)}, ["data.batch_size=100"], "data.batch_size must not exceed the 60 images"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(
    with_space: Callable[..., Config], tmp_path: Path, space: dict[str, Any], overrides: list[str], told: str
) -> None:
    with pytest.raises(UserError) as caught:
        tune(with_space(space, *overrides), RunDir(tmp_path), quiet=True)
    assert told in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_space_is_right() -> None:
    check_space(load("bundled_tune"))


# Tuning


@pytest.fixture(scope="module")
def tuned(base: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """Four trials of learning rates and of the weight of KD, of which one diverges; the configuration and the run directory."""
    space = {**LEARNING_RATE, "train.weight_decay": choice(0.0, 1e30), "distil.methods.kd": choice(0.0, 1.0)}
    config = base.override([f"tune.space={json.dumps(space)}", "tune.trials=4"])
    run = RunDir(tmp_path_factory.mktemp("tuned"))
    with run.lock():
        tune(config, run, quiet=True)
    return config, run.path


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "tuning" / name).read_bytes() for name in ("trials.csv", "table.md", "tuning.png")}


def test_every_trial_is_in_the_tables_and_trials_that_diverge_are_told(tuned: tuple[Config, Path]) -> None:
    config, run = tuned
    rows = read(run / "tuning/trials.csv")
    assert [row["trial"] for row in rows] == ["1", "2", "3", "4"]
    wild = [row for row in rows if row["train.weight_decay"] == "1e+30"]
    assert 0 < len(wild) < 4
    for row in rows:
        if row in wild:
            assert "diverged" in row["failed"]
            assert (row["validation_accuracy"], row["students"]) == ("", "")
            continue
        trained = read_result(run / row["students"])
        assert accuracy_of(row) == trained["validation_accuracy"]
        assert float(row["validation_loss"]) == trained["validation_loss"]
        config.trial({"distil.learning_rate": float(row["distil.learning_rate"])})
    table = (run / "tuning/table.md").read_text(encoding="utf-8")
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[1] == "failed" for line in lines] == sorted(row in wild for row in rows)
    best = max(rows, key=accuracy_of)
    assert lines[0].startswith(f"| {best['trial']} | {100 * accuracy_of(best):.2f} | ")
    assert all(f"Failed: trial {row['trial']}: {row['failed']}" in table for row in wild)
    assert (run / "tuning/tuning.png").read_bytes().startswith(b"\x89PNG")


def test_no_trial_looks_at_the_test_set(tuned: tuple[Config, Path]) -> None:
    _, run = tuned
    files = [*run.glob("tuning/students/*/distil/*/result.json"), *run.glob("tuning/students/*/distil/*/metrics.jsonl")]
    assert files
    for file in files:
        assert "validation_accuracy" in file.read_text(encoding="utf-8")
        assert "test_" not in file.read_text(encoding="utf-8")


def test_the_best_configuration_gives_the_very_numbers_of_its_trial(tuned: tuple[Config, Path], tmp_path: Path) -> None:
    _, run = tuned
    best = max(read(run / "tuning/trials.csv"), key=accuracy_of)
    config = load(str(run / "tuning/best.json"))
    assert config.distil.learning_rate == float(best["distil.learning_rate"])
    assert config.tune.space == {}
    run_stages(config, RunDir(tmp_path), [TeacherStage, DistilStage], quiet=True)
    again = read_result(RunDir(tmp_path).student(config.method))
    assert (again["validation_accuracy"], again["validation_loss"]) == (accuracy_of(best), float(best["validation_loss"]))
    assert digest(RunDir(tmp_path).student(config.method) / "student.keras") == digest(run / best["students"] / "student.keras")


def test_it_goes_on_where_it_stopped_and_ends_with_the_same_tables(tuned: tuple[Config, Path], tmp_path: Path) -> None:
    config, undisturbed = tuned
    run = RunDir(tmp_path)
    tune(config.override(["tune.trials=3"]), run, quiet=True)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.keras")}
    assert len(read(tmp_path / "tuning/trials.csv")) == 3
    assert stamps
    tune(config, run, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "nothing is trained twice"
    assert results(tmp_path) == results(undisturbed)


def test_the_binary_shows_the_trials_and_says_how_to_go_on(tuned: tuple[Config, Path], tmp_path: Path) -> None:
    config, before = tuned
    shutil.copytree(before, tmp_path / "run")
    (tmp_path / "mine.json").write_text(config.to_json(), encoding="utf-8")
    done = call_binary("tune", f"--config={tmp_path / 'mine.json'}", f"--workdir={tmp_path / 'run'}")
    assert done.status == 0, done.err
    for text in ("random: 4 of 4 trials", "validation %", "failed", "Ranked by validation_accuracy", "best.json --workdir="):
        assert text in done.out
    assert "trial 1" in done.err
    assert "done before" in done.err
    assert "Trial" not in done.out + done.err, "KerasTuner is silent"


def test_where_every_trial_fails_the_reason_is_told(with_space: Callable[..., Config], tmp_path: Path) -> None:
    config = with_space({"data.batch_size": choice(61, 62)}, "tune.trials=2")
    (tmp_path / "mine.json").write_text(config.to_json(), encoding="utf-8")
    done = call_binary("tune", f"--config={tmp_path / 'mine.json'}", f"--workdir={tmp_path / 'run'}", "--quiet")
    assert (done.status, done.out) == (2, "")
    # What stands before it is a warning of the teacher, which hardly was trained.
    assert "all 2 trials failed, the first one for: data.batch_size must not exceed the 60 images" in done.err.splitlines()[-1]
    assert [row["failed"] != "" for row in read(tmp_path / "run/tuning/trials.csv")] == [True, True]
    assert sorted(path.name for path in (tmp_path / "run/tuning").iterdir() if path.is_file()) == ["table.md", "trials.csv"]


@pytest.mark.slow
def test_one_search_serves_trials_that_differ_in_the_distillation_alone(with_space: Callable[..., Config], tmp_path: Path) -> None:
    space = {"distil.ce_weight": choice(0.5, 1.0), "search.gamma_ts": choice(0.5, 1.0)}
    config = with_space(space, "tune.trials=3", 'distil.methods={"dfa": 1.0}', "distil.aggregation=searched")  # of four that there are
    tune(config, RunDir(tmp_path), quiet=True)
    assert len(list(tmp_path.glob("tuning/searches/*/alphas.json"))) == 2
    assert len(list(tmp_path.glob("tuning/students/*/distil/dfa/student.keras"))) == 3


def test_a_trial_of_several_seeds_has_a_student_of_each_on_the_same_images(with_space: Callable[..., Config], tmp_path: Path) -> None:
    config = with_space(LEARNING_RATE, "tune.trials=1", "tune.seeds=2", "tune.objective=validation_loss", "seed=3")
    tune(config, RunDir(tmp_path), quiet=True)
    (row,) = read(tmp_path / "tuning/trials.csv")
    trained = [read_result(tmp_path / student) for student in row["students"].split(" ")]
    assert [each["seed"] for each in trained] == [3, 4]
    assert [each["config"]["data"]["seed"] for each in trained] == [3, 3]
    assert float(row["validation_loss"]) == pytest.approx((trained[0]["validation_loss"] + trained[1]["validation_loss"]) / 2)


@pytest.mark.slow
def test_hyperband_trains_each_student_for_its_epochs(with_space: Callable[..., Config], tmp_path: Path) -> None:
    config = with_space(LEARNING_RATE, "tune.tuner=hyperband", "tune.factor=2", "distil.epochs=2")
    tune(config, RunDir(tmp_path), quiet=True)
    rows = read(tmp_path / "tuning/trials.csv")
    # Brackets of 2 trials of one epoch, of which the better one goes on to two, and of 2 of two epochs.
    assert [row["distil.epochs"] for row in rows] == ["1", "1", "2", "2", "2"]
    assert [read_result(tmp_path / row["students"])["steps"] for row in rows] == [2, 2, 4, 4, 4]
    assert rows[2]["distil.learning_rate"] == max(rows[:2], key=accuracy_of)["distil.learning_rate"]


@pytest.mark.slow
def test_the_choice_does_not_depend_on_the_labels_of_the_test_set(base: Config, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (120, 8, 8)).astype(np.uint8)
    for name, turn in (("right", 0), ("wrong", 1)):
        for number, image in enumerate(pixels):
            part, label = ("train", number % 10) if number < 100 else ("test", (number + turn) % 10)
            folder = tmp_path / name / part / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:03}.png")
    losses, tables = [], []
    for name in ("right", "wrong"):
        images = ["data.name=image_folder", f"data.data_dir={tmp_path / name}", 'data.options={"channels": 1}', "tune.trials=2"]
        run = RunDir(tmp_path / f"run-{name}")
        tune(base.override([*images, f"tune.space={json.dumps(LEARNING_RATE)}"]), run, quiet=True)
        losses.append(read_result(run.teacher)["test_loss"])
        tables.append(results(run.path))
    assert losses[0] != losses[1], "the labels do differ"
    assert tables[0] == tables[1]


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["bayesian", "hyperband"])
def test_a_tuning_that_was_killed_ends_as_one_that_was_not(tuner: str, base: Config, tmp_path: Path) -> None:
    space = {**LEARNING_RATE, "distil.methods.kd": {"kind": "float", "low": 0.1, "high": 10.0, "log": True}}
    settings = [
        f"tune.tuner={tuner}",
        "tune.trials=5",
        "tune.initial_trials=2",
        "train.epochs=3",
        "data.batch_size=10",
        "checkpoints.every=1",
    ]
    (tmp_path / "mine.json").write_text(base.override([*settings, f"tune.space={json.dumps(space)}"]).to_json(), encoding="utf-8")

    def command(run: str) -> list[str]:
        return [sys.executable, "bin/tune.py", f"--config={tmp_path / 'mine.json'}", f"--workdir={tmp_path / run}"]

    def started(run: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(command(run), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)

    subprocess.run(command("undisturbed"), cwd=ROOT, check=True, capture_output=True)
    for trial in (1, 2, 4):
        with started("killed") as process:
            assert process.stderr is not None
            assert any(f"trial {trial}: kd: starting" in line for line in process.stderr)
            time.sleep(0.7)
            process.kill()
    with started("killed") as process:
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 0, said
    assert results(tmp_path / "killed") == results(tmp_path / "undisturbed")
