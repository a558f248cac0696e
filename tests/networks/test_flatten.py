"""Models inside of models are opened, and softmaxes are taken off: the same layers, weights and outputs, in one flat graph."""

import logging
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from dfa_tf.config import Config
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Splits
from dfa_tf.networks.copying import copy_of
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.flatten import flat_classifier
from dfa_tf.pipeline.building import build_network
from dfa_tf.pipeline.pipeline import run_stages
from dfa_tf.pipeline.stages import EvaluateStage, TeacherStage
from dfa_tf.storage.reading import read_result
from dfa_tf.storage.run_directory import RunDir

IMAGES = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 1)).astype(np.float32)


def convolutions(name: str, *names: str, image_shape: tuple[int | None, ...] = (8, 8, 1)) -> keras.Model:
    """A base without a head: 3x3 convolutions of 4 channels with BatchNorm and ReLU."""
    pixels = x = layers.Input(image_shape)
    for layer in names:
        x = layers.Conv2D(4, 3, padding="same", name=f"{layer}_conv")(x)
        x = layers.ReLU(name=layer)(layers.BatchNormalization(name=f"{layer}_bn")(x))
    return keras.Model(pixels, x, name=name)


def under_head(base: keras.Model, head: layers.Layer | None = None) -> keras.Model:
    """The usual form of transfer learning."""
    pixels = layers.Input((8, 8, 1), name="pixels")
    x = base(layers.Rescaling(1 / 255, name="scale")(pixels), training=False)
    return keras.Model(pixels, (head or layers.Dense(3, name="head"))(layers.GlobalAveragePooling2D(name="pool")(x)), name="transfer")


def inside_of(*bases: keras.Model) -> keras.Sequential:
    return keras.Sequential([*bases, layers.GlobalAveragePooling2D(), layers.Dense(3, name="head")])


def variables(model: keras.Model) -> set[int]:
    return {id(variable) for variable in model.variables}


# Models inside


def test_a_base_under_a_head_is_opened_and_gives_the_same() -> None:
    model = under_head(convolutions("base", "one", "two", image_shape=(None, None, 1)))
    flat = FeatureModel.from_model(model).model
    assert [layer.name for layer in flat.layers] == [
        "pixels", "scale", "one_conv", "one_bn", "one", "two_conv", "two_bn", "two", "pool", "head",
    ]  # fmt: skip
    assert flat.name == "transfer"
    assert variables(flat) == variables(model)
    np.testing.assert_array_equal(flat(IMAGES), model(IMAGES))
    np.testing.assert_array_equal(flat(IMAGES, training=True), model(IMAGES, training=True))


def test_blocks_inside_are_found_and_their_tail_goes_on_to_the_logits() -> None:
    model = under_head(convolutions("base", "one", "two"))
    read = FeatureModel.from_model(model)
    assert read.block_names() == [["one", "two"]]
    features = read.extractor(["output"])(IMAGES)
    np.testing.assert_allclose(read.tail(0)(features.at("output")[0][-1]), model(IMAGES), rtol=1e-6)
    assert features.embedding.shape == (4, 4)


def test_layers_inside_may_be_named() -> None:
    model = under_head(convolutions("base", "one", "two"))
    assert FeatureModel.from_model(model, [["one_conv"], ["two_bn"]]).block_names() == [["one_conv"], ["two_bn"]]
    with pytest.raises(UserError, match="Received: 'tow_bn'. Did you mean 'two_bn'"):
        FeatureModel.from_model(model, [["tow_bn"]])


def test_models_within_models_and_stacks_are_opened() -> None:
    """A base in a stack in a base in a stack."""
    inner = keras.Sequential([convolutions("inner", "one"), layers.Conv2D(4, 1, name="between")], name="stack")
    pixels = layers.Input((8, 8, 1))
    outer = keras.Model(pixels, layers.ReLU(name="two")(inner(pixels)), name="outer")
    model = inside_of(outer)
    read = FeatureModel.from_model(model)
    assert read.block_names() == [["one", "two"]]
    assert not any(isinstance(layer, keras.Model) for layer in read.model.layers)
    np.testing.assert_array_equal(read.model(IMAGES), model(IMAGES))


