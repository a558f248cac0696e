"""MobileNetV2: the published size, any width, inverted residual blocks that end without activation, groups by resolution."""

import keras
import numpy as np
import pytest

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.networks.features import FeatureModel


def build(side: int = 16, width: float = 0.25, channels: int = 1) -> keras.Model:
    return plugins.build("models", "mobilenet_v2", image_shape=(side, side, channels), num_classes=10, width=width)


def of_kind(model: keras.Model, kind: type) -> list[keras.layers.Layer]:
    return [layer for layer in model.layers if isinstance(layer, kind)]


def parameters(model: keras.Model) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """The network of width 0.5, which tests must not change."""
    return plugins.build("models", "mobilenet_v2", image_shape=(32, 32, 3), num_classes=100)


def test_parameters_are_those_published_at_half_width_which_is_the_default(network: keras.Model) -> None:
    assert network.name == "mobilenet_v2"
    assert parameters(network) == 812_836


def test_parameters_at_full_width() -> None:
    """A block i -> h -> o has i h + 2 h (expand), 9 h + 2 h (by channel) and h o + 2 o (project): h (i + o + 13) + 2 o."""
    blocks = [
        (32, 32, 16),
        *[(16, 96, 24), (24, 144, 24)],
        *[(24, 144, 32), (32, 192, 32), (32, 192, 32)],
        *[(32, 192, 64), (64, 384, 64), (64, 384, 64), (64, 384, 64)],
        *[(64, 384, 96), (96, 576, 96), (96, 576, 96)],
        *[(96, 576, 160), (160, 960, 160), (160, 960, 160)],
        (160, 960, 320),
    ]
    stem, head, logits = 9 * 3 * 32 + 2 * 32, 320 * 1280 + 2 * 1280, 1281 * 10
    expected = stem + sum(h * (i + o + 13) + 2 * o for i, h, o in blocks) + head + logits
    assert parameters(build(32, 1.0, 3)) == expected


@pytest.mark.parametrize(("width", "filters"), [(0.35, [11, 5, 112, 1280]), (1.5, [48, 24, 480, 1920]), (1 / 16, [2, 1, 20, 1280])])
def test_channels_are_scaled_and_rounded_down_but_the_head_is_not_narrowed(width: float, filters: list[int]) -> None:
    """Of 32, 16, 320 and 1280. 32 * 0.35 = 11.2, 16 * 0.35 = 5.6, 320 * 0.35 = 112; 1/16 is the least width."""
    model = build(width=width)
    names = ("stem", "block1_project", "block17_project", "head")
    assert [model.get_layer(f"{name}_conv").filters for name in names] == filters


@pytest.mark.parametrize("width", [0, -1, 0.06, float("inf"), float("nan")])
def test_a_width_that_leaves_no_channel_is_refused(width: float) -> None:
    """16 * 0.06 = 0.96 is rounded down to 0 channels."""
    with pytest.raises(UserError, match=f"width must be a finite number of 1/16 or more. Received: width={width}"):
        build(width=width)


def test_the_ends_of_blocks_are_grouped_by_resolution_and_agree_in_shape(network: keras.Model) -> None:
    """The last of each group are the hints of the tables; 1, 7 to 10 and 14 to 16 are of another width than these."""
    model = FeatureModel.from_model(network)
    assert [group.shape for group in model.groups] == [(16, 16, 12), (8, 8, 16), (4, 4, 48), (2, 2, 160)]
    assert model.block_names() == [
        ["block2_project_bn", "block3_add"],
        ["block4_project_bn", "block5_add", "block6_add"],
        ["block11_project_bn", "block12_add", "block13_add"],
        ["block17_project_bn"],
    ]
    norms = [block.taps["pre_activation"].norm.name for block in model.groups[1].blocks]
    assert norms == ["block4_project_bn", "block5_project_bn", "block6_project_bn"], "of 5 not that of block 4, which is its shortcut"


