"""Several replicas in one process end where one ends, however a batch divides: in the search, in `distil` and in a `fit` of one's own."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from killing import KilledError
from steps import IMAGES, LABELS

from dfa_tf import plugins
from dfa_tf.aggregation.search import SearchResult, search
from dfa_tf.config import CheckpointConfig, Config
from dfa_tf.distillation.distil import Distilled, distil
from dfa_tf.distillation.distiller import Distiller
from dfa_tf.images.splits import Split, Splits
from dfa_tf.methods.classification import replica_share, weighted_mean
from dfa_tf.networks.features import FeatureModel
from dfa_tf.training.checkpoints import Checkpoints
from dfa_tf.training.context import StageContext
from dfa_tf.training.replicas import distributed

Tiny = Callable[..., FeatureModel]
Strategy = tf.distribute.Strategy


# The parts of a batch


def parts_of(size: int, strategy: Strategy) -> list[list[list[int]]]:
    """Of two batches, the examples that each replica takes."""
    batches = tf.data.Dataset.range(2**40).batch(size).map(lambda index: {"index": index})
    taken = iter(distributed(batches, strategy))
    return [[part.numpy().tolist() for part in strategy.experimental_local_results(next(taken)["index"])] for _ in range(2)]


def test_replicas_take_their_parts_of_each_batch_in_its_order(two_replicas: Strategy) -> None:
    assert parts_of(4, two_replicas) == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert parts_of(3, two_replicas) == [[[0], [1, 2]], [[3], [4, 5]]]
    assert parts_of(1, two_replicas) == [[[], [0]], [[], [1]]]


def test_elements_may_be_tuples(two_replicas: Strategy) -> None:
    batches = tf.data.Dataset.range(2**40).batch(4).map(lambda index: (index, -index))
    taken = [two_replicas.experimental_local_results(item) for item in next(iter(distributed(batches, two_replicas)))]
    assert [[part.numpy().tolist() for part in parts] for parts in taken] == [[[0, 1], [2, 3]], [[0, -1], [-2, -3]]]


def test_one_device_takes_the_batches_as_they_are() -> None:
    batches = tf.data.Dataset.range(8).batch(4)
    assert distributed(batches, tf.distribute.get_strategy()) is batches


@pytest.mark.parametrize(("terms", "expected"), [(([1.0, 2.0], [6.0]), 3.0), (([], [4.0, 6.0]), 5.0)])
def test_the_mean_over_replicas_of_their_shares_is_the_mean_over_all_examples(
    terms: tuple[list[float], list[float]], expected: float, two_replicas: Strategy
) -> None:
    values = two_replicas.experimental_distribute_values_from_function(
        lambda context: tf.constant(terms[context.replica_id_in_sync_group], tf.float32)
    )

    @tf.function
    def mean(values: tf.Tensor) -> tf.Tensor:
        return two_replicas.reduce(
            "MEAN", two_replicas.run(lambda term: weighted_mean(term, None, replica_share(term)), (values,)), axis=None
        )

    assert float(mean(values)) == pytest.approx(expected)


# The search


@pytest.fixture
def find(tiny: Tiny, splits: Splits, config: Config) -> Callable[..., SearchResult]:
    """Searches from new networks without kinks; an epoch is of two or three steps."""

    def find(overrides: list[str], strategy: Strategy | None, **options: Any) -> SearchResult:
        settings = config.override(
            ["search.epochs=2", "search.warmup_epochs=0", "search.beta_learning_rate=0.05", "search.learning_rate=0.01", *overrides]
        )
        teacher, student = tiny(6, 3, seed=2, activation="silu"), tiny(4, 1, seed=1, activation="tanh")
        before = student.model.get_weights()
        result = search(teacher, student, splits, settings, context=StageContext(strategy=strategy, **options))
        moved = any((was != now).any() for was, now in zip(before, student.model.get_weights(), strict=True))
        assert moved == (strategy is None), "a copy in the scope is trained, or the student itself on one device"
        return result

    return find


@pytest.mark.parametrize(
    "overrides",
    [
        ["search.mode=joint", "data.batch_size=11", "search.regulariser=squared_norm"],
        pytest.param(["search.mode=group_wise", "data.batch_size=10"], marks=pytest.mark.slow),
        pytest.param(["search.mode=joint", "search.objective=student", "data.batch_size=15"], marks=pytest.mark.slow),
        pytest.param(["search.mode=joint", "search.order=second", "data.batch_size=11"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_search_on_two_replicas_is_that_on_one(find: Callable[..., SearchResult], overrides: list[str], two_replicas: Strategy) -> None:
    one, two = find(overrides, None), find(overrides, two_replicas)
    assert one.steps == two.steps
    for row, other in zip(one.trajectory, two.trajectory, strict=True):
        assert row.pop("block") == other.pop("block")
        del row["train/gradient_norm"]  # which no step sees on two replicas
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)
    for ours, theirs in zip(one.weights.groups, two.weights.groups, strict=True):
        np.testing.assert_allclose(ours.alpha, theirs.alpha, atol=1e-4)
        assert max(ours.alpha) - min(ours.alpha) > 0.01, "beta has moved"


@pytest.mark.slow
def test_a_killed_search_on_two_replicas_ends_as_one_that_was_not(
    find: Callable[..., SearchResult], two_replicas: Strategy, tmp_path: Path
) -> None:
    overrides = ["search.mode=joint", "data.batch_size=10"]

    def opened() -> Checkpoints:
        checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(every=2), {"config_hash": "abc"})
        checkpoints.begin()
        return checkpoints

    def kill(done: int, total: int, numbers: dict[str, float]) -> None:
        if done == 5:
            raise KilledError

    usual = find(overrides, two_replicas)
    with pytest.raises(KilledError):
        find(overrides, two_replicas, checkpoints=opened(), report=kill)
    assert (saved := opened().latest()) is not None
    assert saved.step == 4
    assert find(overrides, two_replicas, checkpoints=opened()) == usual


# The training


def agreeing(one: list[np.ndarray], other: list[np.ndarray], tolerance: float = 1e-5) -> None:
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=0)


def test_a_batch_that_the_replicas_do_not_divide_trains_as_on_one(
    tiny: Tiny, splits: Splits, config: Config, two_replicas: Strategy
) -> None:
    overrides = ["data.batch_size=7", "train.epochs=1", "train.learning_rate=0.01", 'distil.methods={"kd": 1.0, "dfa": 0.01}']
    settings = config.override([*overrides, "train.clip_norm=5", "train.weight_decay=0.01"])
    weighted = replace(splits.train.images, weights=np.linspace(0, 2, len(splits.train.images)))
    halves = {name: Split(weighted, getattr(splits, name).indices) for name in ("train", "search")}

    def run(strategy: Strategy | None) -> Distilled:
        teacher, student = tiny(6, 1, seed=2, activation="tanh"), tiny(seed=1, activation="tanh")
        return distil(teacher, student, replace(splits, **halves), settings, context=StageContext(strategy=strategy))

    one, two = run(None), run(two_replicas)
    assert one.steps == two.steps == 8
    agreeing(one.student.get_weights(), two.student.get_weights())
    del one.history[0]["gradient_norm"]  # which no step sees on two replicas
    assert one.history[0] == pytest.approx(two.history[0], rel=1e-4)


needs_empty_parts = pytest.mark.skipif(
    os.environ["TF_ENABLE_ONEDNN_OPTS"] != "0",
    reason="a convolution of oneDNN gives no images a wrong shape; TF_ENABLE_ONEDNN_OPTS=0 avoids it",
)


@pytest.mark.parametrize(
    ("method", "count"), [("kd", 13), pytest.param("rkd", 13, marks=pytest.mark.slow), pytest.param("kd", 11, marks=needs_empty_parts)]
)
def test_a_fit_of_one_s_own_counts_every_example_alike_in_its_last_batches(
    method: str, count: int, tiny: Tiny, two_replicas: Strategy
) -> None:
    """Batches of 5, 5 and 3: the parts are unequal; or of 5, 5 and 1, where one replica has no example in the end."""

    def run(strategy: Strategy) -> tuple[list[np.ndarray], dict[str, list[float]]]:
        with strategy.scope():
            student, teacher = tiny(4, 1, seed=1, activation="tanh"), tiny(6, 1, seed=2, activation="tanh")
            distiller = Distiller(student, teacher, {method: plugins.build("losses", method, student, teacher)}, weight_decay=0.01)
            distiller.compile(optimizer=keras.optimizers.SGD(0.01, momentum=0.9))
        history = distiller.fit(IMAGES[:count], LABELS[:count], batch_size=5, epochs=2, shuffle=False, verbose=0).history
        assert all(np.isfinite(values).all() for values in history.values())
        return student.model.get_weights(), history

    one, two = run(tf.distribute.get_strategy()), run(two_replicas)
    assert all(np.isfinite(weight).all() for weight in two[0])
    if method == "kd":  # rkd is a statistic of each replica's part
        agreeing(one[0], two[0])
        assert one[1].keys() == {*two[1], "gradient_norm"}, "which no step sees on two replicas"
        del one[1]["gradient_norm"]
        for name, values in one[1].items():
            assert values == pytest.approx(two[1][name], rel=1e-4)


def test_batchnorm_is_saved_as_it_was(tiny: Tiny, two_replicas: Strategy, tmp_path: Path) -> None:
    with two_replicas.scope():
        student = tiny()
        norms = [layer for layer in student.model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        norms[0].synchronized = True  # by its owner
        distiller = Distiller(student)
    assert [norm.synchronized for norm in norms] == [True, True]
    distiller.save(tmp_path / "student.keras")
    assert [norm.synchronized for norm in norms] == [True, True]
    saved = keras.models.load_model(tmp_path / "student.keras").layers
    assert [layer.synchronized for layer in saved if isinstance(layer, keras.layers.BatchNormalization)] == [True, False]
