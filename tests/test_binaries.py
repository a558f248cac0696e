"""Every binary end to end on the bundled images, with networks of the least size; and what it says of mistakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import pytest
from calls import Done, call_binary
from PIL import Image

from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import Config
from dfa_tf.export.formats import FORMATS
from dfa_tf.storage.reading import digest
from dfa_tf.storage.run_directory import RunDir

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("train", "search", "distil", "evaluate", "export")
CONFIG = """
from dfa_tf.config import Config, DataConfig, SearchConfig, StudentConfig, TeacherConfig, TrainConfig

def get_config() -> Config:
    return Config(
        data=DataConfig(batch_size=10, train_limit_per_class=4),
        teacher=TeacherConfig(name="wrn_10_1"),
        student=StudentConfig(name="wrn_10_1"),
        train=TrainConfig(epochs=2),
        search=SearchConfig(mode="joint", epochs=1),
    )
"""


@pytest.fixture(scope="module")
def call():
    """Calls a binary's main in this process."""
    return call_binary


@pytest.fixture(scope="module")
def made(call: Callable[..., Done], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.py and the run directory `run` that the five stage binaries have filled, one after the other."""
    folder = tmp_path_factory.mktemp("binaries")
    (folder / "config.py").write_text(CONFIG)
    for binary in STAGES:
        done = call(binary, f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}")
        assert done.status == 0, done.err
    return folder


@pytest.fixture
def again(made: Path, tmp_path: Path) -> tuple[str, str, Path]:
    """The flags of a fresh copy of that run directory, and its path."""
    run = shutil.copytree(made / "run", tmp_path / "run")
    return f"--config={made / 'config.py'}", f"--workdir={run}", run


def test_the_stages_write_what_is_promised(made: Path) -> None:
    run = made / "run"
    wanted = [
        "config.json",
        *(f"teacher/{name}" for name in ("model.keras", "metrics.jsonl", "result.json")),
        *(f"search/{name}" for name in ("alphas.json", "trajectory.csv", "alphas.png", "result.json")),
        *(f"distil/{method}/{name}" for method in ("plain", "dfa") for name in ("student.keras", "metrics.jsonl", "result.json")),
        *(f"evaluation/{name}" for name in ("predictions.npz", "result.json")),
        "export/saved_model/saved_model.pb",
        "export/parity.json",
    ]
    assert [name for name in wanted if not (run / name).is_file()] == []
    assert [path for path in run.rglob(".*") if path.name != ".lock"] == [], "temporary files were left"
    assert Config.from_json((run / "config.json").read_text()).student.name == "wrn_10_1"
    assert (run / "search/alphas.png").read_bytes().startswith(b"\x89PNG")


def test_results_have_the_promised_keys(made: Path) -> None:
    keys = {
        "test_accuracy", "test_accuracy_best", "test_loss", "seed", "steps", "seconds", "examples_per_second",
        "peak_memory_mb", "parameters", "config_hash", "versions",
    }  # fmt: skip
    for directory in ("teacher", "distil/plain", "distil/dfa"):
        result = json.loads((made / "run" / directory / "result.json").read_text())
        assert keys <= result.keys()
        rows = [json.loads(line) for line in (made / "run" / directory / "metrics.jsonl").read_text().splitlines()]
        assert len(rows) == 2
        assert result["test_accuracy"] == rows[-1]["test_accuracy"]
        assert result["test_accuracy_best"] == max(row["test_accuracy"] for row in rows)
        assert result["steps"] == 8
    assert {"dfa/group1", "dfa/group2", "dfa/group3", "cross_entropy", "total_loss"} <= rows[-1].keys()
    alphas = json.loads((made / "run/search/alphas.json").read_text())
    assert alphas["config_hash"] == json.loads((made / "run/search/result.json").read_text())["config_hash"]


def test_students_load_with_plain_keras_and_have_built_in_layers_only(made: Path) -> None:
    for method in ("plain", "dfa"):
        student = keras.models.load_model(made / f"run/distil/{method}/student.keras")
        assert {type(layer).__module__.split(".")[0] for layer in student.layers} == {"keras"}
        assert student.output.dtype == "float32"


def test_run_skips_what_is_done_and_prints_the_table(call: Callable[..., Done], again: tuple[str, str, Path]) -> None:
    config, workdir, run = again
    assert call("run", config, workdir, "--quiet").status == 0  # writes the report
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    done = call("run", config, workdir)
    assert done.status == 0, done.err
    assert done.err.count("done before") == 7
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"} == before
    for text in (
        "teacher wrn_10_1",
        "plain student",
        "dfa student",
        "899 test images",
        "saved_model",
        "noise of one run",
        "report/index.html",
    ):
        assert text in done.out


def test_the_report_shows_what_the_stages_have_written(call: Callable[..., Done], again: tuple[str, str, Path]) -> None:
    _, _, run = again
    done = call("report", run)
    assert (done.status, done.err, done.out) == (0, "", f"  {run}/report/index.html\n")
    page = (run / "report/index.html").read_text()
    result = json.loads((run / "distil/dfa/result.json").read_text())
    for text in (
        f"{result['test_accuracy']:.2%}",
        f"{result['parameters']:,}",
        result["config_hash"],
        "saved_model",
        "Most frequent confusions",
    ):
        assert text in page
    assert "What is missing" not in page
    assert (run / "report/alphas.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_of_a_run_is_made_anew_where_the_run_has_changed(call: Callable[..., Done], again: tuple[str, str, Path]) -> None:
    config, workdir, run = again
    assert call("run", config, workdir, "--quiet").status == 0
    assert call("distil", config, workdir, "--quiet", "--set", 'distil.methods={"kd": 0.5}').status == 0
    assert "kd student" not in (run / "report/index.html").read_text()
    assert call("run", config, workdir, "--quiet").status == 0
    assert "kd student" in (run / "report/index.html").read_text()


def test_several_runs_are_reported_on_one_page(call: Callable[..., Done], made: Path, again: tuple[str, str, Path], tmp_path: Path) -> None:
    done = call("report", again[2], made / "run", f"--output={tmp_path / 'both.html'}")
    assert (done.status, done.out) == (0, f"  {tmp_path / 'both.html'}\n")
    assert (tmp_path / "both.html").read_text().count("Confusion matrix of the dfa student</figcaption>") == 2
    assert not (made / "run" / "report").exists()


def test_a_run_at_work_can_be_reported_on(call: Callable[..., Done], again: tuple[str, str, Path]) -> None:
    with RunDir(again[2]).lock():
        assert call("report", again[2]).status == 0


def test_one_search_serves_another_distillation(call: Callable[..., Done], again: tuple[str, str, Path]) -> None:
    config, workdir, run = again
    before = {name: digest(run / name) for name in ("teacher/model.keras", "search/alphas.json", "distil/dfa/student.keras")}
    done = call(
        "run", config, workdir, "--quiet", "--set", 'distil.methods={"kd": 0.5, "dfa": null}', "--set", "distil.aggregation=average"
    )
    assert (done.status, done.err) == (0, "")
    assert {name: digest(run / name) for name in before} == before
    assert "dfa+kd student" in done.out
    assert (run / "distil/dfa+kd/student.keras").is_file()


def test_the_same_seed_searches_the_same_weights(call: Callable[..., Done], again: tuple[str, str, Path]) -> None:
    config, workdir, run = again
    before = (run / "search/alphas.json").read_bytes(), (run / "search/trajectory.csv").read_bytes()
    shutil.rmtree(run / "search")
    assert call("search", config, workdir, "--quiet").status == 0
    assert ((run / "search/alphas.json").read_bytes(), (run / "search/trajectory.csv").read_bytes()) == before


def test_another_configuration_is_refused_by_field_and_nothing_is_touched(call: Callable[..., Done], again: tuple[str, str, Path]) -> None:
    config, workdir, run = again
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = call("train", config, workdir, "--set", "train.epochs=1")
    assert done.status == 2
    assert "train.epochs" in done.err
    assert "--overwrite" in done.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_mistake_does_not_void_a_result_that_is_to_be_overwritten(call: Callable[..., Done], again: tuple[str, str, Path]) -> None:
    config, workdir, run = again
    (run.parent / "bad.json").write_text('{"schema": 1}')
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = call("distil", config, workdir, "--overwrite", "--set", f"distil.aggregation={run.parent / 'bad.json'}")
    assert done.status == 2
    assert "bad.json is not a file of aggregation weights" in done.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_overwrite_replaces_what_does_not_fit(call: Callable[..., Done], again: tuple[str, str, Path]) -> None:
    config, workdir, run = again
    teacher = digest(run / "teacher/model.keras")
    done = call("train", config, workdir, "--overwrite", "--set", "distil.epochs=1")
    assert done.status == 0
    assert "teacher: done before" in done.err
    assert digest(run / "teacher/model.keras") == teacher
    assert json.loads((run / "distil/plain/result.json").read_text())["steps"] == 4


def test_a_teacher_file_and_a_weights_file_of_elsewhere(call: Callable[..., Done], made: Path, tmp_path: Path) -> None:
    weights = AggregationWeights.load(made / "run/search/alphas.json")
    weights.model_copy(update={"seed": 5}).save(tmp_path / "mine.json")
    teacher = made / "run/teacher/model.keras"
    flags = [
        f"--config={made / 'config.py'}", f"--workdir={tmp_path / 'run'}", "--set", f"teacher.path={teacher}",
        "--set", f"distil.aggregation={tmp_path / 'mine.json'}", "--set", f"student.path={teacher}", "--set", "train.epochs=1",
    ]  # fmt: skip
    done = call("run", *flags, "--quiet")
    assert done.status == 0, done.err
    assert digest(tmp_path / "run/teacher/model.keras") == digest(teacher)
    result = json.loads((tmp_path / "run/teacher/result.json").read_text())
    assert result["test_accuracy"] == json.loads((made / "run/teacher/result.json").read_text())["test_accuracy"]
    assert not (tmp_path / "run/search").exists()


MISTAKES = [
    (["--set", "search.epoch=3"], "search.epochs"),
    (["--set", "search.epochs=many"], "'many'"),
    (["--set", "student.name=wrn_10_q"], "Did you mean 'wrn_10_"),
    (["--set", "train.learning_rate=-1"], "train.learning_rate"),
    (["--set", "seed"], "key.path=value"),
    (["--confg=x"], "confg"),
    (["--overwrite=perhaps"], "perhaps"),
    (["--model=x"], "'model'"),
    (["more"], "'more'"),
    (["--config=nothing.py"], "nothing.py"),
    (["--workdir=/dev/null/run"], "/dev/null/run"),
    (["--set", "teacher.path=missing.keras"], "missing.keras"),
    (["--set", "data.batch_size=1000"], "1000"),
    (["--set", 'student.options={"colour": 1}'], "colour"),
    (["--set", 'student.options={"num_classes": 5}'], "num_classes"),
    (["--set", 'student.options={"std": [0]}'], "wrn_10_1 cannot be built"),
    (["--set", 'distil.options={"dfa": {"distance": "l3"}}'], "'l3'"),
    (["--set", "distil.aggregation=missing.json"], "missing.json"),
    (["--set", "data.batch_size=30"], "20 images"),
    (["--set", 'teacher.groups=[["group1_block1_ad"]]'], "group1_block1_add"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "named"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_a_mistake_is_told_in_one_line(call: Callable[..., Done], made: Path, tmp_path: Path, arguments: list[str], named: str) -> None:
    done = call("run", f"--config={made / 'config.py'}", f"--workdir={tmp_path / 'run'}", "--quiet", *arguments)
    assert done.status == 2
    assert named in done.err
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"] == []


def test_a_stage_names_the_binary_that_must_run_before(call: Callable[..., Done], made: Path, tmp_path: Path) -> None:
    for binary, before in (
        ("search", "bin/train.py"),
        ("distil", "bin/train.py"),
        ("evaluate", "bin/train.py"),
        ("export", "bin/distil.py"),
    ):
        done = call(binary, f"--config={made / 'config.py'}", f"--workdir={tmp_path / 'run'}")
        assert done.status == 2
        assert before in done.err


def test_a_stage_takes_nothing_that_is_not_done_or_was_done_otherwise(call: Callable[..., Done], again: tuple[str, str, Path]) -> None:
    config, workdir, run = again
    done = call("distil", config, workdir, "--overwrite", "--set", "search.gamma_st=7")
    assert done.status == 2
    assert "differs in: search.gamma_st" in done.err
    (run / "search/result.json").unlink()
    done = call("distil", config, workdir, "--overwrite", "--set", "distil.ce_weight=0.5")
    assert done.status == 2
    assert "run bin/search.py" in done.err


def test_a_training_that_diverges_is_told_and_leaves_no_model(call: Callable[..., Done], made: Path, tmp_path: Path) -> None:
    flags = ["--set", "train.learning_rate=100", "--set", "train.weight_decay=100"]
    done = call("train", f"--config={made / 'config.py'}", f"--workdir={tmp_path / 'run'}", "--quiet", *flags)
    assert done.status == 2
    assert "diverged" in done.err
    assert [path.name for path in (tmp_path / "run").rglob("*.keras")] == []


@pytest.mark.slow
def test_a_search_over_seeds_tells_its_spread_and_keeps_the_first(call: Callable[..., Done], again: tuple[str, str, Path]) -> None:
    config, workdir, run = again
    first = (run / "search/alphas.json").read_text()
    flags = [config, workdir, "--overwrite", "--set", "search.repetitions=2"]
    done = call("search", *flags)
    assert done.status == 0
    before, now = json.loads(first), json.loads((run / "search/alphas.json").read_text())
    assert now["groups"] == before["groups"]
    rows = json.loads((run / "search/result.json").read_text())["spread"]
    for row, group in zip(rows, now["groups"], strict=True):  # the teacher has one block a group
        assert (row["block"], row["mean"]) == (group["blocks"][0], 1.0)
    assert "alpha over 2 searches with other seeds" in done.out
    assert call("search", *flags).out == done.out, "also of a search that was done before"


def test_weights_are_given_in_the_configuration_and_discretised(call: Callable[..., Done], again: tuple[str, str, Path]) -> None:
    flags = [*again[:2], "--overwrite", "--quiet"]
    assert call("distil", *flags, "--set", "distil.aggregation=[[1], [1], [1]]", "--set", "distil.discretise=true").status == 0
    done = call("distil", *flags, "--set", "distil.aggregation=[[0.5, 0.5], [1], [1]]")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "one for each block, [1, 1, 1] by group" in done.err


def test_compare_makes_a_table_of_methods_and_seeds(call: Callable[..., Done], made: Path, tmp_path: Path) -> None:
    flags = [f"--config={made / 'config.py'}", f"--workdir={tmp_path / 'run'}", "--quiet"]
    done = call("compare", *flags, "--methods=plain", "--row=soft: kd; distil.ce_weight=0.1", "--seeds=0")
    assert done.status == 0, done.err
    assert [line for line in done.err.splitlines() if not line.startswith("WARNING: the teacher is right on")] == []
    for text in ("plain", "soft", "table.md", "table.html"):
        assert text in done.out
    for mistake, told in (
        ("--seeds=0,x", "whole numbers"),
        ("--methods=kdd", "Did you mean 'kd'"),
        ("--baseline=x", "the baseline must be a row"),
    ):
        failed = call("compare", *flags, mistake)
        assert (failed.status, failed.err.count("\n")) == (2, 1)
        assert told in failed.err


def test_further_formats_are_exported_beside_those_that_are_there(call: Callable[..., Done], again: tuple[str, str, Path]) -> None:
    config, workdir, run = again
    saved_model = (run / "export/saved_model/saved_model.pb").stat().st_mtime_ns
    done = call("export", config, workdir, "--formats=onnx,keras", "--quiet")
    assert (done.status, done.err) == (0, "")
    for text in ("agreement", "student", "saved_model", "keras", "onnx", "100.00%", "on 256 test images; accuracy is on 899"):
        assert text in done.out
    assert (run / "export/saved_model/saved_model.pb").stat().st_mtime_ns == saved_model, "it was not made again"
    assert sorted(path.name for path in (run / "export").iterdir()) == [
        *("parity.json", "result.json", "saved_model", "student.keras", "student.onnx")
    ]  # fmt: skip
    parity = json.loads((run / "export/parity.json").read_text())
    assert list(parity) == ["student", "saved_model", "keras", "onnx"]
    for row in parity.values():
        assert row["agreement"] == 1
        assert row["max_difference"] < 1e-4
        assert row["accuracy"] == parity["student"]["accuracy"]
    written = (run / "export/parity.json").stat().st_mtime_ns
    again_done = call("export", config, workdir, "--formats=keras")
    assert "done before" in again_done.err
    assert again_done.out == done.out
    assert (run / "export/parity.json").stat().st_mtime_ns == written


def test_a_file_out_of_tolerance_is_not_kept_and_the_others_are(
    call: Callable[..., Done], again: tuple[str, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workdir, run = again
    earlier = run / "export/student.keras"
    earlier.write_text("of an earlier student")
    monkeypatch.setitem(FORMATS, "keras", FORMATS["keras"]._replace(agreement=1.1))  # more than there can be
    for _ in range(2):  # done now, and done before
        done = call("export", config, workdir, "--formats=keras,saved_model", "--quiet")
        assert done.status == 2
        assert done.err.count("\n") == 1
        assert "not exported: keras, for it agrees with the student on 100.0% of 256 images" in done.err
        assert earlier.read_text() == "of an earlier student"
        assert list(json.loads((run / "export/parity.json").read_text())) == ["student", "saved_model"]
        assert [path.name for path in (run / "export").glob(".*")] == []
    monkeypatch.undo()
    assert call("export", config, workdir, "--formats=saved_model", "--quiet").status == 0
    assert call("export", config, workdir, "--formats=keras", "--quiet").status == 0
    assert sorted(keras.models.load_model(earlier).output) == ["logits", "probabilities"]


def test_a_wrong_format_is_told_and_nothing_is_touched(call: Callable[..., Done], again: tuple[str, str, Path]) -> None:
    config, workdir, run = again
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = call("export", config, workdir, "--formats=keras,onyx")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "Received: 'onyx'. Did you mean 'onnx'?" in done.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_predict_names_the_classes_of_image_files(call: Callable[..., Done], made: Path, tmp_path: Path) -> None:
    images = [str(tmp_path / name) for name in ("large.png", "right.png")]
    for path, side in zip(images, (20, 8), strict=True):
        Image.new("RGB", (side, side), (0, 80, 200)).save(path)
    done = call("predict", f"--model={made / 'run/export/saved_model'}", *images, "--top=2")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert (lines[0], lines[3]) == (f"{images[0]} (20x20, resized to 8x8)", f"{images[1]} (8x8)")
    assert lines[1:3] == lines[4:6], "one colour all over"
    (row, _) = json.loads(call("predict", "--json", f"--model={made / 'run/export/saved_model'}", *images).out)
    assert (row["image"], row["width"], row["height"], len(row["classes"])) == (images[0], 20, 20, 5)
    first = row["classes"][0]
    assert lines[1] == f"  {first['probability']:8.2%}  {first['name']}"
    assert first["name"] == str(first["number"]), "the classes of the digits"
    assert sorted((each["probability"] for each in row["classes"]), reverse=True) == [each["probability"] for each in row["classes"]]


def test_a_mistake_of_predict_is_told_in_one_line(call: Callable[..., Done], made: Path, tmp_path: Path) -> None:
    model, image = f"--model={made / 'run/export/saved_model'}", str(tmp_path / "image.png")
    Image.new("L", (8, 8)).save(image)
    for arguments, told in (
        ([model], "at least one image"),
        ([image], "a model and"),
        (["--model=missing.onnx", image], "missing.onnx"),
        ([f"--model={image}", image], "a model is a SavedModel directory"),
        ([model, image, str(tmp_path / "missing.png")], "missing.png"),
        ([model, image, "--top=0"], "--top=0"),
        ([model, image, "--config=bundled"], "config"),
    ):
        done = call("predict", *arguments)
        assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
        assert told in done.err
    assert "python bin/predict.py --model" in call("predict", "--help").out


@pytest.mark.parametrize("binary", ["run", "compare", "tune", *STAGES])
def test_help_tells_what_the_binary_does(call: Callable[..., Done], binary: str) -> None:
    done = call(binary, "--help")
    assert done.status == 0
    for text in (f"python bin/{binary}.py --config", "--workdir=DIR", "--set=KEY.PATH=VALUE", "--overwrite", "--quiet", "75"):
        assert text in done.out


def test_a_mistake_in_a_process_of_its_own() -> None:
    command = [sys.executable, "bin/run.py", "--config=bundled", "--set", "search.mode=jont"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "run.py: search.mode: Input should be 'group_wise' or 'joint'. Received: 'jont'\n"


def test_sigterm_ends_with_75_at_a_checkpoint_that_another_configuration_does_not_take(
    call: Callable[..., Done], made: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable, "bin/train.py", f"--config={made / 'config.py'}", f"--workdir={tmp_path / 'run'}", "--set", "train.epochs=100000",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if ", step " in line:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    assert process.returncode == 75, [*lines, rest]
    ours = ("loading TensorFlow, ", "getting ready, ", "[1/2] teacher: ")  # the first two where the machine is slow
    assert [line for line in lines if not line.startswith(ours)] == [], "TensorFlow's start-up noise is shown"
    assert rest.splitlines()[-1] == "train.py: stopped. Finished work is kept: run the same command again to resume"
    assert not (tmp_path / "run/teacher/result.json").exists()
    (checkpoint,) = (tmp_path / "run/teacher/checkpoints").glob("*.npz")
    done = call("train", *command[2:], "--set", "train.learning_rate=0.01")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "holds a stage of another configuration, which differs in: train.learning_rate." in done.err
    assert checkpoint.exists()


@pytest.mark.slow
def test_a_training_that_was_killed_ends_as_one_that_was_not() -> None:
    """With SIGKILL, in a process of its own: a small form of the stress test."""
    command = [sys.executable, "tests/stress/kill_resume.py", "--kills=1", "--stages=teacher"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("teacher: killed 1 times")
    assert done.stdout.endswith("the same, bit for bit\n")
