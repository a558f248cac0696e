"""VGG: published sizes, stacks by resolution, biased convolutions with BatchNorm and ReLU, max-pooling between stacks."""

from collections.abc import Callable

import keras
import numpy as np
import pytest

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.graph import Graph


def of_kind(model: keras.Model, kind: type) -> list[keras.layers.Layer]:
    return [layer for layer in model.layers if isinstance(layer, kind)]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vgg8", 3_965_028),
        ("vgg11", 3_965_028 + 590_592 + 2 * 2_360_832),
        ("vgg13", 9_462_180),
        ("vgg16", 9_462_180 + 590_592 + 2 * 2_360_832),
        ("vgg19", 9_462_180 + 2 * (590_592 + 2 * 2_360_832)),
    ],
)
def test_parameters_are_those_published(name: str, count: int) -> None:
    """If no size is published: one more convolution of C channels has 9 C^2 + C parameters, and its BatchNorm 2 C.

    Of 256 that is 589,824 + 768 = 590,592, and of 512 it is 2,359,296 + 1,536 = 2,360,832.
    """
    model = plugins.build("models", name, image_shape=(32, 32, 3), num_classes=100)
    assert model.name == name
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == count


def test_its_activations_are_grouped_by_resolution_and_the_last_two_stacks_share_one() -> None:
    network = plugins.build("models", "vgg13", image_shape=(32, 32, 3), num_classes=100)
    model, graph = FeatureModel.from_model(network), Graph(network)
    names = [[f"stack{stack}_{place}" for stack in stacks for place in (1, 2)] for stacks in ((1,), (2,), (3,), (4, 5))]
    assert model.block_names() == [[f"{name}_relu" for name in group] for group in names]
    assert [group.shape for group in model.groups] == [(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512)]
    for group, blocks in zip(model.groups, names, strict=True):
        for block, name in zip(group.blocks, blocks, strict=True):
            before, behind = block.taps["pre_activation"], block.taps["output"]
            assert graph.producer(before.tensor).name == f"{name}_bn"
            assert before.norm is network.get_layer(f"{name}_bn")
            assert graph.producer(behind.tensor).name == f"{name}_relu"


@pytest.mark.parametrize(("side", "sizes"), [(64, [64, 32, 16, 8, 4]), (63, [63, 31, 15, 7]), (8, [8, 4, 2])])
def test_images_of_64_pixels_are_pooled_once_more(side: int, sizes: list[int]) -> None:
    """With 8 pixels, the last two stacks have one pixel, which is not a layer group."""
    model = FeatureModel.from_model(plugins.build("models", "vgg8", image_shape=(side, side, 1), num_classes=2))
    assert [group.height for group in model.groups] == sizes


def test_images_that_cannot_be_pooled_three_times_are_refused() -> None:
    with pytest.raises(UserError, match="vgg8 cannot be built with these options"):
        plugins.build("models", "vgg8", image_shape=(7, 7, 1), num_classes=2)


def test_convolutions_are_3x3_biased_and_not_strided_and_each_has_a_batchnorm(build_model: Callable[..., keras.Model]) -> None:
    model = build_model("vgg16")
    convolutions = of_kind(model, keras.layers.Conv2D)
    widths = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert [layer.filters for layer in convolutions] == widths
    assert {(layer.kernel_size, layer.strides, layer.padding, layer.use_bias) for layer in convolutions} == {((3, 3), (1, 1), "same", True)}
    assert len(convolutions) + 3 == 16, "the name counts three Dense layers"
    norms = of_kind(model, keras.layers.BatchNormalization)
    assert [norm.gamma.shape for norm in norms] == [(width,) for width in widths]
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9, 1e-5)}


def test_pooling_takes_the_largest_of_four_pixels(build_model: Callable[..., keras.Model]) -> None:
    pool = build_model("vgg8").get_layer("stack1_pool")
    np.testing.assert_array_equal(pool(np.float32([[1, 2, 3, 0], [4, 3, 9, 5]]).reshape(1, 2, 4, 1)), [[[[4], [9]]]])


def test_one_dense_layer_reads_the_mean_over_pixels() -> None:
    model = plugins.build("models", "vgg8", image_shape=(16, 16, 1), num_classes=10)
    assert [layer.kernel.shape for layer in of_kind(model, keras.layers.Dense)] == [(512, 10)]
    pool = model.get_layer("head_pool")
    assert pool.input.shape == (None, 2, 2, 512)
    means = keras.Model(pool.input, pool.output)(np.broadcast_to(np.float32([1, 2, 3, 6]).reshape(1, 2, 2, 1), (1, 2, 2, 512)))
    np.testing.assert_allclose(means, np.full((1, 512), 3))


@pytest.mark.slow
def test_it_learns_digits_in_28_steps(build_model: Callable[..., keras.Model]) -> None:
    """Full batches only: BatchNorm over the two remaining images of 898, at one pixel, is noise."""
    data, model = plugins.build("data", "bundled").train, build_model("vgg8")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, jit_compile=False)
    history = model.fit(data.pixels[:896].astype(np.float32), data.labels[:896], batch_size=64, epochs=2, verbose=0).history
    assert history["loss"][-1] < 0.5 * np.log(10)
