"""The evaluator on a predictor whose numbers are known, and the evaluation callback's schedule."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from dfa_tf.config import TrainConfig
from dfa_tf.images.splits import Images, Split, Splits
from dfa_tf.networks.features import FeatureModel
from dfa_tf.training.evaluation import BATCH_SIZE, Evaluation, EvaluationCallback, evaluate, images_per_second, predictor

COUNT = 2 * BATCH_SIZE + 88  # the last batch is smaller


@pytest.fixture(scope="module")
def numbered() -> Split:
    """Images whose one pixel is their number; every third is of class 1, the others of class 0."""
    pixels = np.arange(COUNT, dtype=np.float32).reshape(COUNT, 1, 1, 1)
    return Split(Images(pixels, (np.arange(COUNT) % 3 == 0).astype(np.int32)), np.arange(COUNT))


def test_accuracy_and_loss_by_hand_with_an_uneven_last_batch(numbered: Split) -> None:
    def predict(images: tf.Tensor) -> tf.Tensor:
        # Probabilities (1/4, 3/4) for the even numbers, (1/2 + 1/6, 1/3) for the odd ones.
        even = tf.reshape(images, [-1, 1]) % 2 == 0
        return tf.where(even, tf.math.log([[0.25, 0.75]]), tf.math.log([[2 / 3, 1 / 3]]))

    number = np.arange(COUNT)
    one, even = number % 3 == 0, number % 2 == 0
    right = np.where(even, one, ~one)
    probability = np.where(even, np.where(one, 0.75, 0.25), np.where(one, 1 / 3, 2 / 3))
    result = evaluate(predict, numbered)
    assert isinstance(result, Evaluation)
    np.testing.assert_allclose(result.accuracy, right.mean(), rtol=1e-6)
    np.testing.assert_allclose(result.loss, -np.log(probability).mean(), rtol=1e-5)


def test_every_image_is_seen_once_and_in_order(numbered: Split) -> None:
    seen: list[np.ndarray] = []

    def predict(images: tf.Tensor) -> tf.Tensor:
        seen.append(images.numpy().ravel())
        return tf.zeros([len(images), 2])

    result = evaluate(predict, numbered)
    assert [len(batch) for batch in seen] == [BATCH_SIZE, BATCH_SIZE, 88]
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(COUNT))
    np.testing.assert_allclose(result.loss, np.log(2), rtol=1e-6)


def test_a_part_of_the_images_is_evaluated_alone(numbered: Split) -> None:
    always_zero = evaluate(lambda images: tf.tile([[1.0, 0.0]], [len(images), 1]), Split(numbered.images, np.array([0, 1, 2, 4])))
    assert always_zero.accuracy == 0.75


def test_a_predictor_runs_in_inference_mode_and_is_traced_once(splits: Splits, tiny: Callable[..., FeatureModel]) -> None:
    model = tiny(seed=3).model
    predict = predictor(model)
    before = model.get_weights()
    for count in (1, 5, 8):
        images = tf.constant(splits.test.images.pixels[:count], tf.float32)
        np.testing.assert_allclose(predict(images), model(images, training=False), rtol=1e-4, atol=1e-5)
    assert predict.experimental_get_tracing_count() == 1
    for weight, was in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, was)
    assert not np.allclose(predict(images), model(images, training=True), atol=1e-2)


def logs_of(callback: EvaluationCallback, epochs: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"total_loss": 1.0} for _ in range(epochs)]
    for epoch, logs in enumerate(rows):
        callback.on_epoch_end(epoch, logs)
    return rows


def with_validation(splits: Splits) -> Splits:
    return Splits(splits.train, splits.search, Split(splits.train.images, np.arange(7)), splits.test, splits.source)


@pytest.mark.parametrize(("every", "epochs", "evaluated"), [(1, 3, [0, 1, 2]), (2, 5, [1, 3, 4]), (4, 4, [3]), (10, 3, [2])])
def test_the_callback_looks_every_so_many_epochs_and_always_at_the_last(
    every: int, epochs: int, evaluated: list[int], splits: Splits, tiny: Callable[..., FeatureModel]
) -> None:
    model = tiny().model
    small = Splits(splits.train, splits.search, splits.validation, Split(splits.test.images, np.arange(20)), splits.source)
    rows = logs_of(EvaluationCallback(model, small, TrainConfig(evaluate_every=every, epochs=epochs)), epochs)
    assert [i for i, row in enumerate(rows) if "test_accuracy" in row] == evaluated
    accuracy, loss = evaluate(predictor(model), small.test)
    for i in evaluated:
        assert rows[i] == {"total_loss": 1.0, "test_accuracy": accuracy, "test_loss": loss}


def test_the_callback_evaluates_the_validation_split_where_there_is_one(splits: Splits, tiny: Callable[..., FeatureModel]) -> None:
    model, data = tiny().model, with_validation(splits)
    (row,) = logs_of(EvaluationCallback(model, data, TrainConfig(epochs=1)), 1)
    assert set(row) == {"total_loss", "test_accuracy", "test_loss", "validation_accuracy", "validation_loss"}
    assert (row["validation_accuracy"], row["validation_loss"]) == evaluate(predictor(model), data.validation)


def test_the_callback_sees_the_weights_of_the_moment(splits: Splits, tiny: Callable[..., FeatureModel]) -> None:
    model = tiny().model
    callback = EvaluationCallback(model, splits, TrainConfig(epochs=2))
    before: dict[str, float] = {}
    callback.on_epoch_end(0, before)
    head = model.get_layer("logits")
    head.set_weights([np.zeros_like(head.kernel), np.eye(10)[4]])
    after: dict[str, float] = {}
    callback.on_epoch_end(1, after)
    np.testing.assert_allclose(after["test_accuracy"], (splits.test.labels == 4).mean(), rtol=1e-5)
    assert before["test_loss"] != after["test_loss"]


def test_speed_is_measured_in_turns() -> None:
    calls: list[str] = []

    def predict(name: str) -> Callable[[tf.Tensor], tf.Tensor]:
        def call(images: tf.Tensor) -> tf.Tensor:
            calls.append(name)
            return tf.zeros([len(images), 2])

        return call

    speeds = images_per_second({"a": predict("a"), "b": predict("b")}, tf.zeros([16, 2, 2, 1]), repetitions=3)
    assert calls == ["a", "b"] * 5  # two of them warm up
    assert set(speeds) == {"a", "b"}
    assert min(speeds.values()) > 100