def test_training_the_flat_model_trains_the_original() -> None:
    model = under_head(convolutions("base", "one"))
    flat = FeatureModel.from_model(model).model
    before = np.asarray(model(IMAGES))
    flat.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    flat.train_on_batch(IMAGES, np.array([0, 1, 2, 0]))
    assert (before != np.asarray(model(IMAGES))).any()
    np.testing.assert_array_equal(flat(IMAGES), model(IMAGES))


def test_a_frozen_base_stays_frozen() -> None:
    base = convolutions("base", "one", "two")
    model = under_head(base)
    base.trainable = False
    base.get_layer("two_conv").trainable = True
    paths = ["two_conv/kernel", "two_conv/bias", "head/kernel", "head/bias"]
    assert [weight.path for weight in FeatureModel.from_model(model).model.trainable_weights] == paths
    assert [weight.path for weight in model.trainable_weights] == paths


def test_layers_of_one_name_are_told_apart() -> None:
    """As of two files: `one` is called before the second base's, which takes its model's name in front."""
    model = inside_of(convolutions("first", "one"), convolutions("second", "one", image_shape=(8, 8, 4)))
    flat = FeatureModel.from_model(model).model
    assert [layer.name for layer in flat.layers if isinstance(layer, layers.ReLU)] == ["one", "second_one"]
    np.testing.assert_array_equal(flat(IMAGES), model(IMAGES))
    assert FeatureModel.from_model(model).block_names() == [["one", "second_one"]]


def test_the_head_keeps_its_name_where_a_base_has_it_too() -> None:
    model = under_head(convolutions("base", "one", "pool"))
    read = FeatureModel.from_model(model)
    assert read.block_names() == [["one", "base_pool"]]
    assert isinstance(read.model.get_layer("pool"), layers.GlobalAveragePooling2D)


def test_a_base_that_is_called_twice_is_opened_twice() -> None:
    base = convolutions("base", "one")
    pixels = layers.Input((8, 8, 1))
    both = [layers.GlobalAveragePooling2D()(base(x)) for x in (pixels, layers.Rescaling(-1.0, name="negative")(pixels))]
    model = keras.Model(pixels, layers.Dense(3)(layers.Add()(both)))
    np.testing.assert_array_equal(flat_classifier(model)(IMAGES), model(IMAGES))
    with pytest.raises(UserError, match="each block needs a layer of its own. Received: 'one', which the model calls 2 times"):
        FeatureModel.from_model(model, [["one"]])
    assert FeatureModel.from_model(model, [["negative"]]).block_names() == [["negative"]]


def test_what_a_base_is_called_with_holds_for_its_layers() -> None:
    """Dropout that is on in inference too."""
    pixels = layers.Input((8, 8, 1))
    base = keras.Model(pixels, layers.Dropout(0.5)(layers.Conv2D(4, 3, activation="relu", name="conv")(pixels)))
    model = keras.Model(pixels, layers.Dense(3)(layers.Flatten()(base(pixels, training=True))))
    flat = FeatureModel.from_model(model).model
    assert (flat(IMAGES).numpy() != flat(IMAGES).numpy()).any()


def test_a_base_of_float_images_takes_whole_numbers() -> None:
    pixels = layers.Input((8, 8, 1), dtype="uint8")
    base = convolutions("base", "one")
    model = keras.Model(pixels, layers.Dense(3)(layers.Flatten()(base(pixels))))
    images = IMAGES.astype(np.uint8)
    np.testing.assert_array_equal(FeatureModel.from_model(model).model(images), model(images))


def test_inputs_and_outputs_by_name_become_one_of_each() -> None:
    pixels = layers.Input((8, 8, 1), name="image")
    logits = layers.Dense(3)(layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(pixels)))
    model = keras.Model({"image": pixels}, {"logits": logits})
    np.testing.assert_array_equal(FeatureModel.from_model(model).model(IMAGES), model({"image": IMAGES})["logits"])


