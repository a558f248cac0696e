"""TensorBoard's files: read back they hold what metrics.jsonl, trajectory.csv and alphas.json hold, once, also after a kill."""

import csv
import io
import json
import logging
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from killing import KillAfter, KilledError
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dfa_tf.aggregation.search import search
from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import CheckpointConfig, Config
from dfa_tf.display import figures
from dfa_tf.distillation.distil import distil
from dfa_tf.images.splits import Images, Split, Splits
from dfa_tf.networks.features import FeatureModel
from dfa_tf.pipeline.pipeline import run_stages
from dfa_tf.pipeline.stages import DistilStage, PlainStage, SearchStage, Stage, TeacherStage
from dfa_tf.process import workers
from dfa_tf.storage.run_directory import RunDir
from dfa_tf.training.checkpoints import Checkpoints
from dfa_tf.training.context import StageContext
from dfa_tf.training.tensorboard import EventLog

Tiny = Callable[..., FeatureModel]
Points = dict[str, dict[int, float]]


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return accumulator.Reload()


def points(folder: Path) -> Points:
    """The values by tag and epoch; a second value of an epoch fails."""
    events = read(folder)
    values = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    for tag, each in values.items():
        assert len({event.step for event in each}) == len(each), f"{tag} has an epoch twice"
    return {tag: {event.step: event.value for event in each} for tag, each in values.items()}


