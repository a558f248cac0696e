"""The Distiller: its loss by hand, its one pass of each network, replicas, seeds, and the contract of methods."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from steps import IMAGES, LABELS, same, step, weights_of

from dfa_tf import plugins
from dfa_tf.config import Config
from dfa_tf.distillation.distil import Distilled, distil
from dfa_tf.distillation.distiller import Distiller
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Images, Split, Splits
from dfa_tf.methods import Batch
from dfa_tf.methods.classification import cross_entropy
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.frozen_teacher import frozen
from dfa_tf.training.context import StageContext
from dfa_tf.training.evaluation import evaluate, predictor

Tiny = Callable[..., FeatureModel]


def test_the_loss_is_the_weighted_sum_by_hand(tiny: Tiny) -> None:
    student, teacher = tiny(4, 1, seed=1), tiny(6, 3, seed=2)
    methods = {name: plugins.build("losses", name, student, teacher) for name in ("kd", "dfa")}
    ours, theirs = student.extractor()(IMAGES, training=True), frozen(teacher)(IMAGES)
    batch = Batch(IMAGES, LABELS, None)
    terms = {name: float(np.mean(term)) for method in methods.values() for name, term in method(ours, theirs, batch).items()}
    ce = float(np.mean(cross_entropy(tf.constant(LABELS), ours.logits)))
    logs = step(Distiller(student, teacher, methods, weights={"kd": 0.9, "dfa": 25.0}, ce_weight=0.3, weight_decay=0.1))
    assert set(logs) == {"total_loss", "cross_entropy", "accuracy", "kd", "dfa/group1", "dfa/group2", "learning_rate", "gradient_norm"}
    for name, value in terms.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5)
    np.testing.assert_allclose(logs["cross_entropy"], ce, rtol=1e-5)
    expected = 0.3 * ce + 0.9 * terms["kd"] + 25 * (terms["dfa/group1"] + terms["dfa/group2"])
    np.testing.assert_allclose(logs["total_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(logs["accuracy"], (np.argmax(ours.logits, 1) == LABELS).mean(), rtol=1e-6)


def test_the_logs_hold_the_learning_rate_and_the_norm_of_the_gradient(tiny: Tiny) -> None:
    student, twin = tiny(4, 1, seed=1), tiny(4, 1, seed=1)
    with tf.GradientTape() as tape:
        loss = 0.5 * tf.reduce_mean(cross_entropy(tf.constant(LABELS), twin.extractor()(IMAGES, training=True).logits))
    gradients = tape.gradient(loss, [variable.value for variable in twin.model.trainable_variables])
    by_hand = np.sqrt(sum(float(tf.reduce_sum(gradient**2)) for gradient in gradients))
    # Neither the L2 term nor clipping, to half of the norm here, changes it.
    logs = step(Distiller(student, ce_weight=0.5, weight_decay=0.1, clip_norm=by_hand / 2), rate=0.25)
    np.testing.assert_allclose(logs["gradient_norm"], by_hand, rtol=1e-4)
    assert logs["learning_rate"] == 0.25


def test_the_norm_of_a_gradient_that_no_step_sees_is_left_out(tiny: Tiny, two_replicas: tf.distribute.Strategy) -> None:
    scaled = Distiller(tiny(4, 1))
    scaled.compile(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)), run_eagerly=True)
    with two_replicas.scope():
        divided = Distiller(FeatureModel.from_model(keras.models.clone_model(tiny(4, 1).model), tiny(4, 1).block_names()))
        divided.compile(optimizer=keras.optimizers.SGD(0.1))
    for distiller in (scaled, divided):
        assert [metric.name for metric in distiller.metrics] == ["total_loss", "cross_entropy", "accuracy", "learning_rate"]
    assert set(step(scaled)) == {"total_loss", "cross_entropy", "accuracy", "learning_rate"}


def test_soft_labels_are_taken_too(tiny: Tiny) -> None:
    student, teacher = tiny(4, 1, seed=1), tiny(6, 1, seed=2)
    soft = np.random.default_rng(0).dirichlet(np.ones(10), 12).astype(np.float32)
    distiller = Distiller(student, teacher, {"kd": plugins.build("losses", "kd", student, teacher)})
    logits = student.extractor()(IMAGES, training=True).logits.numpy()
    distiller.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    logs = distiller.train_on_batch(IMAGES, soft, return_dict=True)
    by_hand = -(soft * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1).mean()
    np.testing.assert_allclose(logs["cross_entropy"], by_hand, rtol=1e-5)
    np.testing.assert_allclose(logs["accuracy"], (logits.argmax(1) == soft.argmax(1)).mean(), rtol=1e-6)


def test_one_step_follows_the_gradient_and_the_l2_term(tiny: Tiny) -> None:
    student, twin, teacher = tiny(4, 1, seed=1), tiny(4, 1, seed=1), tiny(6, 1, seed=2)
    method = plugins.build("losses", "kd", student, teacher)
    step(Distiller(student, teacher, {"kd": method}, weights={"kd": 2.0}, ce_weight=0.5, weight_decay=0.1), rate=0.3)
    with tf.GradientTape() as tape:
        features = twin.extractor()(IMAGES, training=True)
        terms = method(features, frozen(teacher)(IMAGES), Batch(IMAGES, LABELS, None))
        loss = 0.5 * tf.reduce_mean(cross_entropy(tf.constant(LABELS), features.logits)) + 2 * tf.reduce_mean(terms["kd"])
    before = twin.model.trainable_variables
    gradients = tape.gradient(loss, [variable.value for variable in before])
    for after, variable, gradient in zip(student.model.trainable_variables, before, gradients, strict=True):
        w = variable.numpy()
        np.testing.assert_allclose(after.numpy(), w - 0.3 * (gradient.numpy() + 0.1 * w), rtol=1e-4, atol=1e-6)


class Counting(keras.layers.Layer):
    """Counts its calls in a variable, in graphs too."""

    def build(self, shape: Any) -> None:
        self.count = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="count")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        self.count.assign_add(1)
        return inputs


def counted(name: str) -> tuple[FeatureModel, Counting]:
    counting = Counting()
    pixels = keras.layers.Input((8, 8, 1))
    x = keras.layers.Conv2D(3, 3, strides=4, name="first")(counting(pixels))
    x = keras.layers.ReLU(name="second")(x)
    logits = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    return FeatureModel.from_model(keras.Model(pixels, logits, name=name), [["first", "second"]]), counting


def test_a_step_takes_one_forward_pass_of_each_network() -> None:
    (student, ours), (teacher, theirs) = counted("counted_student"), counted("counted_teacher")
    methods = {name: plugins.build("losses", name, student, teacher) for name in ("kd", "dfa")}
    distiller = Distiller(student, teacher, methods)
    distiller.compile(optimizer="sgd")
    assert (int(ours.count), int(theirs.count)) == (0, 0)
    distiller.fit(IMAGES, LABELS, batch_size=4, epochs=2, verbose=0)
    assert (int(ours.count), int(theirs.count)) == (6, 6)
    distiller.evaluate(IMAGES, LABELS, batch_size=4, verbose=0)
    assert (int(ours.count), int(theirs.count)) == (9, 6)


def test_fit_takes_pairs_ordinary_callbacks_and_validation_data(tiny: Tiny, tmp_path: Path) -> None:
    student, teacher = tiny(4, 1), tiny(6, 1)
    distiller = Distiller(student, teacher, {"kd": plugins.build("losses", "kd", student, teacher)})
    distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 * 0.5**epoch),
        keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
        keras.callbacks.ModelCheckpoint(
            str(tmp_path / "best.weights.h5"), monitor="val_accuracy", mode="max", save_best_only=True, save_weights_only=True
        ),
    ]
    history = distiller.fit(
        IMAGES, LABELS, batch_size=6, epochs=2, callbacks=callbacks, validation_data=(IMAGES[:5], LABELS[:5]), verbose=0
    ).history
    train = {"total_loss", "cross_entropy", "accuracy", "kd"}
    assert set(history) == {*train, "learning_rate", "gradient_norm", "val_cross_entropy", "val_accuracy"}
    np.testing.assert_allclose(history["learning_rate"], [0.1, 0.05])
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3
    assert (tmp_path / "best.weights.h5").exists()
    np.testing.assert_allclose(history["total_loss"], np.array(history["cross_entropy"]) + np.array(history["kd"]), rtol=1e-5)
    last = evaluate(predictor(distiller.student), _split(IMAGES[:5], LABELS[:5]))
    np.testing.assert_allclose([history["val_accuracy"][-1], history["val_cross_entropy"][-1]], last, rtol=1e-5)


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(Images(images, labels), np.arange(len(images)))


def test_evaluate_is_in_inference_mode_as_the_evaluator_says(tiny: Tiny, splits: Splits) -> None:
    student = tiny(seed=4)
    distiller = Distiller(student)
    distiller.compile()
    before = weights_of(student.model)
    images, labels = splits.test.images.pixels[:200], splits.test.images.labels[:200]
    numbers = distiller.evaluate(images, labels, batch_size=64, return_dict=True, verbose=0)
    expected = evaluate(predictor(student.model), Split(splits.test.images, np.arange(200)))
    assert set(numbers) == {"cross_entropy", "accuracy"}
    np.testing.assert_allclose([numbers["accuracy"], numbers["cross_entropy"]], expected, rtol=1e-5)
    assert same(weights_of(student.model), before)
    # The mode matters for this network.
    trained = np.mean(cross_entropy(tf.constant(labels), student.model(images, training=True)))
    assert abs(trained - numbers["cross_entropy"]) > 0.01


@pytest.mark.parametrize("batchnorm", ["inference", "training"])
def test_a_frozen_teacher_is_unchanged_by_fit_and_evaluate(batchnorm: str, tiny: Tiny) -> None:
    student, teacher = tiny(4, 1, seed=1), tiny(6, 2, seed=2)
    before, started = weights_of(teacher.model), weights_of(student.model)
    methods = {name: plugins.build("losses", name, student, teacher) for name in ("kd", "dfa")}
    distiller = Distiller(student, teacher, methods, weight_decay=0.1, teacher_batchnorm=batchnorm)
    distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    distiller.fit(IMAGES, LABELS, batch_size=6, verbose=0)
    distiller.evaluate(IMAGES, LABELS, verbose=0)
    assert same(weights_of(teacher.model), before)
    assert not same(weights_of(student.model), started)
    assert not any(variable is ours for variable in teacher.model.variables for ours in distiller.trainable_variables)


def test_the_switch_decides_what_the_teacher_tells(tiny: Tiny) -> None:
    student, teacher = tiny(4, 1, seed=1), tiny(6, 2, seed=2)
    told = {}
    for batchnorm in ("inference", "training"):
        method = plugins.build("losses", "kd", student, teacher)
        told[batchnorm] = step(Distiller(student, teacher, {"kd": method}, teacher_batchnorm=batchnorm))["kd"]
    logits = student.extractor()(IMAGES, training=True).logits
    for batchnorm, value in told.items():
        theirs = frozen(teacher)(IMAGES) if batchnorm == "inference" else teacher.extractor()(IMAGES, training=True)
        p = tf.nn.softmax(theirs.logits / 4)
        expected = 16 * tf.reduce_mean(cross_entropy(p, logits / 4) - cross_entropy(p, theirs.logits / 4))
        np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_without_a_teacher_it_is_ordinary_training(tiny: Tiny) -> None:
    student, twin = tiny(seed=1), tiny(seed=1)
    distiller = Distiller(student)
    distiller.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
    distiller.fit(IMAGES, LABELS, batch_size=6, epochs=3, shuffle=False, verbose=0)
    twin.model.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    twin.model.fit(IMAGES, LABELS, batch_size=6, epochs=3, shuffle=False, verbose=0)
    for ours, theirs in zip(student.model.get_weights(), twin.model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_distil_reports_logs_and_calls_back(tiny: Tiny, splits: Splits, quick: Config, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    seen: list[str] = []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(f"{epoch} {sorted(logs)}"))
    result = distil(
        None,
        tiny(),
        splits,
        quick.override(["train.epochs=2", "train.evaluate_every=2"]),
        callbacks=[callback],
        directory=tmp_path,
        context=StageContext(report=lambda done, total, numbers: told.append((done, total))),
    )
    usual = ["accuracy", "cross_entropy", "gradient_norm", "learning_rate", "loss", "total_loss"]
    assert seen == [f"0 {usual}", f"1 {sorted([*usual, 'test_accuracy', 'test_loss'])}"]
    assert told == [(i, 6) for i in range(1, 7)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert (result.history[-1]["test_accuracy"], result.history[-1]["test_loss"]) == pytest.approx(
        evaluate(predictor(result.student), splits.test)
    )


def test_plain_training_is_the_one_without_teacher_or_methods_bit_for_bit(tiny: Tiny, splits: Splits, quick: Config) -> None:
    config = quick.override(["train.epochs=1"])
    alone = distil(None, tiny(seed=1), splits, config.override(["distil.ce_weight=0.1"]))
    unused = distil(tiny(6, 2, seed=2), tiny(seed=1), splits, config.override(["distil.methods={}", "distil.ce_weight=0.1"]))
    assert same(weights_of(alone.student), weights_of(unused.student))
    assert alone.history == unused.history
    # There is nothing to weigh the cross-entropy against.
    assert alone.history[0]["total_loss"] == alone.history[0]["cross_entropy"]


def test_a_seed_repeats_bit_for_bit_and_another_one_differs(tiny: Tiny, splits: Splits, quick: Config) -> None:
    config = quick.override(['distil.methods={"dfa": 1.0}', "train.epochs=1", "data.flip=true", "data.crop_padding=1"])

    def run(seed: int, before: int) -> Distilled:
        teacher, student = tiny(6, 2, seed=2), tiny(seed=1)
        keras.utils.set_random_seed(before)  # what was drawn before does not matter
        return distil(teacher, student, splits, config.override([f"seed={seed}"]))

    first, again, other = run(0, before=100), run(0, before=101), run(1, before=100)
    assert same(weights_of(first.student), weights_of(again.student))
    assert first.history == again.history
    assert not same(weights_of(first.student), weights_of(other.student))


def smooth(model: keras.Model) -> FeatureModel:
    """The network without kinks: a ReLU whose input rounds to the other side of 0 on another number of devices moves a step by 1e-4."""

    def copied(layer: keras.layers.Layer) -> keras.layers.Layer:
        is_relu = isinstance(layer, keras.layers.ReLU)
        return keras.layers.Activation("silu", name=layer.name) if is_relu else layer.__class__.from_config(layer.get_config())

    copy = keras.models.clone_model(model, clone_function=copied)
    copy.set_weights(model.get_weights())
    return FeatureModel.from_model(copy)


def agreeing(one: Distilled, two: Distilled, tolerance: float) -> None:
    for ours, theirs in zip(one.student.variables, two.student.variables, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=tolerance, rtol=0, err_msg=ours.path)
    for row, other in zip(one.history, two.history, strict=True):
        for numbers in (row, other):
            numbers.pop("gradient_norm", None)  # which no step sees on two replicas
        assert row == pytest.approx(other, rel=1e-3, abs=1e-3)


def test_two_replicas_agree_with_one_after_twenty_steps(
    build_model: Callable[..., keras.Model], splits: Splits, config: Config, two_replicas: tf.distribute.Strategy
) -> None:
    settings = config.override(
        [
            "data.batch_size=12",
            "train.epochs=4",
            "train.evaluate_every=4",
            "train.learning_rate=0.01",
            "train.schedule=constant",
            'distil.methods={"kd": 0.9, "dfa": 1.0}',
        ]
    )
    start = build_model("wrn_10_1").get_weights()

    def run(strategy: tf.distribute.Strategy | None) -> Distilled:
        teacher, student = smooth(build_model("wrn_16_1", seed=1)), smooth(build_model("wrn_10_1"))
        return distil(teacher, student, splits, settings, context=StageContext(strategy=strategy))

    one, two = run(None), run(two_replicas)
    assert one.steps == two.steps == 20
    agreeing(one, two, 1e-4)
    assert max(np.abs(a - b).max() for a, b in zip(start, one.student.get_weights(), strict=True)) > 1e-2
    assert not any(getattr(layer, "synchronized", False) for layer in two.student._flatten_layers())


def test_two_replicas_agree_also_where_the_teacher_uses_the_statistics_of_the_batch(
    tiny: Tiny, splits: Splits, quick: Config, two_replicas: tf.distribute.Strategy
) -> None:
    settings = quick.override(["train.epochs=1", 'distil.methods={"kd": 1.0}', "distil.ce_weight=0.0", "teacher.batchnorm=training"])

    def run(strategy: tf.distribute.Strategy | None) -> Distilled:
        return distil(tiny(6, 1, seed=2), tiny(seed=1, activation="tanh"), splits, settings, context=StageContext(strategy=strategy))

    agreeing(run(None), run(two_replicas), 1e-5)


def test_a_batch_without_an_example_for_each_replica_is_an_error(
    tiny: Tiny, splits: Splits, quick: Config, two_replicas: tf.distribute.Strategy
) -> None:
    with pytest.raises(UserError, match="at least the number of replicas, 2"):
        distil(None, tiny(), splits, quick.override(["data.batch_size=1"]), context=StageContext(strategy=two_replicas))


def test_networks_that_do_not_fit_are_errors(tiny: Tiny, splits: Splits, quick: Config) -> None:
    pixels = keras.layers.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="block")(pixels)
    five = FeatureModel.from_model(keras.Model(pixels, keras.layers.Dense(5)(keras.layers.Flatten()(x)), name="five"), [["block"]])
    with pytest.raises(UserError, match="must agree in num_classes. Received: 10 of 'tiny_4_1', 5 of 'five'"):
        Distiller(tiny(), five)
    with pytest.raises(UserError, match=r"methods \['kd'\] need a teacher"):
        Distiller(tiny(), None, {"kd": plugins.build("losses", "kd", tiny(), tiny())})
    for pair in ((None, five), (five, tiny())):
        with pytest.raises(UserError, match="must fit the data's num_classes 10. Received: 5 of 'five'"):
            distil(*pair, splits, quick)
    with pytest.raises(UserError, match="data.batch_size must not exceed the 60 images"):
        distil(None, tiny(), splits, quick.override(["data.batch_size=100"]))


def test_the_strategy_of_one_device_trains_as_no_strategy_does(tiny: Tiny, splits: Splits, quick: Config) -> None:
    config = quick.override(["train.epochs=1", 'distil.methods={"dfa": 1.0}'])

    def run(strategy: tf.distribute.Strategy | None) -> Distilled:
        return distil(tiny(6, 2, seed=2), tiny(seed=1), splits, config, context=StageContext(strategy=strategy))

    agreeing(run(None), run(tf.distribute.MirroredStrategy(["CPU:0"])), 1e-6)


def test_classes_in_a_column_are_classes(tiny: Tiny) -> None:
    flat, column = (Distiller(tiny(seed=1)) for _ in range(2))
    for distiller in (flat, column):
        distiller.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    expected = flat.train_on_batch(IMAGES, LABELS, return_dict=True)
    assert column.train_on_batch(IMAGES, LABELS[:, np.newaxis], return_dict=True) == pytest.approx(expected)
    with pytest.raises(UserError, match="a column for each of 10 classes"):
        column.train_on_batch(IMAGES, np.ones((12, 3), np.float32))


def test_a_training_that_diverges_says_so(tiny: Tiny, splits: Splits, quick: Config, tmp_path: Path) -> None:
    config = quick.override(["train.learning_rate=100", "train.weight_decay=1e4"])
    with pytest.raises(UserError, match=r"the training diverged: \S+ is (nan|inf) at step \d+, where the learning rate is \S+\. Lower"):
        distil(None, tiny(), splits, config, directory=tmp_path)


def test_a_callback_may_stop_the_training(tiny: Tiny, splits: Splits, quick: Config) -> None:
    stop = keras.callbacks.EarlyStopping(monitor="total_loss", mode="max", patience=1)
    result = distil(None, tiny(), splits, quick, callbacks=[stop])
    assert len(result.history) == 2
    assert result.steps == 6
    assert result.history[-1]["test_accuracy"] == evaluate(predictor(result.student), splits.test).accuracy


def test_saving_a_distiller_saves_the_student(tiny: Tiny, tmp_path: Path) -> None:
    student, teacher = tiny(4, 1), tiny(6, 1)
    Distiller(student, teacher, {"kd": plugins.build("losses", "kd", student, teacher)}).save(tmp_path / "student.keras")
    saved = keras.models.load_model(tmp_path / "student.keras")
    assert same(saved.get_weights(), weights_of(student.model))


def test_a_distiller_has_no_configuration_but_says_what_is_saved(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="its save saves the student"):
        Distiller(tiny()).get_config()


@pytest.mark.parametrize(("options", "expected"), [({}, False), ({"jit_compile": "auto"}, "auto")])
def test_xla_is_off_unless_asked_for(
    options: dict[str, Any], expected: object, tiny: Callable[..., FeatureModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU Keras would choose it; here nothing shows that, so what Keras is given is looked at."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(keras.Model, "compile", lambda model, **options: given.update(options))
    Distiller(tiny()).compile(optimizer="sgd", **options)
    assert given == {"optimizer": "sgd", "jit_compile": expected}
