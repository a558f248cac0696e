"""ShuffleNet: the published size, grouped convolutions and the shuffle by hand, and its layer groups."""

from pathlib import Path

import keras
import numpy as np
import pytest

from dfa_tf import plugins
from dfa_tf.images.splits import Splits
from dfa_tf.networks.features import FeatureModel


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return plugins.build("models", "shufflenet_v1", image_shape=(32, 32, 3), num_classes=100)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)


def of_kind(model: keras.Model, kind: type) -> list[keras.layers.Layer]:
    return [layer for layer in model.layers if isinstance(layer, kind)]


def between(model: keras.Model, first: str, last: str) -> keras.Model:
    """The part of a model after one layer, up to and including another."""
    return keras.Model(model.get_layer(first).output, model.get_layer(last).output)


def test_parameters_are_those_published(model: keras.Model) -> None:
    assert model.name == "shufflenet_v1"
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == 949_258


def test_the_unit_s_outputs_are_found_as_blocks_and_the_resolutions_as_groups(model: keras.Model) -> None:
    found = FeatureModel.from_model(model)
    assert [group.shape for group in found.groups] == [(16, 16, 240), (8, 8, 480), (4, 4, 960)]
    assert found.block_names() == [
        [f"group{group}_block1_concat", *(f"group{group}_block{block}_add" for block in range(2, blocks + 1))]
        for group, blocks in ((1, 4), (2, 8), (3, 4))
    ]


def test_a_block_is_tapped_before_and_behind_the_relu_that_ends_it(model: keras.Model, images: np.ndarray) -> None:
    features = FeatureModel.from_model(model).extractor(["output"])(images)
    for sums, outputs in zip(features.at("pre_activation"), features.at("output"), strict=True):
        for block, output in zip(sums, outputs, strict=True):
            assert np.min(block) < 0
            np.testing.assert_array_equal(output, np.maximum(block, 0))


@pytest.mark.parametrize(("group", "middle"), [(1, 60), (2, 120), (3, 240)])
def test_the_shuffle_deals_the_channels_of_three_groups_out_in_turn(model: keras.Model, group: int, middle: int) -> None:
    """Of 60 channels 0 to 19, 20 to 39 and 40 to 59 are groups: the result is 0, 20, 40, 1, 21, 41, ..., 19, 39, 59."""
    shuffle = between(model, f"group{group}_block2_relu1", f"group{group}_block2_shuffle")
    channels = np.arange(middle, dtype=np.float32)
    place = shuffle(np.broadcast_to(channels, (1, *shuffle.inputs[0].shape[1:3], middle)))
    third = middle // 3
    assert [int(channel) for channel in place[0, 0, 0, :6]] == [0, third, 2 * third, 1, third + 1, 2 * third + 1]
    assert [int(channel) for channel in place[0, -1, -1, -3:]] == [third - 1, 2 * third - 1, 3 * third - 1]
    assert sorted(np.asarray(place[0, 1, 2])) == list(channels)


def test_pixels_stay_where_they_are_in_the_shuffle(model: keras.Model) -> None:
    shuffle = between(model, "group3_block2_relu1", "group3_block2_shuffle")
    pixel = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(shuffle(np.repeat(pixel, 240, axis=-1)), np.repeat(pixel, 240, axis=-1))


def test_a_grouped_convolution_by_hand(model: keras.Model) -> None:
    """Thirds of the input are 1, 2, 3, and the kernels of the groups 10, 20, 30 / 80: sums over 80 channels of 10, 40, 90."""
    convolution = model.get_layer("group1_block2_conv1")
    convolution.set_weights([np.broadcast_to(np.float32([10, 20, 30]).reshape(3, 1, 1) / 80, (3, 80, 20))])
    thirds = np.repeat(np.float32([1, 2, 3]), 80)
    result = between(model, "group1_block1_relu", "group1_block2_conv1_join")(np.broadcast_to(thirds, (1, 16, 16, 240)))
    expected = np.broadcast_to(np.repeat(np.float32([10, 40, 90]), 20), (1, 16, 16, 60))
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_only_the_first_convolution_of_the_first_unit_is_not_grouped(model: keras.Model) -> None:
    grouped = {layer.name: layer.kernel.shape[0] for layer in of_kind(model, keras.layers.EinsumDense)}
    assert set(grouped.values()) == {3}
    assert {layer.name for layer in of_kind(model, keras.layers.Conv2D)} == {"stem_conv", "group1_block1_conv1"}
    assert len(grouped) == 2 * 16 - 1
    assert len(of_kind(model, keras.layers.DepthwiseConv2D)) == 16
    assert not any(layer.name.startswith("group1_block1_shuffle") for layer in model.layers)


