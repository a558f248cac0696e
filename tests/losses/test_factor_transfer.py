"""Factor transfer: the value by hand, the paraphraser's training and its cache, replicas, and the gradient."""

import logging
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Images, Split, Splits
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.frozen_teacher import frozen

Tiny = Callable[..., FeatureModel]
BATCH = Batch(tf.zeros([2, 8, 8, 1]), tf.constant([0, 1]), None)
NO_DATA = Split(Images(np.zeros((0, 8, 8, 1)), np.zeros(0, np.int32)), np.arange(0))


@pytest.fixture(scope="module")
def data(splits: Splits) -> Split:
    """128 images, in batches of two on one replica as on two."""
    return Split(splits.test.images, np.arange(128))


def build(student: FeatureModel, teacher: FeatureModel, **options: float) -> Method:
    keras.utils.set_random_seed(0)
    return plugins.build("losses", "factor_transfer", student, teacher, **options)


class Trained(NamedTuple):
    """A method whose paraphraser is trained.

    Attributes:
        method: it.
        cache: the directory that it was given.
        log: what was logged.
        drawn: random numbers that were drawn after it.
        teacher_weights: before and after it.
    """

    method: Method
    cache: Path
    log: str
    drawn: list[float]
    teacher_weights: tuple[list[np.ndarray], list[np.ndarray]]


@pytest.fixture(scope="module")
def trained(tiny: Tiny, data: Split, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two epochs of 64 batches."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("dfa_tf.losses.factor_transfer")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    teacher, cache = tiny(3, seed=2), tmp_path_factory.mktemp("factor_transfer") / "new"
    before = [weight.copy() for weight in teacher.model.get_weights()]
    method = build(tiny(2, seed=1), teacher, epochs=2)
    method.prepare(teacher, data, cache)
    logger.removeHandler(handler)
    logger.setLevel(level)
    return Trained(method, cache, "\n".join(records), draw(), (before, teacher.model.get_weights()))


def draw() -> list[float]:
    """A number of each source of randomness that Keras seeds."""
    return [random.random(), float(np.random.rand()), float(tf.random.uniform([]))]


def identity(shape: tuple[int, ...]) -> np.ndarray:
    """A 3x3 kernel that hands on the first channels."""
    kernel = np.zeros(shape, np.float32)
    kernel[1, 1] = np.eye(*shape[2:])
    return kernel


def plain(tiny: Tiny, cache: Path, **options: float) -> Method:
    """For features of 4x4x4, with a paraphraser out of a file and a translator that hand on the first channels."""
    method = build(tiny(2, seed=1), tiny(2, seed=2), **options)
    weights = [identity(weight.shape) if weight.ndim == 4 else np.zeros_like(weight) for weight in method.translator.get_weights()]
    method.translator.set_weights(weights)
    cache.mkdir(exist_ok=True)
    np.savez(cache / "paraphraser.npz", *weights)
    method.prepare(tiny(2), NO_DATA, cache)
    return method


def of(*pixels: list[float]) -> Features:
    """Features of 4x4x4 that are 0 but for the channels of one pixel, behind others that are not to be read."""
    feature = np.zeros((len(pixels), 4, 4, 4), np.float32)
    feature[:, 2, 1] = pixels
    read = ((tf.zeros([len(pixels), 8, 8, 2]),), (tf.ones(feature.shape), tf.constant(feature)))
    return Features(tf.zeros([len(pixels), 10]), read, None, {"output": read})


def test_the_value_by_hand_with_half_the_channels_and_absolute_differences(tiny: Tiny, tmp_path: Path) -> None:
    student = of([3, 4, 9, 9], [-1, 0.001, 0, 0])
    terms = plain(tiny, tmp_path)(student, of([2, 0, 9, 9], [0, 5, 0, 0]), BATCH)
    assert list(terms) == ["factor_transfer"]
    # (0.6, 0.8) and (1, 0). Three slopes of 0.1 make -0.001 of -1: (-1, 1) / sqrt 2 and (0, 1). A factor has 4 x 4 x 2 elements.
    half = np.sqrt(0.5)
    np.testing.assert_allclose(terms["factor_transfer"], [(0.4 + 0.8) / 32, (half + 1 - half) / 32], rtol=1e-5)


def test_rate_and_p_are_options(tiny: Tiny, tmp_path: Path) -> None:
    terms = plain(tiny, tmp_path, rate=0.75, p=2)(of([3, 4, 0, 9]), of([0, 0, 1, 9]), BATCH)
    # (0.6, 0.8, 0) and (0, 0, 1), of 4 x 4 x 3 elements, squared.
    np.testing.assert_allclose(terms["factor_transfer"], [(0.36 + 0.64 + 1) / 48], rtol=1e-5)


def test_equal_factors_give_zero_and_no_gradient(tiny: Tiny, tmp_path: Path) -> None:
    method, features = plain(tiny, tmp_path), of([3, 4, 0, 0], [-1, 2, 0, 0])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(method(features, features, BATCH)["factor_transfer"])
    gradients = tape.gradient(loss, [variable.value for variable in method.trainable_variables])
    np.testing.assert_allclose(loss, 0, atol=1e-7)
    assert all(np.abs(gradient).max() < 1e-6 for gradient in gradients)


def test_factors_of_another_resolution_are_pooled(tiny: Tiny, tmp_path: Path) -> None:
    network = tiny(2)
    fine, coarse = (FeatureModel.from_model(network.model, [[name]]) for name in ("group1_block1", "group2_block1"))
    for student, teacher in ((fine, coarse), (coarse, fine)):
        method = build(student, teacher)
        np.savez(tmp_path / "paraphraser.npz", *method.paraphraser.get_weights())
        method.prepare(teacher, NO_DATA, tmp_path)
        images = tf.constant(np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 1)), tf.float32)
        term = method(student.extractor(method.taps)(images), frozen(teacher, method.taps)(images), BATCH)["factor_transfer"]
        assert term.shape == (3,)
        assert (term.numpy() > 0).all()


