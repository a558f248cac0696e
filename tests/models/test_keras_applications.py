"""The classifiers of keras.applications: each is complete and flat, includes its normalisation, and has float32 logits."""

import gc
import inspect
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.precision import precision

SMALLEST = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}  # the others: 32, as their documentation says
NAMES = [name.partition(":")[2] for name in plugins.names("models") if name.startswith("keras_applications:")]


def build(name: str, side: int | None = None, **options: Any) -> keras.Model:
    side = side or SMALLEST.get(name, 32)
    return plugins.build("models", f"keras_applications:{name}", **{"image_shape": (side, side, 3), "num_classes": 7, **options})


def images(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (count, side, side, 3)).astype(np.float32)


def check(model: keras.Model, name: str) -> None:
    """It is flat, starts with its normalisation, ends in a Dense layer of float32, and has a legal name."""
    assert model.name == f"keras_applications_{name}"
    assert not any(isinstance(operation, keras.Model) for operation in model.operations)
    assert isinstance(model.layers[1], keras.layers.Rescaling)
    assert (model.layers[1].name, model.layers[-1].name) == ("normalisation", "logits")
    assert isinstance(model.layers[-1], keras.layers.Dense)
    assert (model.output.shape, model.output.dtype) == ((None, 7), "float32")


def test_all_classifiers_of_keras_applications_are_named() -> None:
    functions = inspect.getmembers(keras.applications, inspect.isfunction)
    assert sorted(NAMES) == sorted(name for name, function in functions if "classes" in inspect.signature(function).parameters)


@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV3Small"])
def test_a_network_is_flat_and_ends_in_float32_logits_also_in_bfloat16(name: str) -> None:
    with precision("mixed_bfloat16"):
        model = build(name)
    check(model, name)
    assert any(layer.compute_dtype == "bfloat16" for layer in model.layers)
    assert model(images(2, 32)).dtype == "float32"


@pytest.fixture(scope="module")
def small() -> keras.Model:
    """MobileNetV3Small with BatchNorm statistics of some images, as after training; with the initial ones the signal fades."""
    return settled(build("MobileNetV3Small", mean=(127.5,), std=(127.5,)))


def settled(model: keras.Model) -> keras.Model:
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(images(16, 32), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def agrees_with_keras(ours: keras.Model, name: str, **options: Any) -> None:
    """Keras' own network with the same weights gives the same logits."""
    theirs = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=7, classifier_activation=None, **options)
    theirs.set_weights([one.reshape(other.shape) for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True)])
    logits = np.asarray(theirs(images(16, 32), training=False))
    assert logits.std() > 0.01
    np.testing.assert_allclose(ours(images(16, 32), training=False), logits, rtol=1e-3, atol=1e-3 * logits.std())


def test_it_is_keras_network_of_normalised_pixels(small: keras.Model) -> None:
    """Keras' network scales pixels to -1..1, as mean and deviation of 127.5 do, and ends in a 1x1 convolution."""
    agrees_with_keras(small, "MobileNetV3Small")


@pytest.mark.slow
def test_a_network_that_divides_by_255_itself_is_given_pixels_for_that() -> None:
    agrees_with_keras(settled(build("EfficientNetB0", mean=(0.0,), std=(255.0,))), "EfficientNetB0")


@pytest.mark.slow
def test_a_network_with_models_inside_stays_the_same_without_them() -> None:
    agrees_with_keras(build("ConvNeXtTiny", mean=(0.0,), std=(1.0,)), "ConvNeXtTiny", include_preprocessing=False)


def test_layer_groups_are_found_and_the_tails_give_the_logits(small: keras.Model) -> None:
    """Bottlenecks of 16, 24, 24, 40, 40, 40, 48, 48 channels at 8, 4, 4, 2, 2, 2, 2, 2 pixels, then one pixel."""
    found = FeatureModel.from_model(small)
    assert [(group.shape, len(group.blocks)) for group in found.groups] == [((8, 8, 16), 1), ((4, 4, 24), 2), ((2, 2, 48), 2)]
    features = found.extractor(["output"])(images(4, 32))
    assert features.embedding is not None
    assert features.embedding.shape == (4, 1024)
    for i, group in enumerate(features.at("output")):
        np.testing.assert_allclose(found.tail(i)(group[-1]), features.logits, rtol=1e-4, atol=1e-4)