def picture(folder: Path, tag: str, epoch: int) -> np.ndarray:
    """The pixels of a picture, `[H, W, 3]`."""
    (found,) = (event for event in read(folder).Images(tag) if event.step == epoch)
    with Image.open(io.BytesIO(found.encoded_image_string)) as image:
        assert image.size == (found.width, found.height)
        return np.asarray(image.convert("RGB"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / "log", {"seed": 3, "data": {"name": "a|b"}}, batch_size=20)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


# What is written


def test_the_numbers_of_a_training_are_grouped_by_what_they_are(clock: list[float], tmp_path: Path) -> None:
    log = EventLog(tmp_path, {}, batch_size=20)
    clock[0] = 4.0
    row = {
        "total_loss": 2.5, "cross_entropy": 2.0, "kd": 0.25, "margin/group2": 0.125, "accuracy": 0.5, "learning_rate": 0.0625,
        "gradient_norm": 8.0, "test_accuracy": 0.75, "test_loss": 1.5, "validation_accuracy": 0.375, "validation_loss": 1.75,
    }  # fmt: skip
    log.training_epoch({"epoch": 7, **row}, steps=10)
    expected = {
        "losses/total": 2.5, "losses/cross_entropy": 2.0, "losses/kd": 0.25, "losses/margin/group2": 0.125, "losses/test": 1.5,
        "losses/validation": 1.75, "accuracy/train": 0.5, "accuracy/test": 0.75, "accuracy/validation": 0.375,
        "learning_rate/weights": 0.0625, "training/gradient_norm": 8.0,
        # Ten steps of twenty images in four seconds.
        "training/examples_per_second": 50.0,
    }  # fmt: skip
    assert points(tmp_path) == {tag: {7: value} for tag, value in expected.items()}


def test_the_numbers_of_a_search_are_grouped_by_what_they_are(clock: list[float], tmp_path: Path) -> None:
    log = EventLog(tmp_path, {}, batch_size=20)
    clock[0] = 2.0
    alphas = {1: [0.25, 0.75], 2: [1.0]}
    rows = [
        {"epoch": 3, "group": group, "block": f"b{place}", "alpha": alpha, "entropy": group / 2}
        for group, each in alphas.items()
        for place, alpha in enumerate(each)
    ]
    means = {
        "train/loss": 4.0, "train/group1/st": 1.0, "train/group2/st": 2.0, "train/learning_rate": 0.5, "train/gradient_norm": 8.0,
        "search/loss": 3.0, "search/regulariser": 0.25, "search/group1/ts": 0.75, "search/learning_rate": 0.0625,
    }  # fmt: skip
    log.search_epoch(rows, rows, means, steps=5)
    expected = {
        "losses/train/total": 4.0, "losses/train/st/group1": 1.0, "losses/train/st/group2": 2.0, "losses/search/total": 3.0,
        "losses/search/regulariser": 0.25, "losses/search/ts/group1": 0.75, "learning_rate/weights": 0.5, "learning_rate/beta": 0.0625,
        "training/gradient_norm": 8.0, "training/examples_per_second": 50.0, "alpha/group1/block1": 0.25, "alpha/group1/block2": 0.75,
        "alpha/group2/block1": 1.0, "entropy/group1": 0.5, "entropy/group2": 1.0,
    }  # fmt: skip
    assert points(tmp_path) == {tag: {3: value} for tag, value in expected.items()}


def test_the_picture_of_alpha_has_a_row_for_each_group_and_a_square_for_each_block(log: EventLog, tmp_path: Path) -> None:
    earlier = [{"epoch": 9, "group": 1, "block": f"b{i}", "alpha": alpha, "entropy": 0.0} for i, alpha in enumerate([0.0, 1.0, 0.0])]
    rows = [{"epoch": 2, "group": 2, "block": f"b{i}", "alpha": alpha, "entropy": 0.0} for i, alpha in enumerate([1.0, 0.0])]
    log.search_epoch(rows, [*earlier, *rows], {}, steps=1)
    pixels = picture(tmp_path / "log", "alpha", 2)
    rows_seen, columns_seen = (pixels.shape[axis] // count for axis, count in ((0, 2), (1, 3)))
    centres = pixels[rows_seen // 2 :: rows_seen, columns_seen // 2 :: columns_seen].tolist()
    # Viridis goes from a dark violet to yellow; where a group has no block there is nothing.
    dark, yellow, white = [68, 1, 84], [253, 231, 36], [255, 255, 255]
    assert centres == [[dark, yellow, dark], [yellow, dark, white]]


def test_the_configuration_is_a_table(log: EventLog, tmp_path: Path) -> None:
    for epoch in (1, 2):
        log.training_epoch({"epoch": epoch, "total_loss": 1.0}, steps=1)
    (event,) = read(tmp_path / "log").Tensors("configuration")
    text = tf.make_ndarray(event.tensor_proto).item().decode()
    assert text.splitlines() == ["| field | value |", "| --- | --- |", "| seed | 3 |", r"| data.name | a\|b |"]


def test_what_is_predicted_is_shown_at_its_epoch(log: EventLog, tmp_path: Path) -> None:
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1) * np.ones((1, 8, 8, 1), np.uint8)
    split = Split(Images(images, np.array([0, 1, 1, 2])), np.arange(4))
    answers = tf.constant([[9.0, 0, 0], [0, 9.0, 0], [9.0, 0, 0], [0, 0, 9.0]])  # the third one is wrong
    log.predictions(5, lambda batch: tf.gather(answers, tf.cast(batch[:, 0, 0, 0], tf.int32)), split, ["a", "b", "c"])
    expected = {
        "predictions/confusion_matrix": figures.confusion_matrix(np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]]), ["a", "b", "c"]),
        "predictions/samples": figures.sample_predictions(images, [0, 1, 1, 2], [0, 1, 0, 2], ["a", "b", "c"]),
    }
    for tag, figure in expected.items():
        with Image.open(io.BytesIO(figures.png(figure))) as image:
            np.testing.assert_array_equal(picture(tmp_path / "log", tag, 5), np.asarray(image.convert("RGB")))