def test_the_paraphraser_learns_to_be_undone(trained: Trained) -> None:
    first, last = (float(number) for number in re.findall(r"([\d.]+(?:e-\d+)?) in the", trained.log))
    assert last < 0.7 * first, trained.log


def test_preparing_leaves_the_teacher_as_it_is(trained: Trained) -> None:
    for was, weight in zip(*trained.teacher_weights, strict=True):
        np.testing.assert_array_equal(weight, was)


def test_the_paraphraser_is_frozen_once_it_is_trained(trained: Trained, tiny: Tiny) -> None:
    method, drawn = trained.method, build(tiny(2, seed=1), tiny(3, seed=2))
    for weight, was in zip(method.paraphraser.get_weights(), drawn.paraphraser.get_weights(), strict=True):
        assert np.abs(weight - was).max() > 1e-3
    assert {id(v) for v in method.trainable_variables} == {id(v) for v in method.translator.trainable_variables}
    assert {id(v) for v in method.non_trainable_variables} == {id(v) for v in method.paraphraser.variables}


def test_the_paraphraser_is_read_from_the_cache_where_it_is_there(trained: Trained, tiny: Tiny, splits: Splits) -> None:
    assert [path.name for path in trained.cache.iterdir()] == ["paraphraser.npz"]
    other = tiny(3, seed=5)
    again = build(tiny(2, seed=1), other)
    again.prepare(other, splits.train, trained.cache)
    for weight, expected in zip(again.paraphraser.get_weights(), trained.method.paraphraser.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
    assert again.paraphraser.trainable_variables == []


def test_the_cache_does_not_change_what_is_drawn_at_random_after_it(trained: Trained, tiny: Tiny, data: Split) -> None:
    teacher = tiny(3, seed=2)
    build(tiny(2, seed=1), teacher, epochs=2).prepare(teacher, data, trained.cache)
    assert draw() == trained.drawn


def test_two_replicas_train_the_same_paraphraser(trained: Trained, tiny: Tiny, data: Split, two_replicas: tf.distribute.Strategy) -> None:
    with two_replicas.scope():
        teacher = tiny(3, seed=2)
        method = build(tiny(2, seed=1), teacher, epochs=2)
        method.prepare(teacher, data, None)
    for weight, expected in zip(method.paraphraser.get_weights(), trained.method.paraphraser.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, atol=1e-4)


def test_without_a_paraphraser_it_is_an_error(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="factor_transfer needs a paraphraser: call prepare"):
        build(tiny(2), tiny(2))(of([1, 0, 0, 0]), of([1, 0, 0, 0]), BATCH)


def test_the_weight_is_the_authors_and_what_the_blocks_hand_on_is_read(tiny: Tiny) -> None:
    method = build(tiny(2), tiny(2))
    assert method.recommended_weight == 500
    assert tuple(method.taps) == ("output",)


def test_factors_have_half_the_teacher_s_channels(tiny: Tiny) -> None:
    method = build(tiny(4), tiny(6))
    kernels = [
        [weight.shape[2:] for weight in model.get_weights() if weight.ndim == 4] for model in (method.translator, method.paraphraser)
    ]
    assert kernels == [[(8, 8), (8, 6), (6, 6)], [(12, 12), (12, 6), (6, 6)]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "the rate of factor_transfer must be above 0. Received: 0.0"),
        ({"rate": float("nan")}, "the rate of factor_transfer must be above 0. Received: nan"),
        ({"p": 0.5}, "p of factor_transfer must be at least 1. Received: 0.5"),
        ({"epochs": 0}, "the epochs of factor_transfer must be a whole number of at least 1. Received: 0"),
        ({"epochs": 2.5}, "the epochs of factor_transfer must be a whole number of at least 1. Received: 2.5"),
    ],
)
def test_options_out_of_range_are_refused(tiny: Tiny, options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(tiny(2), tiny(2), **options)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_paraphraser_is_made_anew(
    trained: Trained, tiny: Tiny, data: Split, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = bytearray((trained.cache / "paraphraser.npz").read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    damaged = {"cut": content[:middle], "flipped": content, "empty": b"", "foreign": b"no weights"}
    (tmp_path / "paraphraser.npz").write_bytes(damaged[damage])
    few = Split(data.images, data.indices[:2])
    method = build(tiny(2), tiny(3, seed=2), epochs=1)
    method.prepare(tiny(3, seed=2), few, tmp_path)
    assert "paraphraser.npz is damaged" in caplog.text
    again = build(tiny(2), tiny(3, seed=2), epochs=1)
    again.prepare(tiny(3, seed=2), few, tmp_path)
    for one, other in zip(method.paraphraser.get_weights(), again.paraphraser.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