def test_the_stem_keeps_the_resolution_and_first_units_halve_it(model: keras.Model) -> None:
    assert model.get_layer("stem_conv").kernel.shape == (1, 1, 3, 24)
    assert model.get_layer("stem_relu").output.shape == (None, 32, 32, 24)
    strided = [layer.name for layer in of_kind(model, keras.layers.DepthwiseConv2D) if layer.strides == (2, 2)]
    assert strided == ["group1_block1_conv2", "group2_block1_conv2", "group3_block1_conv2"]


def test_a_first_unit_s_convolution_is_padded_alike_on_all_sides(model: keras.Model) -> None:
    """An impulse in the kernel's middle then reads pixels 0, 2, 4, ...; padding="same" would read 1, 3, 5, ..."""
    convolution = model.get_layer("group1_block1_conv2")
    impulse = np.zeros(convolution.kernel.shape, np.float32)
    impulse[1, 1] = 1
    convolution.set_weights([impulse])
    seen = np.random.default_rng(0).uniform(size=(2, 32, 32, 54)).astype(np.float32)
    result = between(model, "group1_block1_relu1", "group1_block1_conv2")(seen)
    np.testing.assert_array_equal(result, seen[:, ::2, ::2])


def test_a_first_unit_s_shortcut_counts_zeros_around_the_image_in_its_average(model: keras.Model) -> None:
    """Of the 3x3 pixels around pixels 0, 2, 4, ..., 4 are inside the image in the first corner, 6 at the first edges, 9 elsewhere."""
    averages = between(model, "stem_relu", "group1_block1_pool")(np.ones((1, 32, 32, 24), np.float32))
    inside = np.full((16, 16), 9)
    inside[0] = inside[:, 0] = 6
    inside[0, 0] = 4
    np.testing.assert_allclose(averages[0, :, :, 7], inside / 9, rtol=1e-6)


def test_a_first_unit_hands_its_pooled_input_on_behind_its_own_channels(model: keras.Model) -> None:
    unit = keras.Model(
        model.get_layer("stem_relu").output, [model.get_layer(f"group1_block1_{end}").output for end in ("bn3", "pool", "concat")]
    )
    own, pooled, both = unit(np.random.default_rng(0).uniform(size=(1, 32, 32, 24)).astype(np.float32))
    assert (own.shape[-1], pooled.shape[-1]) == (216, 24)
    np.testing.assert_array_equal(both, np.concatenate([own, pooled], axis=-1))


def test_other_units_add_their_input(model: keras.Model) -> None:
    unit = keras.Model(
        model.get_layer("group2_block2_relu").output, [model.get_layer(f"group2_block3_{end}").output for end in ("bn3", "add")]
    )
    seen = np.random.default_rng(0).uniform(size=(1, 8, 8, 480)).astype(np.float32)
    own, total = unit(seen)
    np.testing.assert_allclose(total, own + seen, rtol=1e-6)


def test_kernels_are_he_normal_by_fan_out_without_bias(model: keras.Model) -> None:
    """The fan-out of a grouped convolution is its number of channels; that of a depthwise one is 9, its pixels."""
    for name, fan_out in (("group3_block2_conv1", 240), ("group3_block2_conv3", 960), ("group3_block2_conv2", 9)):
        (kernel,) = model.get_layer(name).get_weights()
        np.testing.assert_allclose(kernel.std(), np.sqrt(2 / fan_out), rtol=0.05)
        assert abs(kernel).max() > 3 * np.sqrt(2 / fan_out), "a truncated normal"


def test_a_model_survives_its_file_in_safe_mode(model: keras.Model, images: np.ndarray, tmp_path: Path) -> None:
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(images), model(images))


@pytest.mark.slow
def test_it_learns_digits(splits: Splits) -> None:
    """Chance is ln 10 = 2.3."""
    data = splits.train + splits.search
    pixels = np.asarray(data.images.pixels[data.indices], np.float32).repeat(4, axis=1).repeat(4, axis=2).repeat(3, axis=3)
    model = plugins.build("models", "shufflenet_v1", image_shape=(32, 32, 3), num_classes=10)
    model.compile(keras.optimizers.SGD(0.005, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = model.fit(pixels, data.labels, batch_size=len(data), epochs=30, verbose=0).history["loss"]
    assert losses[0] > 1.5
    assert losses[-1] < 0.5