def test_a_model_survives_its_file_in_safe_mode(small: keras.Model, tmp_path: Path) -> None:
    small.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(images(4, 32)), small(images(4, 32)))


# The counts are those that Keras prints of its networks for ImageNet.
@pytest.mark.parametrize(("name", "count"), [("MobileNet", 4_253_864), ("MobileNetV2", 3_538_984)])
def test_parameters_are_those_of_the_whole_network(name: str, count: int) -> None:
    assert build(name, num_classes=1000).count_params() == count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "count"),
    [
        ("ResNet50", 32, 25_636_712),
        ("EfficientNetB0", 32, 5_330_571),
        ("EfficientNetV2B0", 32, 7_200_312),
        ("DenseNet121", 32, 8_062_504),
        ("ConvNeXtTiny", 32, 28_589_128),
        ("InceptionV3", 75, 23_851_784),
        ("Xception", 71, 22_910_480),
        ("VGG16", 224, 138_357_544),
    ],
)
def test_parameters_are_those_of_large_networks_too(name: str, side: int, count: int) -> None:
    assert build(name, side, num_classes=1000).count_params() == count


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_can_be_built_for_its_smallest_image(name: str) -> None:
    gc.collect()
    model = build(name)
    check(model, name)
    assert np.isfinite(model(images(2, SMALLEST.get(name, 32)))).all()


@pytest.mark.parametrize("name", ["Xception", "InceptionV3", "InceptionResNetV2", "MobileNetV2"])
def test_too_small_an_image_is_refused_with_the_rule(name: str) -> None:
    side = SMALLEST.get(name, 32)
    rule = f"{name} needs images of {side}x{side} pixels or more. Received: image_shape=({side + 9}, {side - 1}, 3)"
    with pytest.raises(UserError) as caught:
        build(name, image_shape=(side + 9, side - 1, 3))
    assert str(caught.value) == rule


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_image_is_the_one_that_keras_names(name: str) -> None:
    side = SMALLEST.get(name, 32)
    with pytest.raises(ValueError, match=f"at least {side}x{side}"):
        getattr(keras.applications, name)(weights=None, input_shape=(side - 1, side - 1, 3))


# What is found in the networks as Keras builds them, at 64x64 (Xception: 128x128): side, width and number of blocks by group.
PUBLISHED = {
    # Table 2: bottlenecks of 16; 24, 24; 32 x 3; 64 x 4, 96 x 3; 160 x 3, 320. Those of 64 and 160 have not their group's last width.
    "MobileNetV2": [(32, 16, 1), (16, 24, 2), (8, 32, 3), (4, 96, 3), (2, 320, 1)],
    # Table 2: 16; 24, 24; 40 x 3, 48 x 2; 96 x 3.
    "MobileNetV3Small": [(16, 16, 1), (8, 24, 2), (4, 48, 2), (2, 96, 3)],
    # Table 1, 50 layers: 3, 4, 6, 3 bottlenecks.
    "ResNet50": [(16, 256, 3), (8, 512, 4), (4, 1024, 6), (2, 2048, 3)],
    # The same, but in Keras, as in the authors' code of version 2, the last of a stage halves the image: 2, then 3, 5, 3 of full width.
    "ResNet50V2": [(16, 256, 2), (8, 512, 3), (4, 1024, 5), (2, 2048, 3)],
    # Repeats 1, 2, 2, 3, 5, 8 of 16, 32, 48, 96, 112, 192: 96 and 112 share a resolution.
    "EfficientNetV2B0": [(32, 16, 1), (16, 32, 2), (8, 48, 2), (4, 112, 5), (2, 192, 8)],
    # Table 1, 121 layers: 6, 12, 24, 16 of growth 32 behind 64, 128, 256, 512 channels; what is whole is one of each.
    "DenseNet121": [(16, 256, 1), (8, 512, 1), (4, 1024, 1), (2, 1024, 1)],
    # Table 1, configuration D: 2, 2, 3, 3, 3 convolutions.
    "VGG16": [(64, 64, 2), (32, 128, 2), (16, 256, 3), (8, 512, 3), (4, 512, 3)],
    # Table 9, ConvNeXt-T: 3, 3, 9, 3.
    "ConvNeXtTiny": [(16, 96, 3), (8, 192, 3), (4, 384, 9), (2, 768, 3)],
    # Figure 5: modules of 128; 256; 728 and eight of the middle flow; 1024. Two unpadded convolutions leave 61 pixels of 128.
    "Xception": [(31, 128, 1), (16, 256, 1), (8, 728, 9), (4, 1024, 1)],
}
QUICK = {("MobileNetV2", "nested"), ("ResNet50", "nested"), ("VGG16", "bare")}


