"""Options of the training: mixup, label smoothing, clipping, and the moving average of the weights."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from steps import IMAGES, LABELS, step

from dfa_tf.config import Config
from dfa_tf.distillation.distil import Distilled, distil
from dfa_tf.distillation.distiller import Distiller
from dfa_tf.images.augmentation import mix
from dfa_tf.images.splits import Splits
from dfa_tf.methods import Batch, Method
from dfa_tf.methods.classification import cross_entropy
from dfa_tf.networks.features import FeatureModel
from dfa_tf.training.context import StageContext
from dfa_tf.training.evaluation import evaluate, predictor
from dfa_tf.training.updates import optimizer

Tiny = Callable[..., FeatureModel]


def test_mixup_trains_on_mixed_images_and_labels_of_both_networks(tiny: Tiny) -> None:
    student, teacher = tiny(4, 1, seed=1), tiny(6, 1, seed=2)
    seen: list[tuple[Batch, Any, Any]] = []

    class Watching(Method):
        def call(self, student: Any, teacher: Any, batch: Batch) -> dict[str, tf.Tensor]:
            seen.append((batch, student.logits, teacher.logits))
            return {"watching": tf.reduce_mean(student.logits)}

    distiller = Distiller(student, teacher, {"watching": Watching("watching")}, weights={"watching": 0.0}, mixup=1.0, seed=3)
    logs = step(distiller, rate=0.0)
    batch, ours, theirs = seen[-1]
    images, soft = mix(tf.constant(IMAGES), tf.constant(LABELS), num_classes=10, alpha=1.0, seed=[3, 0])
    np.testing.assert_array_equal(batch.images, images)
    np.testing.assert_array_equal(batch.labels, soft)
    np.testing.assert_allclose(theirs, teacher.model(images, training=False), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logs["cross_entropy"], np.mean(cross_entropy(soft, ours)), rtol=1e-5)
    step(distiller)
    assert not np.array_equal(seen[-1][0].images, batch.images), "each step mixes anew"


def test_label_smoothing_is_of_the_training_loss_alone(tiny: Tiny) -> None:
    student = tiny(4, 1, seed=1)
    logits = student.extractor()(IMAGES, training=True).logits
    logs = step(Distiller(student, label_smoothing=0.3))
    np.testing.assert_allclose(logs["cross_entropy"], np.mean(cross_entropy(tf.constant(LABELS), logits, 0.3)), rtol=1e-5)
    distiller = Distiller(student, label_smoothing=0.3)
    distiller.compile()
    served = np.mean(cross_entropy(tf.constant(LABELS), student.model(IMAGES, training=False)))
    np.testing.assert_allclose(distiller.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)["cross_entropy"], served, rtol=1e-5)


def test_a_clipped_step_is_as_long_as_it_may_be(tiny: Tiny) -> None:
    student = tiny(4, 1, seed=1)
    before = [variable.numpy() for variable in student.model.trainable_variables]
    step(Distiller(student, clip_norm=1e-3), rate=1.0)
    moved = [variable.numpy() - was for variable, was in zip(student.model.trainable_variables, before, strict=True)]
    np.testing.assert_allclose(np.sqrt(sum(np.square(change).sum() for change in moved)), 1e-3, rtol=1e-2)


def test_the_average_of_the_weights_is_evaluated_and_kept(tiny: Tiny, splits: Splits, quick: Config) -> None:
    config = quick.override(["distil.methods={}", "train.epochs=2", "train.evaluate_every=1"])
    plain = distil(None, tiny(), splits, config)
    averaged = distil(None, tiny(), splits, config.override(["train.ema=0.9"]))
    tracked = tiny()
    distiller = Distiller(tracked, weight_decay=config.train.weight_decay)
    steps = (splits.train + splits.search).steps(config.data.batch_size)
    distiller.compile(optimizer=optimizer(config.train, 2 * steps))
    averages: list[np.ndarray] = []
    for batch in (splits.train + splits.search).batches(config.data.batch_size, seed=0).take(2 * steps):
        distiller.train_on_batch(batch["images"], batch["labels"])
        now = [variable.numpy() for variable in tracked.model.trainable_variables]
        averages = [0.9 * a + 0.1 * w for a, w in zip(averages, now, strict=True)] if averages else now
    for variable, average in zip(averaged.student.trainable_variables, averages, strict=True):
        np.testing.assert_allclose(variable, average, rtol=1e-3, atol=1e-5)
    assert any(not np.allclose(one, other) for one, other in zip(averaged.student.get_weights(), plain.student.get_weights(), strict=True))
    accuracy, loss = evaluate(predictor(averaged.student), splits.test)
    assert (averaged.history[-1]["test_accuracy"], averaged.history[-1]["test_loss"]) == (accuracy, loss)
    # The training itself goes on with the weights that are not averaged.
    np.testing.assert_allclose(averaged.history[-1]["total_loss"], plain.history[-1]["total_loss"], rtol=1e-5)


@pytest.mark.slow
def test_two_replicas_clip_average_and_smooth_as_one_does(
    tiny: Tiny, splits: Splits, config: Config, two_replicas: tf.distribute.Strategy
) -> None:
    options = ["train.ema=0.8", "train.clip_norm=0.5", "train.label_smoothing=0.1"]
    settings = config.override(["data.batch_size=12", "train.epochs=2", "train.learning_rate=0.05", "distil.methods={}", *options])

    def run(strategy: tf.distribute.Strategy | None) -> Distilled:
        return distil(None, tiny(activation="silu"), splits, settings, context=StageContext(strategy=strategy))

    one, two = run(None), run(two_replicas)
    for ours, theirs in zip(one.student.variables, two.student.variables, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-4, rtol=0, err_msg=ours.path)
    np.testing.assert_allclose(one.history[-1]["test_loss"], two.history[-1]["test_loss"], rtol=1e-3)


def test_each_replica_mixes_its_own_images(tiny: Tiny, splits: Splits, config: Config, two_replicas: tf.distribute.Strategy) -> None:
    settings = config.override(["data.batch_size=12", "train.epochs=1", "train.mixup=1.0", "distil.methods={}"])
    (row,) = distil(None, tiny(), splits, settings, context=StageContext(strategy=two_replicas)).history
    assert np.isfinite(row["total_loss"])
    with two_replicas.scope():
        distiller = Distiller(tiny(), mixup=1.0)
        distiller.compile(optimizer=keras.optimizers.SGD(0.0))
        distiller.optimizer.build(distiller.trainable_variables)

    @tf.function
    def labels() -> tf.Tensor:
        mixed = two_replicas.run(
            lambda: distiller._mixed(Batch(tf.constant(IMAGES), tf.constant(LABELS), None), tf.constant(0, tf.int64)).labels
        )
        return two_replicas.gather(mixed, axis=0)

    first, second = np.split(labels().numpy(), 2)
    assert (first != second).any()