def test_a_flat_model_survives_its_file_in_safe_mode_and_a_copy(tmp_path: Path) -> None:
    model = inside_of(convolutions("first", "one"), convolutions("second", "one", image_shape=(8, 8, 4)))
    flat = FeatureModel.from_model(model).model
    flat.save(tmp_path / "flat.keras")
    loaded = keras.models.load_model(tmp_path / "flat.keras", safe_mode=True)
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in flat.layers]
    for same in (loaded, copy_of(flat)):
        np.testing.assert_allclose(same(IMAGES), model(IMAGES), rtol=1e-6)
        assert variables(same).isdisjoint(variables(model))


def test_a_flat_model_of_logits_is_left_as_it_is(build_model: Callable[..., keras.Model]) -> None:
    model = build_model("wrn_10_1")
    assert FeatureModel.from_model(model).model is model


# Probabilities


def ending(*last: layers.Layer) -> keras.Model:
    """A small classifier with these layers behind its 4 pooled channels."""
    return keras.Sequential([convolutions("base", "one"), layers.GlobalAveragePooling2D(), *last], name="classifier")


def behind_dense(function: Callable[[keras.KerasTensor], keras.KerasTensor]) -> keras.Model:
    model = ending(layers.Dense(3))
    return keras.Model(model.inputs[0], function(model.outputs[0]), name="classifier")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ending(layers.Dense(3, activation="softmax")),
        lambda: ending(layers.Dense(3, activation=layers.Softmax())),
        lambda: ending(layers.Dense(3, use_bias=False), layers.Activation("softmax")),
        lambda: ending(layers.Dense(3), layers.Softmax()),
        lambda: behind_dense(keras.ops.softmax),
        lambda: behind_dense(keras.activations.softmax),
    ],
    ids=["dense", "layer of dense", "activation", "layer", "operation", "function"],
)
def test_a_softmax_is_taken_off_with_a_record(make: Callable[[], keras.Model], caplog: pytest.LogCaptureFixture) -> None:
    model = make()
    with caplog.at_level(logging.WARNING, "dfa_tf.networks.flatten"):
        read = FeatureModel.from_model(model)
    (record,) = caplog.records
    assert record.getMessage().startswith("classifier: the softmax of its last layer ")
    assert (read.num_classes, read.block_names()) == (3, [["one"]])
    logits, probabilities = np.asarray(read.model(IMAGES)), np.asarray(model(IMAGES))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (np.abs(logits.sum(1) - 1) > 0.01).all()
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(exponentials / exponentials.sum(1, keepdims=True), probabilities, rtol=1e-4)
    assert variables(read.model) == variables(model)
    assert FeatureModel.from_model(read.model).model is read.model


def test_a_dense_layer_without_its_softmax_is_linear_in_the_same_variables() -> None:
    """Kernel of ones and bias 1, 2, 3: the sum of the four pooled channels, plus the bias."""
    head = layers.Dense(3, activation="softmax", kernel_initializer="ones", name="head")
    model = ending(head)
    flat = FeatureModel.from_model(model).model
    head.bias.assign([1.0, 2.0, 3.0])
    features = FeatureModel.from_model(flat).extractor()(IMAGES)
    np.testing.assert_allclose(flat(IMAGES), np.sum(features.embedding, 1, keepdims=True) + np.arange(1, 4), rtol=1e-5)
    assert flat.get_layer("head").kernel is head.kernel
    assert head.activation is keras.activations.softmax
    np.testing.assert_allclose(np.sum(model(IMAGES), 1), 1, rtol=1e-5)