def test_a_block_has_a_shortcut_where_the_shape_stays(network: keras.Model) -> None:
    """The blocks that open a sequence change the width or the resolution: 1, 2, 4, 7, 11, 14 and 17."""
    sums = {layer.name for layer in of_kind(network, keras.layers.Add)}
    assert sums == {f"block{number}_add" for number in range(1, 18) if number not in (1, 2, 4, 7, 11, 14, 17)}


def test_the_first_block_is_expanded_by_1_and_the_others_by_6(network: keras.Model) -> None:
    """At width 0.5 they take 16, 8 and 80 channels."""
    shapes = {number: network.get_layer(f"block{number}_expand_conv").kernel.shape for number in (1, 2, 17)}
    assert shapes == {1: (1, 1, 16, 16), 2: (1, 1, 8, 48), 17: (1, 1, 80, 480)}


def test_a_block_ends_without_activation() -> None:
    """The projection is set to -1 everywhere: block 4, without a shortcut, returns -1, and block 5 returns x - 1."""
    model = build()
    for number in (4, 5):
        model.get_layer(f"block{number}_project_bn").set_weights([np.zeros(8), np.full(8, -1.0), np.zeros(8), np.ones(8)])
    ends = [model.get_layer(f"block{number}_expand_conv").input for number in (4, 5, 6)]
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 8)).astype(np.float32)
    np.testing.assert_array_equal(keras.Model(ends[0], ends[1])(np.ones((2, 8, 8, 6), np.float32)), np.full((2, 4, 4, 8), -1))
    np.testing.assert_allclose(keras.Model(ends[1], ends[2])(x), x - 1, atol=1e-6)


def test_activations_are_relu_without_a_ceiling(network: keras.Model) -> None:
    activations = of_kind(network, keras.layers.ReLU)
    assert len(activations) == 1 + 2 * 17 + 1
    for layer in activations:
        np.testing.assert_array_equal(layer(np.float32([[-1, 5, 6, 7]])), [[0, 5, 6, 7]])


@pytest.mark.parametrize("side", [16, 13])
def test_convolutions_of_stride_2_are_padded_alike_on_all_sides(side: int) -> None:
    """An impulse in the kernel's middle then reads pixels 0, 2, 4, ...; `same` reads 1, 3, 5, ... of an even side."""
    model = build(side)
    found = [layer for layer in model.layers if getattr(layer, "strides", None) == (2, 2)]
    assert [layer.name for layer in found] == ["stem_conv", *[f"block{number}_depthwise_conv" for number in (4, 7, 14)]]
    for layer in found:
        kernel = np.zeros(layer.kernel.shape, np.float32)
        kernel[1, 1, 0, 0] = 1
        layer.set_weights([kernel])
        entry = model.get_layer(f"{layer.name}_pad").input
        seen = np.random.default_rng(0).uniform(size=(2, *entry.shape[1:])).astype(np.float32)
        np.testing.assert_array_equal(keras.Model(entry, layer.output)(seen)[..., 0], seen[:, ::2, ::2, 0])


def test_convolutions_have_no_bias_and_each_has_a_batchnorm(network: keras.Model) -> None:
    convolutions = [layer for layer in network.layers if layer.name.endswith("_conv")]
    assert len(convolutions) == 1 + 3 * 17 + 1
    assert not any(layer.use_bias for layer in convolutions)
    norms = of_kind(network, keras.layers.BatchNormalization)
    assert len(norms) == len(convolutions)
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9, 1e-5)}


@pytest.mark.slow
def test_it_learns_digits_of_32x32_in_56_steps() -> None:
    """Each pixel is enlarged to 4x4, and the grey level repeated in three channels."""
    data, model = plugins.build("data", "bundled").train, build(32, 0.5, 3)
    images = data.pixels[:896].astype(np.float32).repeat(4, 1).repeat(4, 2).repeat(3, 3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.03, momentum=0.9), loss, jit_compile=False)
    history = model.fit(images, data.labels[:896], batch_size=64, epochs=4, verbose=0).history
    assert history["loss"][-1] < 0.5 * np.log(10)