def test_a_point_that_is_there_is_not_written_again(log: EventLog, tmp_path: Path) -> None:
    """As where a kill came between an epoch's files and its checkpoint; the last record of the first file is cut off."""
    log.training_epoch({"epoch": 1, "total_loss": 4.0}, steps=1)
    log.training_epoch({"epoch": 2, "total_loss": 2.0}, steps=1)
    log.training_epoch({"epoch": 3, "total_loss": 1.0}, steps=1)
    (file,) = (tmp_path / "log").iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    again = EventLog(tmp_path / "log", {"seed": 3}, batch_size=20)
    for epoch, loss in ((2, 2.0), (3, 1.0), (4, 0.5)):
        again.training_epoch({"epoch": epoch, "total_loss": loss}, steps=1)
    assert points(tmp_path / "log")["losses/total"] == {1: 4.0, 2: 2.0, 3: 1.0, 4: 0.5}
    assert len(read(tmp_path / "log").Tensors("configuration")) == 1


def test_of_several_workers_the_chief_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(workers._Process, "cluster", workers.Cluster(("a:1", "b:2"), 1))
    EventLog(tmp_path / "log", {}, batch_size=20).training_epoch({"epoch": 1, "total_loss": 1.0}, steps=1)
    assert not (tmp_path / "log").exists()


