"""ResNets: published sizes, groups and taps, ReLU after the sum, and the strides and shortcuts of the literature."""

import functools
from collections.abc import Callable

import keras
import numpy as np
import pytest

from dfa_tf import plugins
from dfa_tf.models import resnet
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.graph import Graph


def of_kind(model: keras.Model, kind: type) -> list[keras.layers.Layer]:
    return [layer for layer in model.layers if isinstance(layer, kind)]


@functools.cache
def published(name: str) -> keras.Model:
    """A network of the literature, which tests must not change."""
    return plugins.build("models", name, image_shape=(32, 32, 3), num_classes=100)


def narrow_resnet50(side: int = 8) -> keras.Model:
    """The graph of resnet50 with four channels where it has 64 and more."""
    return resnet.build(image_shape=(side, side, 1), num_classes=10, depth=50, widths=(4, 4, 4, 4, 4))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet8", 83_892),
        ("resnet14", 83_892 + 97_216),
        ("resnet20", 278_324),
        ("resnet32", 472_756),
        pytest.param("resnet44", 472_756 + 2 * 97_216, marks=pytest.mark.slow),
        ("resnet56", 861_620),
        pytest.param("resnet110", 1_736_564, marks=pytest.mark.slow),
        ("resnet8x4", 1_233_540),
        ("resnet14x4", 1_233_540 + 1_550_080),
        ("resnet32x4", 7_433_860),
        ("resnet50", 23_705_252),
    ],
)
def test_parameters_are_those_published(name: str, count: int) -> None:
    """If no size is published: one more block in each group has 2 * 9 * (16^2 + 32^2 + 64^2) + 4 * (16 + 32 + 64) = 97,216.

    Of x4 it has 16 times the first term and 4 times the second: 1,548,288 + 1,792 = 1,550,080.
    """
    model = published(name)
    assert model.name == name
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == count


def test_resnet20_has_three_groups_of_three_blocks_tapped_before_and_behind_their_relu() -> None:
    network = published("resnet20")
    model, graph = FeatureModel.from_model(network), Graph(network)
    blocks = [[f"group{group}_block{block}" for block in (1, 2, 3)] for group in (1, 2, 3)]
    assert model.block_names() == [[f"{block}_add" for block in group] for group in blocks]
    assert [group.shape for group in model.groups] == [(32, 32, 16), (16, 16, 32), (8, 8, 64)]
    for group, names in zip(model.groups, blocks, strict=True):
        for block, name in zip(group.blocks, names, strict=True):
            before, behind = block.taps["pre_activation"], block.taps["output"]
            assert graph.producer(before.tensor).name == f"{name}_add"
            assert graph.producer(behind.tensor).name == f"{name}_relu"
            assert before.norm is network.get_layer(f"{name}_2_bn"), "the BatchNorm of the main branch, not of the shortcut"


def test_resnet50_has_four_groups_of_bottlenecks() -> None:
    network = published("resnet50")
    model = FeatureModel.from_model(network)
    counts = (3, 4, 6, 3)
    assert model.block_names() == [[f"group{i + 1}_block{j + 1}_add" for j in range(count)] for i, count in enumerate(counts)]
    assert [group.shape for group in model.groups] == [(32, 32, 256), (16, 16, 512), (8, 8, 1024), (4, 4, 2048)]
    assert model.groups[3].blocks[0].taps["pre_activation"].norm is network.get_layer("group4_block1_3_bn")
    kernels = [network.get_layer(f"group2_block2_{place}_conv").kernel.shape for place in (1, 2, 3)]
    assert kernels == [(1, 1, 512, 128), (3, 3, 128, 128), (1, 1, 128, 512)]


def test_the_tails_of_bottlenecks_go_on_to_the_logits() -> None:
    network = narrow_resnet50()
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 1)).astype(np.float32)
    model = FeatureModel.from_model(network, tap="output")
    assert len(model.groups) == 3, "the fourth is of one pixel"
    features = model.extractor()(images)
    for i in range(3):
        np.testing.assert_allclose(model.tail(i)(features.groups[i][-1]), features.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "depth"), [("resnet8", 8), ("resnet20", 20), ("resnet50", 50)])
def test_the_depth_counts_the_dense_layer_and_the_convolutions_that_are_not_on_shortcuts(name: str, depth: int) -> None:
    convolutions = [layer for layer in of_kind(published(name), keras.layers.Conv2D) if "shortcut" not in layer.name]
    assert len(convolutions) + 1 == depth
    assert len(of_kind(published(name), keras.layers.Dense)) == 1


