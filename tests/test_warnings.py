"""What is warned about and goes on: alpha that collapses, and a teacher that is no better than chance."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from mistakes import network

from dfa_tf.aggregation.search import SearchResult, search
from dfa_tf.config import Config
from dfa_tf.images.splits import Splits
from dfa_tf.networks.features import FeatureModel
from dfa_tf.pipeline.pipeline import run_stages
from dfa_tf.pipeline.stages import TeacherStage
from dfa_tf.storage.run_directory import RunDir
from dfa_tf.training.evaluation import is_chance

Run = Callable[..., SearchResult]


@pytest.fixture
def run(tiny: Callable[..., FeatureModel], splits: Splits, quick: Config, caplog: pytest.LogCaptureFixture) -> Iterator[Run]:
    """A search over two groups of two blocks, three epochs of one step, with some settings."""

    def run(*overrides: str) -> SearchResult:
        usual = ["data.batch_size=30", "search.epochs=3", "search.beta_learning_rate=1e-6"]
        tf.config.run_functions_eagerly(True)  # a step takes longer to trace than to make
        with caplog.at_level(logging.WARNING, "dfa_tf.aggregation.search_state"):
            return search(tiny(blocks=2, seed=1), tiny(), splits, quick.override([*usual, *(f"search.{each}" for each in overrides)]))

    yield run
    tf.config.run_functions_eagerly(False)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What this package has warned about."""
    return [record.message for record in caplog.records if record.name.startswith("dfa_tf.")]


def epochs(result: SearchResult) -> list[tuple[int, int, int]]:
    """Group, epoch and whether it has collapsed, for each."""
    return sorted({(row["group"], row["epoch"], row["collapsed"]) for row in result.trajectory})  # type: ignore[arg-type]


EAGERLY = pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`:UserWarning")
COLLAPSED = "beta_init=10000"  # two logits drawn so far apart that one alpha is 1


@EAGERLY
def test_a_collapse_is_told_once_a_group_and_noted_in_every_epoch(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    result = run("mode=joint", COLLAPSED)
    assert [sorted(group.alpha) for group in result.weights.groups] == [[0, 1], [0, 1]]
    messages = told(caplog)
    assert [message.partition(",")[0] for message in messages] == [f"alpha of group {group} has collapsed by epoch 1" for group in (1, 2)]
    assert "to an entropy of 0 nats" in messages[0]
    assert "search.stop_on_collapse" in messages[0]
    assert epochs(result) == [(group, epoch, 1) for group in (1, 2) for epoch in (1, 2, 3)]


@EAGERLY
def test_the_search_of_a_group_ends_where_it_collapses_if_asked_for(run: Run) -> None:
    result = run("mode=group_wise", COLLAPSED, "stop_on_collapse=true")
    assert epochs(result) == [(1, 1, 1), (2, 1, 1)]
    assert result.steps == 2


@EAGERLY
def test_a_joint_search_ends_as_a_whole(run: Run) -> None:
    result = run("mode=joint", COLLAPSED, "stop_on_collapse=true")
    assert epochs(result) == [(1, 1, 1), (2, 1, 1)]
    assert result.steps == 1


@EAGERLY
def test_alpha_that_is_even_has_not_collapsed_under_any_bound(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Its entropy is ln 2 = 0.693 nats, which is the whole of ln N; in nats it would be below 0.99."""
    result = run("mode=joint", "beta_init=0", "entropy_bound=0.99", "stop_on_collapse=true")
    assert epochs(result) == [(group, epoch, 0) for group in (1, 2) for epoch in (1, 2, 3)]
    assert told(caplog) == []


@EAGERLY
def test_a_bound_of_zero_warns_of_nothing(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    assert {collapsed for _, _, collapsed in epochs(run("mode=joint", COLLAPSED, "entropy_bound=0"))} == {0}
    assert told(caplog) == []


@pytest.mark.parametrize("rank", [0, -1])
def test_a_teacher_no_better_than_chance_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, splits: Splits, rank: int
) -> None:
    """It always gives the same class: the rarest one of the ten, or the most frequent one, just above a tenth of the images."""
    counts = np.bincount(splits.test.labels)
    chosen = int(np.argsort(counts)[rank])
    share = 100 * counts[chosen] / 899
    assert abs(share - 10) < 1
    model = network()
    model.get_layer("logits").set_weights([np.zeros((4, 10)), np.eye(10)[chosen]])
    model.save(tmp_path / "teacher.keras")
    config = Config().override([f"teacher.path={tmp_path / 'teacher.keras'}", "data.batch_size=10", "data.train_limit_per_class=4"])
    with caplog.at_level(logging.WARNING, "dfa_tf.pipeline"):
        run_stages(config, RunDir(tmp_path / "run"), [TeacherStage], quiet=True)
    messages = told(caplog)
    assert len(messages) == 1
    assert f"the teacher is right on {share:.2f} % of 899 images, which is chance" in messages[0]
    assert "classes in another order" in messages[0]


def test_chance_is_two_standard_errors_wide() -> None:
    """Of guesses among 10 classes for 900 images, whose deviation is sqrt(0.1 * 0.9 / 900) = 0.01."""
    assert is_chance(0.1199, 10, 900)
    assert not is_chance(0.1201, 10, 900)
    assert is_chance(0.05, 10, 900)
