"""A stage that was interrupted ends as one that never was: the same weights, alphas and history, bit for bit."""

import functools
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from killing import KillAfter, KilledError

from dfa_tf.aggregation.search import SearchResult, search
from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import CheckpointConfig, Config
from dfa_tf.distillation.distil import Distilled, distil
from dfa_tf.errors import DivergenceError
from dfa_tf.images.splits import Split, Splits
from dfa_tf.networks.features import FeatureModel
from dfa_tf.process import interruption
from dfa_tf.training.checkpoints import Checkpoints
from dfa_tf.training.context import StageContext

Tiny = Callable[..., FeatureModel]
STEPS = 12  # of a distillation: four epochs of three steps
METHODS = {
    "dfa": ['distil.methods={"dfa": 1.0, "kd": 1.0}', "train.mixup=0.5", "train.clip_norm=1.0"],
    "ema": ['distil.methods={"kd": 1.0}', "train.ema=0.5", "train.evaluate_every=1"],
    "crd": ['distil.methods={"crd": 0.5}', 'distil.options={"crd": {"negatives": 8}}'],
    "fitnet": ['distil.methods={"fitnet": 1e-3}', 'distil.options={"fitnet": {"first_phase": 0.5}}', 'distil.warmup_epochs={"fitnet": 2}'],
    # So slow that all epochs are alike, of which the first is kept: long before the end, and before the kills.
    "best": ['distil.methods={"kd": 1.0}', "train.choose_best=true", "train.evaluate_every=1", "train.learning_rate=1e-5"],
    "float16": ['distil.methods={"kd": 1.0}', "train.precision=mixed_float16", "train.ema=0.5", "train.clip_norm=1.0"],
    "simkd": ['distil.methods={"simkd": 1.0}'],
}


def opened(folder: Path, every: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder / "checkpoints", CheckpointConfig(every=every), {"config_hash": "abc"})
    checkpoints.begin()
    return checkpoints


@pytest.fixture(scope="module")
def train(tiny: Tiny, splits: Splits, config: Config):
    """Distils from new networks; with a folder it goes on from the checkpoints there; `after` so many steps it is killed."""

    def train(
        overrides: list[str],
        folder: Path | None = None,
        *,
        after: int | keras.callbacks.Callback | None = None,
        every: int = 2,
        strategy=None,
    ) -> Distilled:
        settings = config.override(["data.batch_size=20", "train.epochs=4", "train.evaluate_every=4", *overrides])
        student, teacher = tiny(4, 1, seed=1), tiny(6, 2, seed=2)
        return distil(
            teacher,
            student,
            replace(splits, validation=Split(splits.test.images, splits.test.indices[:20])),
            settings,
            aggregation=AggregationWeights.by_rule("average", teacher) if "dfa" in settings.distil.methods else None,
            context=StageContext(checkpoints=None if folder is None else opened(folder, every), strategy=strategy),
            callbacks=[] if after is None else [KillAfter(after) if isinstance(after, int) else after],
            directory=folder,
        )

    return train


@pytest.fixture(scope="module")
def whole(train: Callable[..., Distilled]) -> Callable[[str], Distilled]:
    """Trainings that nothing interrupted, each made once."""
    return functools.cache(lambda name: train(METHODS[name]))


def assert_same(one: Distilled, other: Distilled) -> None:
    for ours, theirs in zip(one.student.get_weights(), other.student.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert one.history == other.history
    assert one.steps == other.steps == STEPS


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("dfa", (1, 4)),
        ("ema", (6,)),
        ("crd", (5,)),
        ("fitnet", (7,)),
        ("best", (8,)),
        ("float16", (5,)),
        *(pytest.param(name, (kill,), marks=pytest.mark.slow) for name in METHODS for kill in (3, 4, 6, 8)),
    ],
)
def test_a_killed_distillation_ends_as_one_that_was_not(train, whole, name: str, kills: tuple[int, ...], tmp_path: Path) -> None:
    """Kills are so many steps after each start: within an epoch, at its end, before any checkpoint, and several in a row."""
    for kill in kills:
        with pytest.raises(KilledError):
            train(METHODS[name], tmp_path, after=kill)
    assert_same(train(METHODS[name], tmp_path), whole(name))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_killed_distillation_of_several_steps_at_once_ends_as_one_that_was_not(train, tmp_path: Path) -> None:
    """Two epochs of three times two steps; killed behind the fourth time, with a checkpoint of the sixth step."""
    settings = ['distil.methods={"kd": 1.0}', "data.batch_size=10", "train.epochs=2", "train.steps_per_execution=2"]
    usual = train(settings)
    with pytest.raises(KilledError):
        train(settings, tmp_path, after=4, every=3)
    assert (saved := opened(tmp_path).latest()) is not None
    assert saved.step == 6
    assert_same(train(settings, tmp_path), usual)


