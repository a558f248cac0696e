"""How a stage runs, with a work function of one line: skipped, refused, replaced, resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfa_tf.config import Config
from dfa_tf.display.progress import Reporter
from dfa_tf.errors import UserError
from dfa_tf.pipeline.stage_runner import StageRunner
from dfa_tf.process.status import ReportStep
from dfa_tf.storage.reading import read_result
from dfa_tf.storage.run_directory import RunDir
from dfa_tf.training.checkpoints import Checkpoints

LONGER = {"train.epochs": 3}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


@pytest.fixture
def train(run: RunDir) -> Callable[..., list[str]]:
    """Runs the teacher's stage and says what its work did."""

    def train(changes: dict[str, Any] | None = None, *inputs: str, overwrite: bool = False, fail: str = "") -> list[str]:
        did: list[str] = []

        def work(checkpoints: Checkpoints, report: ReportStep) -> dict[str, Any]:
            did.append("worked")
            if fail == "before the first report":
                raise UserError(fail)
            report(1, 1, {"loss": 1.0})
            if fail:
                raise UserError(fail)
            return {"answer": 42}

        config = Config().replace(changes or {})
        runner = StageRunner(config, run.config, Reporter(quiet=True), overwrite=overwrite)
        runner.run("teacher", run.teacher, inputs, work, events=run.events("teacher"))
        return did

    return train


# Done, refused, replaced


def test_the_result_is_what_the_work_returns_with_hash_and_fields(run: RunDir, train: Callable[..., list[str]]) -> None:
    train(LONGER, "digest")
    config = Config().replace(LONGER)
    fields = {"config_hash": config.stage_hash("teacher", "digest"), "config": config.stage_fields("teacher")}
    assert read_result(run.teacher) == {"answer": 42, **fields}
    assert run.config.read_text() == config.to_json()


def test_a_stage_that_is_done_does_not_work_again(train: Callable[..., list[str]]) -> None:
    assert [train({}, "digest"), train({}, "digest")] == [["worked"], []]


def test_fields_of_another_stage_do_not_matter(train: Callable[..., list[str]]) -> None:
    assert [train(), train({"search.epochs": 3})] == [["worked"], []]


def test_another_configuration_is_refused_and_named(run: RunDir, train: Callable[..., list[str]]) -> None:
    train()
    with pytest.raises(UserError, match="holds a stage of another configuration, which differs in: train.epochs"):
        train(LONGER)
    assert read_result(run.teacher)["config"]["train"]["epochs"] == Config().train.epochs


def test_other_inputs_are_refused(train: Callable[..., list[str]]) -> None:
    train({}, "digest")
    with pytest.raises(UserError, match="differs in: the artifacts that it was made from"):
        train({}, "another digest")


def test_overwrite_replaces_the_result(run: RunDir, train: Callable[..., list[str]]) -> None:
    train()
    assert train(LONGER, overwrite=True) == ["worked"]
    assert read_result(run.teacher)["config"]["train"]["epochs"] == 3


@pytest.mark.parametrize("stage", ["evaluate", "export", "report"])
def test_cheap_stages_are_replaced_without_being_asked(run: RunDir, stage: str) -> None:
    for answer in (1, 2):
        runner = StageRunner(Config(seed=answer), run.config, Reporter(quiet=True))
        runner.run(stage, run.evaluation, [], lambda checkpoints, report, answer=answer: {"answer": answer})
    assert read_result(run.evaluation)["answer"] == 2


# Mistakes and interruptions


def test_up_to_the_first_report_a_mistake_leaves_the_earlier_result(run: RunDir, train: Callable[..., list[str]]) -> None:
    train()
    with pytest.raises(UserError, match="before the first report"):
        train(LONGER, overwrite=True, fail="before the first report")
    assert read_result(run.teacher)["answer"] == 42
    assert Config.from_json(run.config.read_text()) == Config()


def test_after_the_first_report_the_earlier_result_is_gone(run: RunDir, train: Callable[..., list[str]]) -> None:
    train()
    with pytest.raises(UserError, match="later"):
        train(LONGER, overwrite=True, fail="later")
    assert read_result(run.teacher) == {}
    assert Config.from_json(run.config.read_text()) == Config().replace(LONGER)


def test_a_stage_that_was_interrupted_is_refused_for_another_configuration(train: Callable[..., list[str]]) -> None:
    with pytest.raises(UserError, match="later"):
        train(fail="later")
    with pytest.raises(UserError, match="differs in: train.epochs"):
        train(LONGER)
    assert train() == ["worked"]


@pytest.mark.parametrize("changes", [{}, LONGER], ids=["it resumes", "it starts again"])
def test_events_are_kept_where_a_stage_resumes(run: RunDir, train: Callable[..., list[str]], changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="later"):
        train(fail="later")
    events = run.events("teacher") / "events.out.tfevents.1.machine"
    events.parent.mkdir(parents=True)
    events.touch()
    train(changes, overwrite=True)
    assert events.exists() == (changes == {})


def test_a_link_in_place_of_the_events_is_refused(run: RunDir, train: Callable[..., list[str]], tmp_path: Path) -> None:
    run.events("teacher").parent.mkdir(parents=True)
    run.events("teacher").symlink_to(tmp_path)
    with pytest.raises(UserError, match="must be a directory.*Received: a symbolic link"):
        train()


# What a later stage reads


def test_a_file_of_a_finished_stage_is_found(run: RunDir, train: Callable[..., list[str]]) -> None:
    runner, file = StageRunner(Config(), run.config, Reporter(quiet=True)), run.teacher / "model.keras"
    with pytest.raises(UserError, match=r"run bin/train\.py with the same --config and --workdir first"):
        runner.finished(file, "teacher", "train")
    train()
    with pytest.raises(UserError, match="is not there, or not done"):
        runner.finished(file, "teacher", "train")
    file.touch()
    assert runner.finished(file, "teacher", "train") == file
    other = StageRunner(Config().replace(LONGER), run.config, Reporter(quiet=True))
    with pytest.raises(UserError, match=r"differs in: train\.epochs.*bin/train\.py --overwrite"):
        other.finished(file, "teacher", "train")