def test_a_softmax_of_a_classifier_inside_is_taken_off_too(tmp_path: Path) -> None:
    model = keras.Sequential([layers.Input((8, 8, 1)), layers.Rescaling(1 / 255), ending(layers.Dense(3, activation="softmax"))])
    model.save(tmp_path / "teacher.keras")
    read = FeatureModel.from_model(tmp_path / "teacher.keras")
    assert (np.abs(np.sum(read.model(IMAGES), 1) - 1) > 0.01).all()
    read.model.save(tmp_path / "logits.keras")
    loaded = keras.models.load_model(tmp_path / "logits.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(IMAGES), read.model(IMAGES))


def test_logits_keep_the_precision_of_the_softmax() -> None:
    policy = "mixed_bfloat16"
    model = ending(layers.Dense(3, dtype=policy), layers.Activation("softmax", dtype="float32", name="probabilities"))
    flat = FeatureModel.from_model(model).model
    assert flat.output.dtype == "float32"
    assert flat.layers[-1].name == "probabilities"
    assert (np.abs(np.sum(flat(IMAGES), 1) - 1) > 0.01).all()


def test_a_softmax_within_the_network_stays() -> None:
    """Attention over places."""
    pixels = layers.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(pixels)
    x = layers.Multiply()([x, layers.Softmax(axis=[1, 2])(layers.Conv2D(1, 1)(x))])
    model = keras.Model(pixels, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    assert FeatureModel.from_model(model).model is model


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ending(layers.Dense(3, activation="sigmoid", name="last")), "from the sigmoid of 'last': build it without"),
        (lambda: ending(layers.Dense(3), layers.Activation("hard_sigmoid")), "from the hardsigmoid of "),
        (lambda: behind_dense(keras.ops.sigmoid), "from the sigmoid of "),
        (lambda: ending(layers.Dense(3, activation="softmax", name="last"), layers.Reshape((3,))), "from the softmax of 'last'"),
        (lambda: ending(layers.Dense(3, activation="softmax", name="last"), layers.Softmax()), "from the softmax of 'last'"),
        (lambda: behind_dense(lambda x: layers.Average()([layers.Softmax(name="one")(x), x])), "from the softmax of 'one'"),
        (lambda: ending(layers.EinsumDense("bi,io->bo", 3, activation="softmax")), "ends in EinsumDense .*: build it with activation=None"),
    ],
    ids=["sigmoid", "activation", "operation", "reshaped", "twice", "mean", "no dense layer"],
)
def test_probabilities_that_no_softmax_can_be_taken_off_are_refused(make: Callable[[], keras.Model], told: str) -> None:
    with pytest.raises(UserError, match=told):
        FeatureModel.from_model(make())


# A file that gives probabilities, in a run


@pytest.fixture
def probable(tmp_path: Path) -> keras.Model:
    """A base under a head with a softmax of the ten digits, and its file `probable.keras`."""
    kernel = keras.initializers.RandomNormal(stddev=30.0)
    model = under_head(convolutions("base", "one"), layers.Dense(10, activation="softmax", kernel_initializer=kernel, name="head"))
    model.save(tmp_path / "probable.keras")
    return model


def test_a_teacher_file_of_probabilities_is_evaluated_by_its_logits(
    probable: keras.Model, config: Config, splits: Splits, tmp_path: Path
) -> None:
    """The cross-entropy is the mean of -log p of the right class."""
    run = RunDir(tmp_path / "run")
    config = config.override([f"teacher.path={tmp_path / 'probable.keras'}"])
    run_stages(config, run, [TeacherStage, EvaluateStage], quiet=True)
    images = splits.test.images.pixels[splits.test.indices].astype(np.float32)
    probabilities = np.asarray(probable(images))[np.arange(len(images)), splits.test.labels]
    assert abs(np.log(10) + np.log(probabilities).mean()) > 0.01, "not the loss of ten equal logits"
    (row,) = read_result(run.evaluation)["rows"]
    for loss in (read_result(run.teacher)["test_loss"], row["test_loss"]):
        np.testing.assert_allclose(loss, -np.log(probabilities).mean(), rtol=1e-5)


@pytest.mark.usefixtures("probable")
def test_a_student_file_of_probabilities_is_trained_by_its_logits(config: Config, splits: Splits, tmp_path: Path) -> None:
    config = config.override([f"student.path={tmp_path / 'probable.keras'}"])
    student = build_network(config.student, config, splits)
    assert student.block_names() == [["one"]]
    assert student.model.get_layer("head").activation is keras.activations.linear