def test_files_that_cannot_be_written_are_warned_about_once(log: EventLog, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log").write_text("of someone else")
    with caplog.at_level(logging.WARNING, "dfa_tf.training.tensorboard"):
        for epoch in (1, 2):
            log.training_epoch({"epoch": epoch, "total_loss": 1.0}, steps=1)
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith(f"no more events are written for TensorBoard: {tmp_path / 'log'} is not writable (")
    assert (tmp_path / "log").read_text() == "of someone else"


FULL = """
from pathlib import Path
from dfa_tf.process import startup
startup.load_tensorflow()
from dfa_tf.errors import UserError
from dfa_tf.training.tensorboard import EventLog
log = EventLog(Path({folder!r}), {{}}, 20)
try:
    for epoch in range(1000):
        log.training_epoch({{"epoch": epoch, "total_loss": 1.0}}, 1)
except UserError as error:
    print(error)
"""


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """No file may grow beyond 10,000 bytes."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # noqa: E731
    command = [sys.executable, "-c", FULL.format(folder=str(tmp_path / "log"))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'log'} must be writable, with room for it on the disk. Received: ")
    assert done.stdout.endswith("File too large\n"), done.stdout


# The stages


CONFIG = [
    "data.batch_size=10", "data.train_limit_per_class=4", "teacher.name=wrn_10_1", "student.name=wrn_10_1", "train.epochs=2",
    "search.epochs=2", "search.warmup_epochs=1", "search.mode=group_wise",
]  # fmt: skip


def stages(run: Path, names: Sequence[type[Stage]], *settings: str, overwrite: bool = False) -> None:
    run_dir = RunDir(run)
    with run_dir.lock():
        run_stages(Config().override([*CONFIG, *settings]), run_dir, names, overwrite=overwrite, quiet=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of every stage that trains."""
    run = tmp_path_factory.mktemp("tensorboard") / "run"
    stages(run, [TeacherStage, PlainStage, SearchStage, DistilStage])
    return run


def test_every_training_is_a_run_of_its_own(made: Path) -> None:
    written = {str(path.parent.relative_to(made / "tensorboard")) for path in (made / "tensorboard").rglob("*tfevents*")}
    assert written == {"teacher", "plain", "dfa", "search/group1", "search/group2", "search/group3"}


@pytest.mark.parametrize(("name", "directory"), [("teacher", "teacher"), ("plain", "distil/plain"), ("dfa", "distil/dfa")])
def test_the_points_are_the_lines_of_the_metrics(made: Path, name: str, directory: str) -> None:
    found, rows = points(RunDir(made).events(name)), lines(made / directory / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2]
    own = ["losses/dfa/group1", "losses/dfa/group2", "losses/dfa/group3"] if name == "dfa" else []
    tags = {
        "losses/total", "losses/cross_entropy", "losses/test", "accuracy/train", "accuracy/test", "learning_rate/weights",
        "training/gradient_norm", "training/examples_per_second", *own,
    }  # fmt: skip
    assert set(found) == tags
    names = {"losses/total": "total_loss", "accuracy/train": "accuracy", "accuracy/test": "test_accuracy", "losses/test": "test_loss"}
    names |= {"learning_rate/weights": "learning_rate", "training/gradient_norm": "gradient_norm"}
    for tag in tags - {"training/examples_per_second"}:
        field = names.get(tag, tag.removeprefix("losses/"))
        expected = {row["epoch"]: row[field] for row in rows if field in row}
        assert found[tag] == pytest.approx(expected, rel=1e-6), tag
    assert all(value > 0 for value in found["training/examples_per_second"].values())
    events = read(RunDir(made).events(name))
    shown = {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}
    assert shown == {"predictions/confusion_matrix": [2], "predictions/samples": [2]}


def test_the_points_of_a_search_are_those_of_the_trajectory_and_end_with_the_weights(made: Path) -> None:
    with open(made / "search/trajectory.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    weights = AggregationWeights.load(made / "search/alphas.json")
    for number, group in enumerate(weights.groups, start=1):
        folder = RunDir(made).events("search") / f"group{number}"
        found, mine = points(folder), [row for row in rows if row["group"] == str(number)]
        for place, (block, alpha) in enumerate(zip(group.blocks, group.alpha, strict=True), start=1):
            expected = {int(row["epoch"]): float(row["alpha"]) for row in mine if row["block"] == block}
            assert found[f"alpha/group{number}/block{place}"] == pytest.approx(expected, rel=1e-6)
            assert found[f"alpha/group{number}/block{place}"][2] == pytest.approx(alpha, rel=1e-6)
        first = {int(row["epoch"]): row for row in mine if row["block"] == group.blocks[0]}
        of_group = {"losses/train/st": "train/st", "losses/train/ts": "train/ts", "losses/search/st": "search/st"}
        columns = {f"{tag}/group{number}": column for tag, column in of_group.items()}
        columns |= {"losses/train/total": "train/loss", "losses/search/total": "search/loss", f"entropy/group{number}": "entropy"}
        columns |= {"learning_rate/weights": "train/learning_rate", "learning_rate/beta": "search/learning_rate"}
        for tag, column in columns.items():
            expected = {epoch: float(row[column]) for epoch, row in first.items() if row[column]}
            assert found[tag] == pytest.approx(expected, rel=1e-6), tag
        assert set(found["learning_rate/beta"]) == {2}, "the first epoch warms up"
        assert [event.step for event in read(folder).Images("alpha")] == [1, 2]
        assert picture(folder, "alpha", 2).shape[0] == 24 * number, "a row for each group that was searched so far"


def test_a_training_is_the_same_with_it_bit_for_bit(tiny: Tiny, splits: Splits, config: Config, tmp_path: Path) -> None:
    settings = config.override(['distil.methods={"kd": 1.0}', "train.epochs=2"])
    logs = (None, EventLog(tmp_path / "log", {}, 10))
    one, other = (distil(tiny(6, 2, seed=2), tiny(4, 1, seed=1), splits, settings, context=StageContext(events=log)) for log in logs)
    assert (tmp_path / "log").exists()
    assert one.history == other.history
    for ours, theirs in zip(one.student.get_weights(), other.student.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_search_is_the_same_with_it_and_of_mode_joint_one_run(tiny: Tiny, splits: Splits, config: Config, tmp_path: Path) -> None:
    settings = config.override(["search.mode=joint", "search.epochs=2"])
    logs = (None, EventLog(tmp_path / "log", {}, 10))
    one, other = (search(tiny(6, 3, seed=2), tiny(4, 1, seed=1), splits, settings, context=StageContext(events=log)) for log in logs)
    assert one == other
    assert not [path for path in (tmp_path / "log").iterdir() if path.is_dir()]
    found = points(tmp_path / "log")
    for group in (1, 2):
        alphas = [found[f"alpha/group{group}/block{block}"][2] for block in (1, 2, 3)]
        assert alphas == pytest.approx(list(one.weights.groups[group - 1].alpha), rel=1e-6)


def test_to_switch_it_off_makes_no_other_stage(made: Path) -> None:
    assert Config().stage_hash("teacher") == Config().override(["tensorboard=false"]).stage_hash("teacher")


@pytest.mark.parametrize("on", [True, False])
def test_overwriting_a_stage_removes_what_was_written_of_it(made: Path, tmp_path: Path, on: bool) -> None:
    run = shutil.copytree(made, tmp_path / "run")
    stages(run, [PlainStage], "train.epochs=1", f"tensorboard={str(on).lower()}", overwrite=True)
    folder = RunDir(run).events("plain")
    assert folder.exists() == on
    assert not on or set(points(folder)["losses/total"]) == {1}
    assert set(points(RunDir(run).events("dfa"))["losses/total"]) == {1, 2}, "another stage's are left"


def test_without_a_work_directory_nothing_is_written_for_it(tiny: Tiny, splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    import dfa_tf  # noqa: PLC0415

    def refused(*given: Any) -> None:
        raise AssertionError("it would be thrown away")

    monkeypatch.setattr("dfa_tf.pipeline.stages.base.EventLog", refused)
    images = (splits.train.images.pixels[splits.train.indices], splits.train.labels)
    result = dfa_tf.compress(tiny(6, 2, seed=2), tiny(4, 1).model, images, methods="kd", epochs=1, batch_size=10, verbose=False)
    assert result.run is None


# Killed


def opened(folder: Path) -> Checkpoints:
    checkpoints = Checkpoints(folder / "checkpoints", CheckpointConfig(every=2), {"config_hash": "abc"})
    checkpoints.begin()
    return checkpoints


def test_a_killed_training_goes_on_with_one_point_for_each_epoch(tiny: Tiny, splits: Splits, quick: Config, tmp_path: Path) -> None:
    """Four epochs of three steps, killed in the third and in the fourth, with a checkpoint each two steps."""
    settings = quick.override(['distil.methods={"kd": 1.0}'])
    for kill in (8, 3, None):
        events = EventLog(tmp_path / "log", {}, 20)
        callbacks = [] if kill is None else [KillAfter(kill)]
        context = StageContext(checkpoints=opened(tmp_path), events=events)
        try:
            distil(tiny(6, 2, seed=2), tiny(4, 1, seed=1), splits, settings, context=context, directory=tmp_path, callbacks=callbacks)
        except KilledError:
            assert kill is not None
    rows = lines(tmp_path / "metrics.jsonl")
    found = points(tmp_path / "log")
    assert found["losses/kd"] == pytest.approx({row["epoch"]: row["kd"] for row in rows}, rel=1e-6)
    assert set(found["training/examples_per_second"]) == {1, 2, 3, 4}


@pytest.mark.slow
def test_a_killed_search_goes_on_with_one_point_for_each_epoch(tiny: Tiny, splits: Splits, config: Config, tmp_path: Path) -> None:
    """Two groups of two epochs of three steps, killed in the last epoch of the second group."""
    settings = config.override(["search.mode=group_wise", "search.epochs=2", "search.beta_learning_rate=0.1"])
    for kill in (10, None):
        left = [kill]

        def report(done: int, total: int, numbers: dict[str, float], left: list[int | None] = left) -> None:
            if left[0] is not None:
                left[0] -= 1
                if not left[0]:
                    raise KilledError

        try:
            context = StageContext(checkpoints=opened(tmp_path), report=report, events=EventLog(tmp_path / "log", {}, 10))
            result = search(tiny(6, 3, seed=2), tiny(4, 1, seed=1), splits, settings, context=context)
        except KilledError:
            assert kill is not None
    for group in (1, 2):
        found = points(tmp_path / "log" / f"group{group}")
        for block in (1, 2, 3):
            rows = [row for row in result.trajectory if row["group"] == group and str(row["block"]).endswith(f"block{block}")]
            expected = {row["epoch"]: row["alpha"] for row in rows}
            assert set(expected) == {1, 2}
            assert found[f"alpha/group{group}/block{block}"] == pytest.approx(expected, rel=1e-6)