def published(name: str, form: str) -> tuple[keras.Model, int]:
    """A bare network with a softmax, or a base with preprocessing and a head that returns logits; and the side of its images."""
    side = 128 if name == "Xception" else 64
    function = getattr(keras.applications, name)
    if form == "bare":
        return function(weights=None, input_shape=(side, side, 3), classes=7), side
    base = function(weights=None, input_shape=(side, side, 3), include_top=False)
    pixels = keras.layers.Input((side, side, 3))
    x = base(keras.layers.Rescaling(1 / 127.5, -1.0)(pixels), training=False)
    return keras.Model(pixels, keras.layers.Dense(7)(keras.layers.GlobalAveragePooling2D()(x))), side


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(name, form, marks=[] if (name, form) in QUICK else pytest.mark.slow)
        for name in PUBLISHED
        for form in ("bare", "nested")
    ],
)
def test_the_published_blocks_are_found_and_the_network_stays_what_it_is(name: str, form: str, tmp_path: Path) -> None:
    gc.collect()
    model, side = published(name, form)
    found = FeatureModel.from_model(model)
    assert [(*group.shape[1:], len(group.blocks)) for group in found.groups] == PUBLISHED[name]
    assert {group.height - group.width for group in found.groups} == {0}
    assert {id(weight) for weight in found.model.variables} == {id(weight) for weight in model.variables}

    features = found.extractor(["output"])(images(2, side))
    logits = np.asarray(found.model(images(2, side)))
    scale = np.abs(logits).max()
    assert scale > 0
    expected = np.asarray(model(images(2, side)))
    given = keras.ops.softmax(logits) if form == "bare" else logits
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(features.logits, logits, rtol=0, atol=1e-5 * scale)
    for i, group in enumerate(features.at("output")):
        np.testing.assert_allclose(found.tail(i)(group[-1]), logits, rtol=0, atol=1e-5 * scale)

    found.model.save(tmp_path / "flat.keras")
    loaded = keras.models.load_model(tmp_path / "flat.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(images(2, side)), logits, rtol=0, atol=1e-6 * scale)


def test_the_thirteen_blocks_of_the_first_mobilenet_are_found() -> None:
    """Table 1: depthwise and pointwise convolutions in pairs, of 64; 128, 128; 256, 256; 512 x 6; 1024, 1024."""
    found = FeatureModel.from_model(build("MobileNet", 64))
    assert [(*group.shape[1:], len(group.blocks)) for group in found.groups] == [
        (32, 64, 1), (16, 128, 2), (8, 256, 2), (4, 512, 6), (2, 1024, 2),
    ]  # fmt: skip


@pytest.mark.slow
def test_it_learns_digits_of_32x32_in_56_steps() -> None:
    """Each pixel is enlarged to 4x4, and the grey level repeated in three channels."""
    data = plugins.build("data", "bundled").train
    images = data.pixels[:896].astype(np.float32).repeat(4, 1).repeat(4, 2).repeat(3, 3)
    keras.utils.set_random_seed(0)
    model = plugins.build("models", "keras_applications:MobileNet", image_shape=(32, 32, 3), num_classes=10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.03, momentum=0.9), loss, jit_compile=False)
    history = model.fit(images, data.labels[:896], batch_size=64, epochs=4, verbose=0).history
    assert history["loss"][-1] < 0.5 * np.log(10)