def test_what_was_done_is_not_done_again(train, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(METHODS["dfa"], tmp_path, after=8)
    with pytest.raises(KilledError):
        train(METHODS["dfa"], tmp_path, after=STEPS - 8)  # the checkpoint of step 8 was there, or the last step would not be reached
    assert (saved := opened(tmp_path).latest()) is not None
    assert saved.step == 10


def test_the_best_epoch_is_not_the_last_one(whole, train) -> None:
    """Or the resumed training of its name would show nothing."""
    last = train([each for each in METHODS["best"] if "choose_best" not in each])
    assert whole("best").history == last.history
    assert any((one != other).any() for one, other in zip(whole("best").student.get_weights(), last.student.get_weights(), strict=True))


@pytest.mark.slow
def test_two_replicas_go_on_too(train, two_replicas: tf.distribute.Strategy, tmp_path: Path) -> None:
    usual = train(METHODS["dfa"], strategy=two_replicas)
    with pytest.raises(KilledError):
        train(METHODS["dfa"], tmp_path, after=5, strategy=two_replicas)
    assert_same(train(METHODS["dfa"], tmp_path, strategy=two_replicas), usual)


def test_a_signal_ends_the_training_behind_its_step_with_a_checkpoint(train, whole, tmp_path: Path) -> None:
    class Signal(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
            if int(self.model.optimizer.iterations) == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    interruption.listen()
    try:
        with pytest.raises(KeyboardInterrupt):
            train(METHODS["dfa"], tmp_path, after=Signal(), every=1000)
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
    assert (saved := opened(tmp_path).latest()) is not None
    assert saved.step == 5
    assert_same(train(METHODS["dfa"], tmp_path), whole("dfa"))


def test_a_training_that_diverges_keeps_its_last_good_checkpoint(train, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(METHODS["dfa"], tmp_path, after=5)

    class Spoil(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
            for variable in self.model.trainable_variables:
                variable.assign(np.nan * variable.numpy())

    with pytest.raises(DivergenceError):
        train(METHODS["dfa"], tmp_path, after=Spoil())
    assert (saved := opened(tmp_path).latest()) is not None
    assert saved.step == 4


# The search

SEARCHES = {
    "joint": ["search.mode=joint", "search.epochs=4", "search.warmup_epochs=1"],
    "group_wise": ["search.mode=group_wise", "search.epochs=2", "search.warmup_epochs=1", "search.objective=student"],
    "collapsed": [
        *("search.mode=group_wise", "search.epochs=3", "search.warmup_epochs=1"),
        *("search.stop_on_collapse=true", "search.beta_init=10000"),
    ],
    "second": ["search.mode=joint", "search.epochs=2", "search.order=second"],
}


@pytest.fixture(scope="module")
def find(tiny: Tiny, splits: Splits, config: Config):
    """As `train`, a search: its epochs are of three steps."""

    def find(name: str, folder: Path | None = None, *, after: int | None = None, every: int = 2) -> SearchResult:
        made = 0

        def report(done: int, total: int, numbers: dict[str, float]) -> None:
            nonlocal made
            made += 1
            if made == after:
                raise KilledError

        settings = config.override(["data.batch_size=10", "search.beta_learning_rate=0.1", *SEARCHES[name]])
        checkpoints = None if folder is None else opened(folder, every)
        return search(
            tiny(6, 3, seed=2), tiny(4, 1, seed=1), splits, settings, context=StageContext(checkpoints=checkpoints, report=report)
        )

    return find


@pytest.fixture(scope="module")
def found_at_once(find: Callable[..., SearchResult]) -> Callable[[str], SearchResult]:
    """Searches that nothing interrupted, each made once."""
    return functools.cache(find)


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("joint", (2, 5)),
        ("group_wise", (7,)),
        ("collapsed", (5,)),
        *(pytest.param(name, kills, marks=pytest.mark.slow) for name in ("joint", "group_wise") for kills in ((4, 4), (5,), (9,))),
        *(pytest.param(name, kills, marks=pytest.mark.slow) for name in ("collapsed", "second") for kills in ((2, 3), (4,), (6,))),
    ],
)
def test_a_killed_search_ends_as_one_that_was_not(find, found_at_once, name: str, kills: tuple[int, ...], tmp_path: Path) -> None:
    usual = found_at_once(name)
    for kill in kills:
        with pytest.raises(KilledError):
            find(name, tmp_path, after=kill)
    found = find(name, tmp_path)
    assert found == usual
    assert name != "collapsed" or found.steps == 6, "one epoch a group"
    assert found.trajectory[-1]["alpha"] != pytest.approx(1 / 3, abs=1e-3), "beta has moved"


def test_a_finished_search_is_read_back_without_a_step(find, tmp_path: Path) -> None:
    usual = find("joint", tmp_path)
    assert find("joint", tmp_path, after=1) == usual
