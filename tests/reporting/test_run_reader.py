"""What is read of a run directory: whole, in part, damaged, or while a run is at work."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from handmade import LABELS, write_evaluation, write_network, write_run

from dfa_tf.errors import UserError
from dfa_tf.reporting.record import Record
from dfa_tf.reporting.run_reader import files_of, read_run
from dfa_tf.storage.run_directory import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run directory in which every stage is done."""
    return write_run(tmp_path / "run")


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_run(path)
    return str(caught.value)


def test_everything_is_read(run: RunDir) -> None:
    record = read_run(run.path)
    assert record.name == "run"
    assert [(network.title, network.method) for network in record.networks] == [
        ("teacher", None), ("plain student", "plain"), ("dfa student", "dfa"),
    ]  # fmt: skip
    student = record.networks[2]
    assert student.result is not None
    assert (student.result.test_accuracy, student.result.test_accuracy_best, student.result.seconds) == (0.6, 0.65, 12.5)
    assert student.evaluated is not None
    assert student.evaluated.macs == 5678901
    assert [row["total_loss"] for row in student.history] == [2.5, 1.5]
    assert record.searched is not None
    assert record.used is not None
    assert record.searched.groups[0].alpha == record.used.groups[0].alpha == (0.25, 0.75)
    assert [(row.epoch, row.group, row.block, row.alpha) for row in record.trajectory][:2] == [(1, 1, "a", 0.5), (1, 1, "b", 0.5)]
    assert record.predictions is not None
    np.testing.assert_array_equal(record.predictions.labels, LABELS)
    assert {name: parity.bytes for name, parity in record.parity.items()} == {"student": 2048, "saved_model": 10240}
    assert record.missing == []


def test_only_the_configuration_must_be_there(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    shutil.copy(run.config, tmp_path / "begun")
    record = read_run(tmp_path / "begun")
    assert record.networks == record.trajectory == []
    assert record.evaluation is record.predictions is record.searched is record.used is None
    assert [line.partition(":")[0] for line in record.missing] == [
        "The teacher is not trained in this directory",
        "The plain student is not trained",
        "The aggregation weights are not searched",
        "The dfa student is not trained",
    ]


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("teacher", "The teacher is not trained in this directory: bin/train.py trains it."),
        ("distil/plain", "The plain student is not trained: bin/train.py trains it."),
        ("search", "The aggregation weights are not searched: bin/search.py searches them."),
        ("distil/dfa", "The dfa student is not trained: bin/distil.py trains it."),
        ("evaluation", "Not evaluated as it is now: teacher, plain student, dfa student; bin/evaluate.py does that."),
        ("evaluation/predictions.npz", "There are no answers on a test set: bin/evaluate.py keeps them, if there is a test set."),
        ("export", "The dfa student is not exported as it is now: bin/export.py does that."),
        ("export/parity.json", "The dfa student is not exported as it is now: bin/export.py does that."),
    ],
)
def test_what_is_missing_is_told_with_what_makes_it(gone: str, told: str, run: RunDir) -> None:
    path = run.path / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert read_run(run.path).missing == [told]


def test_a_run_without_a_search_misses_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "distil.aggregation=last")
    shutil.rmtree(run.search)
    assert read_run(run.path).missing == []


def test_numbers_of_another_student_are_not_taken_for_this_ones(run: RunDir) -> None:
    write_network(run.student("dfa"), "student.keras", 0.7)  # trained again, with another result
    record = read_run(run.path)
    student = record.networks[2]
    assert student.result is not None
    assert student.result.test_accuracy == 0.7
    assert (student.evaluated, record.parity) == (None, {})
    assert record.networks[1].evaluated is not None
    assert record.missing == [
        "Not evaluated as it is now: dfa student; bin/evaluate.py does that.",
        "The dfa student is not exported as it is now: bin/export.py does that.",
    ]
    write_evaluation(run)
    assert read_run(run.path).networks[2].evaluated is not None


def test_answers_of_another_student_are_not_shown(run: RunDir) -> None:
    write_network(run.student("dfa"), "student.keras", 0.7)
    record = read_run(run.path)
    assert record.predictions is not None
    assert set(record.predictions.answers) == {"teacher", "plain"}


def test_a_training_at_work_shows_its_epochs_so_far(run: RunDir) -> None:
    (run.student("dfa") / "result.json").unlink()
    record = read_run(run.path)
    student = record.networks[2]
    assert (student.result, student.evaluated, student.digest, len(student.history)) == (None, None, "", 2)
    assert "The dfa student is not trained: bin/distil.py trains it." in record.missing


