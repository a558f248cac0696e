"""The teacher's outputs on disk: what is read of them, that they are the right ones, their bound, and kills while they are made.

The teacher here computes with small whole numbers, which no order of additions rounds: with and without its outputs on disk a
student ends the same, bit for bit.
"""

import csv
import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from killing import KilledError

from dfa_tf import plugins
from dfa_tf.aggregation.search import SearchResult, search
from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import CheckpointConfig, Config
from dfa_tf.distillation.distil import Distilled, distil
from dfa_tf.distillation.distiller import Distiller
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Images, Split, Splits, split
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.frozen_teacher import frozen
from dfa_tf.networks.precision import precision
from dfa_tf.pipeline.compare import compare
from dfa_tf.storage.run_directory import RunDir
from dfa_tf.training.cached_files import warn_once
from dfa_tf.training.checkpoints import Checkpoints
from dfa_tf.training.context import StageContext
from dfa_tf.training.teacher_cache import CachedOutputs, TeacherCache

Tiny = Callable[..., FeatureModel]
GROUPS = [["block1", "block2"], ["block3", "block4"]]
NAMES = {
    "logits": "logits",
    "embedding": "embedding",
    **{f"block{2 * group + block}": f"output/group{group + 1}/block{block}" for group in (0, 1) for block in (1, 2)},
}


