"""Sample weights and soft labels on their way from the images to both stages and the evaluation."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from steps import IMAGES, LABELS, same, step, weights_of

from dfa_tf import plugins
from dfa_tf.aggregation.bridge import Bridge
from dfa_tf.aggregation.search import SearchResult, search
from dfa_tf.config import Config, SearchConfig
from dfa_tf.distillation.distil import Distilled, distil
from dfa_tf.distillation.distiller import Distiller
from dfa_tf.images.splits import Images, Split, Splits, split
from dfa_tf.methods import Batch
from dfa_tf.methods.classification import classes_of, correct, cross_entropy, weighted_mean
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.frozen_teacher import frozen
from dfa_tf.training.evaluation import evaluate

Tiny = Callable[..., FeatureModel]
WEIGHTS = np.array([2, 0, 1, 0.5] * 3, np.float32)


def test_a_weighted_mean_divides_by_the_batch_and_leaves_scalars() -> None:
    assert float(weighted_mean(tf.constant([1.0, 2.0, 4.0]), tf.constant([2.0, 0.0, 1.0]))) == 2  # (2 + 0 + 4) / 3
    assert float(weighted_mean(tf.constant([1.0, 2.0, 6.0]), None)) == 3
    assert float(weighted_mean(tf.constant(5.0), tf.constant([2.0, 0.0, 1.0]))) == 5


def test_the_class_of_a_soft_label_is_its_largest() -> None:
    soft = tf.constant([[0.2, 0.5, 0.3], [0.6, 0.4, 0.0], [0.1, 0.1, 0.8]])
    assert classes_of(soft).numpy().tolist() == classes_of(tf.constant([1, 0, 2])).numpy().tolist() == [1, 0, 2]
    logits = tf.constant([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    assert correct(soft, logits).numpy().tolist() == correct(tf.constant([1, 0, 2]), logits).numpy().tolist() == [1, 0, 1]


# Splits


def test_batches_hold_the_weights_of_their_images_only_where_there_are_any(splits: Splits) -> None:
    pixels, labels = np.zeros((20, 2, 2, 1), np.uint8), np.arange(20) % 2
    assert set(Split(Images(pixels, labels), np.arange(20)).batches(4, seed=0).element_spec) == {"images", "labels", "index"}
    part = Split(Images(pixels, labels, np.arange(20, dtype=np.float64)), np.arange(3, 20))
    assert part.batches(4, seed=0).element_spec["weights"] == tf.TensorSpec([4], tf.float32)
    for data in (part.batches(4, seed=0).take(5), part.once(4)):
        for batch in data:
            np.testing.assert_array_equal(batch["weights"], batch["index"] + 3)


def test_batches_hold_soft_labels() -> None:
    soft = np.random.default_rng(0).dirichlet(np.ones(3), 8)
    part = Split(Images(np.zeros((8, 2, 2, 1), np.uint8), soft), np.arange(8))
    assert part.batches(4, seed=0).element_spec["labels"] == tf.TensorSpec([4, 3], tf.float32)
    for batch in part.batches(4, seed=0).take(2):
        np.testing.assert_array_equal(batch["labels"], soft[batch["index"]].astype(np.float32))


def test_soft_labels_are_split_by_their_classes(splits: Splits, config: Config) -> None:
    source = splits.source
    hard = source.train
    soft = Images(hard.pixels, 0.7 * np.eye(10)[hard.labels] + 0.03)
    made = split(type(source)(soft, source.test, source.class_names, [0.0], [1.0], ""), config.data, seed=0)
    np.testing.assert_array_equal(made.train.indices, splits.train.indices)
    np.testing.assert_array_equal(made.search.indices, splits.search.indices)
    np.testing.assert_array_equal(made.search.classes, splits.search.labels)


# The Distiller


def test_the_loss_is_the_mean_of_weighted_terms_by_hand_and_of_a_batch_statistic_as_it_is(tiny: Tiny) -> None:
    student, teacher = tiny(4, 1, seed=1), tiny(6, 2, seed=2)
    methods = {name: plugins.build("losses", name, student, teacher) for name in ("kd", "rkd")}
    ours, theirs = student.extractor()(IMAGES, training=True), frozen(teacher)(IMAGES)
    kd, rkd = (method(ours, theirs, Batch(IMAGES, LABELS, None)) for method in methods.values())
    distiller = Distiller(student, teacher, methods, weights={"kd": 0.9, "rkd": 2.0})
    distiller.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    logs = distiller.train_on_batch(IMAGES, LABELS, sample_weight=WEIGHTS, return_dict=True)
    log_softmax = tf.nn.log_softmax(ours.logits).numpy()
    np.testing.assert_allclose(logs["cross_entropy"], (WEIGHTS * -log_softmax[np.arange(12), LABELS]).sum() / 12, rtol=1e-5)
    np.testing.assert_allclose(logs["kd"], (WEIGHTS * kd["kd"].numpy()).sum() / 12, rtol=1e-5)
    for name, value in rkd.items():
        assert value.shape == ()
        np.testing.assert_allclose(logs[name], value, rtol=1e-5)
    expected = logs["cross_entropy"] + 0.9 * logs["kd"] + 2 * sum(logs[name] for name in rkd)
    np.testing.assert_allclose(logs["total_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(logs["accuracy"], (np.argmax(ours.logits, 1) == LABELS).mean(), rtol=1e-6)


@pytest.mark.parametrize("column", [False, True])
def test_fit_with_sample_weights_is_that_of_keras(column: bool, tiny: Tiny) -> None:
    student, twin = tiny(seed=1), tiny(seed=1)
    options = {"sample_weight": WEIGHTS[:, np.newaxis] if column else WEIGHTS, "batch_size": 6, "epochs": 2, "shuffle": False, "verbose": 0}
    distiller = Distiller(student)
    distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    distiller.fit(IMAGES, LABELS, **options)
    twin.model.compile(optimizer=keras.optimizers.SGD(0.1), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    twin.model.fit(IMAGES, LABELS, **options)
    for ours, theirs in zip(student.model.get_weights(), twin.model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    distiller.evaluate(IMAGES, LABELS, sample_weight=WEIGHTS, verbose=0)


def test_one_hot_labels_train_as_classes_do(tiny: Tiny) -> None:
    made = []
    for labels in (LABELS, np.eye(10, dtype=np.float32)[LABELS]):
        student, teacher = tiny(4, 1, seed=1), tiny(6, 2, seed=2)
        distiller = Distiller(student, teacher, {"dkd": plugins.build("losses", "dkd", student, teacher)})
        distiller.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
        logs = distiller.train_on_batch(IMAGES, labels, return_dict=True)
        made.append([*logs.values(), *student.model.get_weights()])
    for one, other in zip(*made, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_mixing_keeps_the_sum_of_the_weights(tiny: Tiny) -> None:
    student = tiny()
    student.model.get_layer("logits").set_weights([np.zeros((8, 10)), np.zeros(10)])
    distiller = Distiller(student, mixup=0.8)
    distiller.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    logs = distiller.train_on_batch(IMAGES, LABELS, sample_weight=WEIGHTS, return_dict=True)
    # All classes are equally likely, so that each example costs ln 10 times its weight: 10.5 among 12.
    np.testing.assert_allclose(logs["cross_entropy"], 10.5 / 12 * np.log(10), rtol=1e-5)


# Both stages: what is wrong about images of weight 0 changes nothing


def weighted(splits: Splits, *, wrong: bool, weights: bool = True) -> Splits:
    """The splits with weights of 0 and 2, and without a test set; labels of images of weight 0 can be wrong."""
    images = splits.source.train
    zero = np.arange(len(images)) % 3 == 0
    labels = np.where(zero & wrong, (images.labels + 1) % 10, images.labels)
    given = Images(images.pixels, labels, np.where(zero, 0.0, 2.0) if weights else None)
    train, search_half = (Split(given, part.indices) for part in (splits.train, splits.search))
    none = Split(given, np.arange(0))
    return Splits(train, search_half, none, none, splits.source)


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_images_of_weight_zero_do_not_teach(mixup: float, tiny: Tiny, splits: Splits, quick: Config) -> None:
    config = quick.override([f"train.mixup={mixup}", "distil.methods={}", "train.epochs=1"])

    def trained(**options: bool) -> Distilled:
        return distil(None, tiny(seed=1), weighted(splits, **options), config)

    right, wrong = (trained(wrong=wrong) for wrong in (False, True))
    for one, other in zip(weights_of(right.student), weights_of(wrong.student), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    counting = trained(wrong=True, weights=False)
    assert not same(weights_of(counting.student), weights_of(wrong.student))


@pytest.mark.parametrize("objective", ["ts", pytest.param("student", marks=pytest.mark.slow)])
def test_images_of_weight_zero_have_no_say_in_the_search(objective: str, tiny: Tiny, splits: Splits, quick: Config) -> None:
    config = quick.override([f"search.objective={objective}", "search.mode=joint", "search.epochs=1"])

    def searched(**options: bool) -> SearchResult:
        return search(tiny(4, 2, seed=2), tiny(4, 1, seed=1), weighted(splits, **options), config)

    right, wrong = (searched(wrong=wrong) for wrong in (False, True))
    assert right.weights == wrong.weights
    assert right.trajectory == wrong.trajectory
    assert searched(wrong=True, weights=False).trajectory != wrong.trajectory


def test_the_paths_of_the_bridge_are_weighted_means(tiny: Tiny) -> None:
    bridge = Bridge(tiny(6, 2, seed=2), tiny(4, 1, seed=1), SearchConfig(gamma_st=3.0, gamma_ts=0.5), seed=0)
    terms = {"st": tf.constant([1.0, 3.0]), "ts": tf.constant([2.0, 4.0])}
    assert float(bridge.combine(terms, tf.constant([2.0, 0.0]))) == 3 * 1 + 0.5 * 2
    assert float(bridge.combine(terms)) == 3 * 2 + 0.5 * 3


def test_the_teacher_to_student_path_takes_soft_labels(tiny: Tiny) -> None:
    teacher = tiny(6, 2, seed=2)
    bridge = Bridge(teacher, tiny(4, 1, seed=1), SearchConfig(objective="ts"), seed=0)
    ones = [bridge.group_terms(1, None, frozen(teacher)(IMAGES), tf.one_hot(classes, 10))["ts"] for classes in (LABELS, (LABELS + 1) % 10)]
    half = bridge.group_terms(1, None, frozen(teacher)(IMAGES), (tf.one_hot(LABELS, 10) + tf.one_hot((LABELS + 1) % 10, 10)) / 2)["ts"]
    np.testing.assert_allclose(half, (ones[0] + ones[1]) / 2, rtol=1e-5)
    np.testing.assert_allclose(ones[0], bridge.group_terms(1, None, frozen(teacher)(IMAGES), tf.constant(LABELS))["ts"], rtol=1e-5)


# Evaluation


def test_an_evaluation_takes_soft_labels_and_counts_every_image_alike() -> None:
    soft = np.array([[0.75, 0.25], [0.25, 0.75], [0.5, 0.5]])
    part = Split(Images(np.zeros((3, 1, 1, 1), np.uint8), soft, np.array([1.0, 100.0, 0.0])), np.arange(3))
    result = evaluate(lambda images: tf.math.log([[0.25, 0.75]] * 3), part)
    np.testing.assert_allclose(result.accuracy, 1 / 3, rtol=1e-6)  # of two equally likely classes the first one counts
    own, other = -np.log(0.25), -np.log(0.75)
    expected = [0.75 * own + 0.25 * other, 0.25 * own + 0.75 * other, 0.5 * own + 0.5 * other]
    np.testing.assert_allclose(result.loss, np.mean(expected), rtol=1e-5)


def test_without_a_test_set_the_logs_tell_of_none(tiny: Tiny, splits: Splits, quick: Config) -> None:
    none, validation = (Split(splits.source.train, np.arange(count)) for count in (0, 5))
    config = quick.override(["train.epochs=1"])
    (row,) = distil(None, tiny(), Splits(splits.train, splits.search, none, none, splits.source), config).history
    of_training = {"accuracy", "cross_entropy", "epoch", "gradient_norm", "learning_rate", "total_loss"}
    assert set(row) == of_training
    (row,) = distil(None, tiny(), Splits(splits.train, splits.search, validation, none, splits.source), config).history
    assert set(row) == {*of_training, "validation_accuracy", "validation_loss"}


def test_the_usual_cross_entropy_is_that_of_classes(tiny: Tiny) -> None:
    distiller = Distiller(tiny(seed=1))
    logits = tiny(seed=1).extractor()(IMAGES, training=True).logits
    np.testing.assert_allclose(step(distiller)["cross_entropy"], np.mean(cross_entropy(tf.constant(LABELS), logits)), rtol=1e-5)