def test_a_file_that_goes_away_while_it_is_read_is_not_there(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = run.search / "result.json"
    exists = Path.exists

    def replaced_at_once(path: Path) -> bool:
        there = exists(path)
        if path == gone:
            path.unlink(missing_ok=True)  # as a run does that begins the stage anew
        return there

    monkeypatch.setattr(Path, "exists", replaced_at_once)
    record = read_run(run.path)
    assert record.search is None
    assert record.searched is None


def test_students_of_the_run_come_in_one_order(run: RunDir) -> None:
    for name in ("kd", "at"):
        write_network(run.student(name), "student.keras", 0.5)
    assert [network.title for network in read_run(run.path).networks][1:] == ["plain student", "at student", "dfa student", "kd student"]


def test_the_files_of_a_run_are_those_that_tell_of_it(run: RunDir) -> None:
    (run.teacher / ".7-model.keras").write_text("half written")
    run.report.mkdir()
    (run.report / "index.html").write_text("the report itself")
    names = [str(path.relative_to(run.path)) for path in files_of(run)]
    assert {"config.json", "teacher/model.keras", "distil/dfa/metrics.jsonl", "evaluation/predictions.npz", "export/parity.json"} <= set(
        names
    )
    assert not any("report" in name or "/." in name for name in names)


# What is no run, or damaged


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    assert "which is no directory" in refusal(tmp_path / "none")
    assert "which holds none" in refusal(tmp_path)
    (tmp_path / "file").write_text("")
    assert "which is no directory" in refusal(tmp_path / "file")


def test_a_directory_of_runs_names_them(tmp_path: Path) -> None:
    for name in ("bundled", "last"):
        write_run(tmp_path / name)
    assert "Choose from bundled, last." in refusal(tmp_path)


def with_changed(path: str, **fields: object) -> Callable[[Path], None]:
    """Replaces fields of a JSON file."""

    def change(run: Path) -> None:
        content = json.loads((run / path).read_text())
        (run / path).write_text(json.dumps({**content, **fields}))

    return change


def written(path: str, content: str | bytes) -> Callable[[Path], None]:
    """Replaces a file."""
    return lambda run: (run / path).write_bytes(content if isinstance(content, bytes) else content.encode()) and None


def a_directory(path: str) -> Callable[[Path], None]:
    """Puts a directory in place of a file."""

    def change(run: Path) -> None:
        (run / path).unlink()
        (run / path).mkdir()

    return change


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (written("config.json", "{"), "must be a configuration of this version of dfa_tf. a configuration must be JSON"),
        (with_changed("config.json", colour="red"), "must be a configuration of this version of dfa_tf. unknown field. Received: 'colour'"),
        (written("teacher/result.json", ""), "teacher/result.json"),
        (written("teacher/result.json", "[" * 100_000), "teacher/result.json"),
        (written("teacher/result.json", "5"), "teacher/result.json must be what a run writes"),
        (with_changed("distil/dfa/result.json", test_accuracy=2.0), "distil/dfa/result.json must be what a run writes"),
        (with_changed("distil/dfa/result.json", versions=["2.21"]), "Received: versions: Input should be an object"),
        (written("teacher/result.json", " " * (2 << 20)), "must have at most 1048576 bytes"),
        (written("teacher/metrics.jsonl", '{"epoch": 1}\n{"epo'), "teacher/metrics.jsonl"),
        (written("teacher/metrics.jsonl", '{"epoch": "one"}\n'), "Received: 0.epoch: Input should be a valid number"),
        (written("teacher/metrics.jsonl", '{"epoch": NaN}\n'), "Received: 0.epoch: Input should be a finite number"),
        (with_changed("search/alphas.json", schema=2), "schema Input should be 1. Received: 2"),
        (written("search/trajectory.csv", "epoch,group,block,alpha\n1,0,a,1.0\n"), "Received: 0.group: Input should be greater"),
        (written("search/trajectory.csv", "epoch,group,block,alpha\n1,1,a\n"), "Received: 0.alpha"),
        (written("search/trajectory.csv", b"\xff\xfe"), "search/trajectory.csv"),
        (a_directory("teacher/model.keras"), "teacher/model.keras must be a readable file"),
        (written("evaluation/result.json", '{"rows": 5}'), "Received: rows: Input should be a valid array"),
        (written("evaluation/predictions.npz", "none"), "must be the answers that an evaluation keeps, and whole"),
        (written("export/parity.json", '{"onnx": {}}'), "export/parity.json must be what a run writes"),
    ],
)  # fmt: skip
def test_a_damaged_run_is_refused_with_the_file(damage: Callable[[Path], None], told: str, run: RunDir) -> None:
    damage(run.path)
    assert told in refusal(run.path)


def test_what_a_newer_version_adds_to_a_result_does_not_matter(run: RunDir) -> None:
    with_changed("teacher/result.json", energy=5.0)(run.path)
    record: Record = read_run(run.path)
    assert record.missing == []


def test_a_run_of_the_plain_student_alone_misses_it_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "distil.methods={}")
    for directory in (run.student("plain"), run.student("dfa")):
        shutil.rmtree(directory)
    assert read_run(run.path).missing == ["The plain student is not trained: bin/train.py trains it."]