def whole_numbers(seed: int = 0, *, activation: str = "relu", prefix: str = "") -> FeatureModel:
    """A teacher of digits whose weights are -1, 0 and 1: pixels are 0 to 16, so that all sums are exact."""
    random = np.random.default_rng(seed)
    pixels = x = keras.layers.Input((8, 8, 1))
    for block in ("block1", "block2", "block3", "block4"):
        stride = 2 if block == "block3" else 1
        x = keras.layers.Conv2D(4, 3, stride, padding="same", activation=activation, name=prefix + block)(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(pixels, keras.layers.Dense(10, name="logits")(x), name="whole_numbers")
    model.set_weights([random.integers(-1, 2, weight.shape).astype(np.float32) for weight in model.get_weights()])
    return FeatureModel.from_model(model, [[prefix + block for block in group] for group in GROUPS], tap="output")


class Called(keras.layers.Layer):
    """Counts its calls, in graphs too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.count = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="count")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        self.count.assign_add(1)
        return inputs


def counting(seed: int = 0) -> tuple[FeatureModel, Called]:
    inner, called = whole_numbers(seed).model, Called(name="called")
    pixels = keras.layers.Input((8, 8, 1))
    x = called(pixels)
    for layer in inner.layers[1:]:
        x = layer(x)
    return FeatureModel.from_model(keras.Model(pixels, x, name="counted"), GROUPS, tap="output"), called


@pytest.fixture(scope="module")
def varied(config: Config) -> Config:
    """Two epochs of three steps over 60 images that have two views each."""
    return config.override(
        ["data.batch_size=20", "data.crop_padding=1", "data.flip=true", "data.views=2", "train.epochs=2", "train.evaluate_every=2",
         'distil.methods={"dfa": 1.0, "kd": 1.0}', "search.mode=joint", "search.epochs=1", "search.beta_learning_rate=0.1"]
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_said() -> Iterator[None]:
    warn_once.cache_clear()
    yield
    warn_once.cache_clear()


def student(tiny: Tiny) -> FeatureModel:
    return FeatureModel.from_model(tiny(4, 1, seed=1), tap="output")


@pytest.fixture
def make(splits: Splits, varied: Config):
    """Makes the cached outputs of a teacher in a folder, of its logits unless others are asked for."""

    def make(folder: Path, *overrides: str, gib: float = 1.0, teacher: FeatureModel | None = None, **options: Any) -> CachedOutputs | None:
        wanted, data = options.pop("read", [NAMES["logits"]]), options.pop("splits", splits)
        return TeacherCache(folder, gib).cached_outputs(
            frozen(teacher or whole_numbers()), wanted, data, varied.override(overrides), **options
        )

    return make


def joined(cached_outputs: CachedOutputs | None, split: Split, config: Config) -> list[dict[str, Any]]:
    """Three batches with their cached outputs."""
    assert cached_outputs is not None
    return list(
        cached_outputs.join(split.batches(config.data.batch_size, seed=5, **config.augmentation), split).take(3).as_numpy_iterator()
    )


def assert_logits(cached_outputs: CachedOutputs | None, teacher: FeatureModel, split: Split, config: Config) -> None:
    for batch in joined(cached_outputs, split, config):
        np.testing.assert_array_equal(batch["cached_outputs"]["logits"], teacher.model(batch["images"]))


def kept(folder: Path) -> list[tuple[int, ...]]:
    """The shapes of what the folder holds of an image."""
    return sorted(np.load(path).shape[1:] for path in folder.glob("*.npy"))


# What is read


@pytest.mark.parametrize(
    ("method", "options", "read"),
    [
        ("kd", {}, ["logits"]),
        ("dfa", {"aggregation": [[0.5, 0.5], [0.2, 0.8]]}, ["block1", "block2", "block3", "block4"]),
        ("dfa", {"aggregation": [[1.0, 0.0], [0.0, 1.0]]}, ["block1", "block4"]),
        ("fitnet", {}, ["block2"]),
        ("rkd", {}, ["embedding"]),
        ("simkd", {}, ["block4"]),
        ("jacobian", {}, []),
    ],
)
def test_only_what_methods_declare_is_cached(method: str, options: dict[str, Any], read: list[str], tiny: Tiny) -> None:
    ours, theirs = student(tiny), whole_numbers()
    if "aggregation" in options:
        options = {"aggregation": AggregationWeights.given(options["aggregation"], theirs)}
    distiller = Distiller(ours, theirs, {method: plugins.build("losses", method, ours, theirs, **options)})
    assert distiller.outputs_read == {NAMES[name] for name in read}


def test_a_cached_output_is_taken_and_another_one_is_refused() -> None:
    images, logits = tf.zeros([3, 8, 8, 1]), tf.reshape(tf.range(30.0), [3, 10])
    features = frozen(whole_numbers())(images, {"logits": logits})
    np.testing.assert_array_equal(features.logits, logits)
    assert [len(group) for group in features.groups] == [2, 2]
    refused = {
        "embedding": lambda: features.embedding,
        "groups[1][1]": lambda: features.groups[1][-1],
        "at('output')[0][0]": lambda: list(features.at("output")[0]),
    }
    for attribute, read in refused.items():
        with pytest.raises(UserError, match=f"reader of cached outputs must .*: teacher.{re.escape(attribute)}, "):
            read()


# The results


@pytest.fixture(scope="module")
def train(tiny: Tiny, splits: Splits, varied: Config):
    """Distils a new student, with a cache if one is given; counts the calls of the teacher."""

    def train(cache: TeacherCache | None = None, *overrides: str, **options: Any) -> tuple[Distilled, int]:
        teacher, called = counting()
        aggregation = AggregationWeights.by_rule("average", teacher)
        settings = varied.override(overrides)
        distilled = distil(
            teacher, student(tiny), splits, settings, aggregation=aggregation, context=StageContext(teacher_cache=cache, **options)
        )
        return distilled, int(called.count)

    return train


@pytest.fixture(scope="module")
def usual(train) -> tuple[Distilled, int]:
    """Without a cache."""
    return train()


def assert_same(one: Distilled, other: Distilled) -> None:
    for ours, theirs in zip(one.student.get_weights(), other.student.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert one.history == other.history


def test_a_student_ends_the_same_bit_for_bit_and_the_teacher_is_not_called_in_a_step(train, usual, tmp_path: Path) -> None:
    assert usual[1] == 6, "two epochs of three steps"
    cached = train(TeacherCache(tmp_path, 1.0))
    assert_same(cached[0], usual[0])
    assert cached[1] == 6, "two views of 60 images in batches of 20, to make them"
    assert kept(tmp_path) == [(4, 4, 4), (4, 4, 4), (8, 8, 4), (8, 8, 4), (10,)]


def test_a_killed_training_goes_on_with_them(train, usual, tmp_path: Path) -> None:
    def killed(done: int, total: int, numbers: dict[str, float]) -> None:
        if done == 4:
            raise KilledError

    def checkpoints() -> Checkpoints:
        made = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(every=2), {"config_hash": "abc"})
        made.begin()
        return made

    with pytest.raises(KilledError):
        train(TeacherCache(tmp_path / "outputs", 1.0), checkpoints=checkpoints(), report=killed)
    resumed = train(TeacherCache(tmp_path / "outputs", 1.0), checkpoints=checkpoints())
    assert_same(resumed[0], usual[0])
    assert resumed[1] == 0


@pytest.mark.parametrize("order", ["first", pytest.param("second", marks=pytest.mark.slow)])
def test_a_search_ends_the_same_bit_for_bit(order: str, tiny: Tiny, splits: Splits, varied: Config, tmp_path: Path) -> None:
    def find(cache: TeacherCache | None) -> tuple[SearchResult, int]:
        teacher, called = counting()
        settings = varied.override([f"search.order={order}", "data.batch_size=10"])
        return search(teacher, student(tiny), splits, settings, context=StageContext(teacher_cache=cache)), int(called.count)

    found, calls = find(None)
    # Three steps, each with a batch of one half for beta (and, ahead of it, of the other) and of the other half for the weights.
    assert calls == (6 if order == "first" else 9)
    assert find(TeacherCache(tmp_path, 1.0)) == (found, 12), "two views of 60 images in batches of 10, to make them"
    assert kept(tmp_path) == [(4, 4, 4), (4, 4, 4), (8, 8, 4), (8, 8, 4)]


@pytest.mark.slow
def test_two_replicas_read_them_too(train, two_replicas: tf.distribute.Strategy, tmp_path: Path) -> None:
    assert_same(train(TeacherCache(tmp_path, 1.0), strategy=two_replicas)[0], train(strategy=two_replicas)[0])
    assert kept(tmp_path) == [(4, 4, 4), (4, 4, 4), (8, 8, 4), (8, 8, 4), (10,)]


@pytest.mark.slow
def test_the_rows_of_a_comparison_share_them(config: Config, tmp_path: Path) -> None:
    """A teacher that rounds, and so only nearly the same results."""
    small = config.override(["data.train_limit_per_class=4", "teacher.name=wrn_10_1", "data.flip=true", "data.views=2"])
    losses = []
    for gib in (0, 1):
        run = RunDir(tmp_path / str(gib))
        folder = compare(small.override([f"teacher.cache_gib={gib}"]), run, ["kd", "margin", "dfa"], [0, 1], quiet=True)
        with open(folder / "cells.csv", encoding="utf-8", newline="") as file:
            losses.append([float(row["test_loss"]) for row in csv.DictReader(file)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    assert len(kept(tmp_path / "1" / "teacher" / "outputs")) == 4, "the logits, and the last block of each group"
    assert not (tmp_path / "0" / "teacher" / "outputs").exists()


# The files


def test_a_batch_has_what_the_teacher_gives_for_its_views(make, splits: Splits, varied: Config, tmp_path: Path) -> None:
    cached_outputs, teacher = make(tmp_path), whole_numbers()
    for part in (splits.train + splits.search, splits.search):  # the whole, and a part as the search has it
        assert_logits(cached_outputs, teacher, part, varied)


def test_each_view_has_a_row_of_its_own(make, splits: Splits, varied: Config, tmp_path: Path) -> None:
    make(tmp_path)
    logits, data = np.load(next(tmp_path.iterdir())), splits.train + splits.search
    assert logits.shape == (120, 10)
    for view in (0, 1):
        views = tf.fill([60], tf.constant(view, tf.int64))
        images = data.load_views(tf.range(60, dtype=tf.int64), views, seed=varied.data_seed, crop_padding=1, flip=True)["images"]
        np.testing.assert_array_equal(logits[view::2], whole_numbers().model(images))
    assert (logits[0::2] != logits[1::2]).any()


def test_images_that_are_not_varied_have_one_view(make, splits: Splits, varied: Config, tmp_path: Path) -> None:
    overrides = ["data.crop_padding=0", "data.flip=false", "data.views=null"]
    assert_logits(make(tmp_path, *overrides), whole_numbers(), splits.train, varied.override(overrides))
    assert np.load(next(tmp_path.iterdir())).shape == (60, 10)


def test_bfloat16_comes_back_as_it_was(make, splits: Splits, varied: Config, tmp_path: Path) -> None:
    with precision("mixed_bfloat16"):
        teacher = whole_numbers()
    cached_outputs = make(tmp_path, teacher=teacher, read=[NAMES["block1"]])
    # A graph, as the outputs are made by: processors with bfloat16 round its fused operations elsewhere than single ones.
    teach = tf.function(frozen(teacher))
    for batch in joined(cached_outputs, splits.train, varied):
        block = batch["cached_outputs"][NAMES["block1"]]
        assert block.dtype == tf.bfloat16.as_numpy_dtype
        np.testing.assert_array_equal(block, teach(batch["images"]).groups[0][0])
    make(tmp_path, read=[NAMES["block1"]])
    assert kept(tmp_path) == [(8, 8, 4), (8, 8, 4)], "another precision, another file"


@pytest.mark.parametrize(
    "override",
    ["data.views=3", "data.flip=false", "data.seed=1", "data.batch_size=15", "data.train_limit_per_class=5"],
)
def test_other_views_have_other_files(override: str, make, splits: Splits, varied: Config, tmp_path: Path) -> None:
    make(tmp_path)
    other = varied.override([override])
    parts = split(splits.source, other.data, seed=other.data_seed)
    assert_logits(make(tmp_path, override, splits=parts), whole_numbers(), parts.train + parts.search, other)
    assert kept(tmp_path) == [(10,), (10,)]


def test_the_names_of_layers_say_nothing(make, tmp_path: Path) -> None:
    make(tmp_path)
    make(tmp_path, teacher=whole_numbers(prefix="other_"))
    assert kept(tmp_path) == [(10,)]


def test_a_teacher_of_the_same_weights_but_another_graph_has_files_of_its_own(make, splits: Splits, varied: Config, tmp_path: Path) -> None:
    make(tmp_path)
    teacher = whole_numbers(activation="linear")
    assert_logits(make(tmp_path, teacher=teacher), teacher, splits.train, varied)
    assert kept(tmp_path) == [(10,), (10,)]


def test_another_teacher_of_the_same_name_has_files_of_its_own(make, splits: Splits, varied: Config, tmp_path: Path) -> None:
    for seed in (0, 1):
        teacher = whole_numbers(seed)
        assert_logits(make(tmp_path, teacher=teacher), teacher, splits.train, varied)
    assert kept(tmp_path) == [(10,), (10,)]


def test_other_images_have_other_files(make, splits: Splits, varied: Config, tmp_path: Path) -> None:
    make(tmp_path)
    inverted = Images(16 - np.asarray(splits.source.train.pixels), splits.source.train.labels)
    parts = {name: replace(getattr(splits, name), images=inverted) for name in ("train", "search")}
    others = replace(splits, **parts, source=replace(splits.source, train=inverted))
    assert_logits(make(tmp_path, splits=others), whole_numbers(), others.train, varied)
    assert kept(tmp_path) == [(10,), (10,)]


def test_the_seed_of_the_run_and_the_schedule_change_no_file(make, tmp_path: Path) -> None:
    make(tmp_path, "data.seed=0")
    before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    make(tmp_path, "data.seed=0", "seed=1", "train.learning_rate=0.5", "teacher.cache_gib=3", 'distil.methods={"rkd": 1.0}')
    assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == before


# Where there are none


@pytest.mark.parametrize(
    ("override", "options", "told"),
    [
        ("data.views=null", {}, "images are varied anew at every step unless data.views is a number"),
        ("seed=0", {"mixup": 0.5}, "train.mixup mixes images anew at every step"),
        ("teacher.batchnorm=training", {}, "teacher.batchnorm=training takes the statistics of each batch"),
    ],
)
def test_it_is_said_once_why_there_are_none(
    override: str, options: dict[str, float], told: str, make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert [make(tmp_path / "outputs", override, **options) for _ in range(2)] == [None, None]
    assert caplog.messages == [f"teacher.cache_gib has no effect: {told}"]
    assert not (tmp_path / "outputs").exists()


def test_no_more_is_kept_than_the_bound_says(make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    needed = 120 * 4 * (10 + 8 * 8 * 4) + 2 * 128  # rows of logits and of a block, of 4 bytes each, behind headers
    read = [NAMES["logits"], NAMES["block1"]]
    with caplog.at_level(logging.WARNING):
        assert make(tmp_path, read=read, gib=(needed - 1) / 2**30) is None
    assert caplog.messages == ["the teacher's outputs are not kept: they need 0.000119 GiB, and teacher.cache_gib is 0.000119149"]
    assert kept(tmp_path) == []
    make(tmp_path, read=read, gib=needed / 2**30)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == needed


def test_files_that_were_not_used_for_longest_make_room(make, tmp_path: Path) -> None:
    block2 = [NAMES["block2"]]
    make(tmp_path, read=block2)
    make(tmp_path, "data.views=3")
    make(tmp_path, read=block2)  # the file that was made first is now the one used last
    held = sum(path.stat().st_size for path in tmp_path.iterdir())
    make(tmp_path, gib=held / 2**30)
    assert sorted(np.load(path).shape for path in tmp_path.iterdir()) == [(120, 8, 8, 4), (120, 10)], "that of three views has gone"


def test_a_full_disk_is_told_before_anything_is_made(
    make, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with caplog.at_level(logging.WARNING):
        assert make(tmp_path) is None
    # 120 rows of 10 values of 4 bytes and a header are 4928 bytes.
    told = f"they need {4928 / 2**30:.3g} GiB, and {tmp_path} has room for {1000 / 2**30:.3g}"
    assert caplog.messages == [f"the teacher's outputs are not kept: {told}"]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_becomes_full_while_they_are_made_leaves_none(
    make, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        assert make(tmp_path, read=["logits", NAMES["block1"]]) is None
    assert caplog.messages == [f"the teacher's outputs are not kept: {tmp_path} cannot take them (No space left on device)"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_mistake(make, tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("in the way")
    with pytest.raises(UserError, match="outputs must be writable"):
        make(tmp_path / "outputs")


# Kills


def test_what_a_kill_has_left_is_gone_on_with(make, tmp_path: Path) -> None:
    shares: list[float] = []

    def report(numbers: dict[str, float]) -> None:
        shares.extend(numbers.values())
        if len(shares) == 4:
            raise KilledError

    read = [NAMES["logits"], NAMES["block3"]]
    make(tmp_path / "usual", read=read)
    with pytest.raises(KilledError):
        make(tmp_path / "killed", read=read, report=report)
    assert kept(tmp_path / "killed") == [], "what is not whole has another name"
    part = max((tmp_path / "killed").iterdir(), key=lambda path: path.stat().st_size)
    with open(part, "ab") as file:
        file.truncate(part.stat().st_size - 5)  # within the last row of the fourth batch
    make(tmp_path / "killed", read=read, report=report)
    assert shares == [pytest.approx(batch / 6) for batch in (1, 2, 3, 4, 4, 5, 6)], "a batch is made again"
    for path in (tmp_path / "usual").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


def test_a_file_that_was_cut_is_made_anew(make, tmp_path: Path) -> None:
    make(tmp_path)
    file = next(tmp_path.iterdir())
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    make(tmp_path)
    assert file.read_bytes() == content
