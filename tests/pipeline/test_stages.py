"""Which stages a configuration has, and what each of them is made from."""

from pathlib import Path
from typing import Any

import keras
import pytest

from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import STAGES, Config
from dfa_tf.display.progress import Reporter
from dfa_tf.errors import UserError
from dfa_tf.networks.features import FeatureModel
from dfa_tf.pipeline.run import Run
from dfa_tf.pipeline.stages import (
    DistilStage,
    EvaluateStage,
    ExportStage,
    PlainStage,
    ReportStage,
    SearchStage,
    Stage,
    TeacherStage,
    all_stages,
    student_stages,
)
from dfa_tf.pipeline.stages.distil import aggregation_file, load_aggregation
from dfa_tf.storage.reading import digest
from dfa_tf.storage.run_directory import RunDir


def run_of(directory: Path, teacher: Path | None = None, **changes: Any) -> Run:
    """A run of a configuration with these fields; `__` stands for a dot."""
    config = Config().replace({name.replace("__", "."): value for name, value in changes.items()})
    return Run(config, RunDir(directory), Reporter(quiet=True), teacher=teacher)


@pytest.fixture
def file(tmp_path: Path, teacher: FeatureModel) -> Path:
    teacher.model.save(tmp_path / "network.keras")
    return tmp_path / "network.keras"


# The list


@pytest.mark.parametrize(
    ("distil", "expected"),
    [
        ({"methods": {"dfa": None}}, [SearchStage, DistilStage]),
        ({"methods": {"dfa": None, "kd": None}}, [SearchStage, DistilStage]),
        ({"methods": {"dfa": None}, "aggregation": "last"}, [DistilStage]),
        ({"methods": {"kd": None}}, [DistilStage]),
        ({"methods": {}}, [PlainStage]),
    ],
)
def test_stages_that_make_the_student(distil: dict[str, Any], expected: list[type[Stage]]) -> None:
    config = Config().replace({f"distil.{name}": value for name, value in distil.items()})
    assert student_stages(config) == expected
    assert all_stages(config) == [TeacherStage, PlainStage, *expected, EvaluateStage, ExportStage, ReportStage]


def test_every_stage_of_the_configuration_has_a_class() -> None:
    assert [stage.name for stage in all_stages(Config())] == list(STAGES)


def test_titles_are_names_but_for_the_methods() -> None:
    config = Config().replace({"distil.methods": {"kd": None, "dfa": None}})
    assert [stage.title(config) for stage in student_stages(config)] == ["search", "dfa+kd"]


# What a stage is made from


def test_a_teacher_that_the_run_trains_has_no_inputs(tmp_path: Path) -> None:
    assert TeacherStage(run_of(tmp_path)).inputs() == []


def test_a_teacher_file_is_an_input(tmp_path: Path, file: Path) -> None:
    assert TeacherStage(run_of(tmp_path, teacher__path=str(file))).inputs() == [digest(file)]
    with pytest.raises(UserError, match="teacher.path must be"):
        TeacherStage(run_of(tmp_path, teacher__path=str(tmp_path / "none.keras"))).inputs()


def test_search_and_distillation_are_made_from_teacher_student_and_weights(tmp_path: Path, file: Path, teacher: FeatureModel) -> None:
    weights = tmp_path / "alphas.json"
    AggregationWeights.by_rule("last", teacher, seed=0, standardise=False).save(weights)
    run = run_of(tmp_path, file, student__path=str(file), distil__aggregation=str(weights))
    assert PlainStage(run).inputs() == [digest(file)]
    assert SearchStage(run).inputs() == [digest(file)] * 2
    assert DistilStage(run).inputs() == [digest(file), digest(file), digest(weights)]


def test_without_a_teacher_the_message_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher/model\.keras is not there, or not done: run bin/train\.py"):
        SearchStage(run_of(tmp_path)).inputs()


def test_an_export_is_made_from_the_student_and_its_formats(tmp_path: Path) -> None:
    run = run_of(tmp_path, distil__methods={})
    with pytest.raises(UserError, match=r"student\.keras is not there, or not done: run bin/distil\.py"):
        ExportStage(run).inputs()
    PlainStage(run).directory.mkdir(parents=True)
    keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)]).save(student := PlainStage(run).directory / "student.keras")
    run.runner.run("plain", PlainStage(run).directory, [], lambda checkpoints, report: {})
    assert ExportStage(run, ["keras", "saved_model"]).inputs() == [digest(student), "saved_model", "keras"]


# Aggregation weights


@pytest.mark.parametrize(("aggregation", "alpha"), [("last", (0.0, 1.0)), ("first", (1.0, 0.0)), ("average", (0.5, 0.5))])
def test_a_rule_gives_weights_without_a_file(tmp_path: Path, teacher: FeatureModel, aggregation: str, alpha: tuple[float, float]) -> None:
    run = run_of(tmp_path, distil__aggregation=aggregation)
    assert aggregation_file(run) is None
    weights = load_aggregation(run, teacher)
    assert weights is not None
    assert weights.groups[0].alpha == pytest.approx(alpha)


def test_methods_that_take_none_have_none(tmp_path: Path, teacher: FeatureModel) -> None:
    assert load_aggregation(run_of(tmp_path, distil__methods={"kd": None}), teacher) is None


def test_a_file_of_weights_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"distil\.aggregation must be a file.*none\.json"):
        aggregation_file(run_of(tmp_path, distil__aggregation=str(tmp_path / "none.json")))
    with pytest.raises(UserError, match=r"run bin/search\.py"):
        aggregation_file(run_of(tmp_path))