@pytest.mark.parametrize(("name", "groups"), [("resnet20", (2, 3)), ("resnet8x4", (1, 2, 3)), ("resnet50", (1, 2, 3, 4))])
def test_a_shortcut_has_a_convolution_and_a_batchnorm_where_the_shape_changes_and_nothing_elsewhere(
    name: str, groups: tuple[int, ...]
) -> None:
    """The stem of resnet20 has 16 channels, like its first group. The stem of x4 has 32, its first group 64."""
    shortcuts = {layer.name for layer in published(name).layers if "shortcut" in layer.name}
    assert shortcuts == {f"group{group}_block1_shortcut_{layer}" for group in groups for layer in ("conv", "bn")}


def test_a_block_has_its_relu_behind_the_sum(build_model: Callable[..., keras.Model]) -> None:
    """The main branch is set to -1 everywhere, so the output is max(x - 1, 0). With the ReLU before the sum it would be x."""
    model = build_model("resnet14")
    model.get_layer("group1_block2_2_bn").set_weights([np.zeros(16), np.full(16, -1.0), np.zeros(16), np.ones(16)])
    entry = model.get_layer("group1_block1_relu").output
    x = np.broadcast_to(np.float32([0, 0.5, 1.5, 3]).reshape(1, 1, 4, 1), (1, 8, 4, 16)).repeat(2, axis=2)
    handed_on = keras.Model(entry, model.get_layer("group1_block2_relu").output)(x)
    np.testing.assert_allclose(handed_on[0, 3, :, 5], [0, 0, 0, 0, 0.5, 0.5, 2, 2])


@pytest.mark.parametrize(("family", "side"), [("basic", 8), ("basic", 7), ("bottleneck", 8)])
def test_convolutions_of_stride_2_are_padded_alike_on_all_sides(family: str, side: int) -> None:
    """An impulse in the kernel's middle then reads pixels 0, 2, 4, ..., as the shortcut does; `same` reads 1, 3, 5, ... of 8."""
    if family == "basic":
        model, groups, strided = plugins.build("models", "resnet8", image_shape=(side, side, 1), num_classes=2), (2, 3), "1_conv"
    else:
        model, groups, strided = narrow_resnet50(side), (2, 3, 4), "2_conv"
    found = {layer.name for layer in of_kind(model, keras.layers.Conv2D) if layer.strides == (2, 2)}
    assert found == {f"group{group}_block1_{branch}" for group in groups for branch in ("shortcut_conv", strided)}
    for name in found:
        layer = model.get_layer(name)
        kernel = np.zeros(layer.kernel.shape, np.float32)
        kernel[kernel.shape[0] // 2, kernel.shape[1] // 2, 0, 0] = 1
        layer.set_weights([kernel])
        entry = model.get_layer(f"{name}_pad").input if name.endswith(strided) else layer.input
        seen = np.random.default_rng(0).uniform(size=(2, *entry.shape[1:])).astype(np.float32)
        np.testing.assert_array_equal(keras.Model(entry, layer.output)(seen)[..., 0], seen[:, ::2, ::2, 0])


def test_layers_are_as_the_authors_have_them() -> None:
    model = published("resnet8")
    norms = of_kind(model, keras.layers.BatchNormalization)
    assert len(norms) == 1 + 3 * 2 + 2, "stem, three blocks of two, two shortcuts"
    assert {(layer.momentum, layer.epsilon) for layer in norms} == {(0.9, 1e-5)}
    assert not any(layer.use_bias for layer in of_kind(model, keras.layers.Conv2D))


@pytest.mark.slow
def test_it_learns_digits_in_56_steps(build_model: Callable[..., keras.Model]) -> None:
    data, model = plugins.build("data", "bundled"), build_model("resnet8")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, jit_compile=False)
    model.fit(data.train.pixels[:896].astype(np.float32), data.train.labels[:896], batch_size=32, epochs=2, verbose=0)
    assert model.evaluate(data.test.pixels.astype(np.float32), data.test.labels, verbose=0) < 0.5 * np.log(10)


@pytest.mark.slow
def test_a_network_of_bottlenecks_learns_too(build_model: Callable[..., keras.Model]) -> None:
    data, model = plugins.build("data", "bundled").train, build_model("resnet50")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.002, momentum=0.9), loss, jit_compile=False)
    history = model.fit(data.pixels[:896].astype(np.float32), data.labels[:896], batch_size=32, epochs=2, verbose=0).history
    assert history["loss"][-1] < 0.6 * np.log(10)
