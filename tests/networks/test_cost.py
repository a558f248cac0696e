"""Multiply-accumulates by hand and against the literature; what a backward pass keeps, by hand; memory against real peaks."""

import subprocess
import sys
from pathlib import Path

import keras
import pytest
from keras import layers

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.networks.cost import count_macs, kept_bytes, macs_by_type, training_memory, working_bytes
from dfa_tf.networks.precision import precision

CALLS = [
    # 4x4 places, 9 weights for each of 3 channels into each of 5.
    (layers.Conv2D(5, 3, 2, padding="same"), (8, 8, 3), 4 * 4 * 9 * 3 * 5),
    # 2 groups: each of the 6 outputs reads 2 of the 4 channels.
    (layers.Conv2D(6, 3, padding="same", groups=2), (8, 8, 4), 8 * 8 * 9 * 2 * 6),
    # A dilated kernel of 3 covers 5 pixels, which leaves 4x4 places.
    (layers.Conv2D(5, 3, dilation_rate=2), (8, 8, 3), 4 * 4 * 9 * 3 * 5),
    (layers.Conv2D(5, (1, 3), data_format="channels_first"), (3, 8, 8), 8 * 6 * 3 * 3 * 5),
    # Each of 3 channels gives 2.
    (layers.DepthwiseConv2D(3, 2, padding="same", depth_multiplier=2), (8, 8, 3), 4 * 4 * 9 * 3 * 2),
    # 9 weights for each of 3 * 2 channels, then 1x1 from 6 to 5.
    (layers.SeparableConv2D(5, 3, 2, padding="same", depth_multiplier=2), (8, 8, 3), 4 * 4 * (9 * 6 + 6 * 5)),
    # Its kernel is laid on each of the 4x4 pixels that come in, though 8x8 go out.
    (layers.Conv2DTranspose(5, 3, 2, padding="same"), (4, 4, 3), 4 * 4 * 9 * 3 * 5),
    (layers.Dense(5), (8,), 8 * 5),
    # On a feature map it is a 1x1 convolution.
    (layers.Dense(5), (8, 8, 3), 8 * 8 * 3 * 5),
    (layers.BatchNormalization(), (8, 8, 3), 0),
    (layers.PReLU(), (8, 8, 3), 0),
]


@pytest.mark.parametrize(("layer", "shape", "macs"), CALLS, ids=[f"{layer.name} of {shape}" for layer, shape, _ in CALLS])
def test_a_layer_by_hand(layer: layers.Layer, shape: tuple[int, ...], macs: int) -> None:
    x = layers.Input(shape)
    model = keras.Model(x, type(layer).from_config(layer.get_config())(x))
    assert count_macs(model) == macs
    assert macs_by_type(model) == ({type(layer).__name__: macs} if macs else {}, [])


def test_every_call_counts_also_of_a_model_inside() -> None:
    shared = layers.Conv2D(3, 1, name="shared")
    x = layers.Input((4, 4, 3))
    inner = keras.Model(x, shared(shared(x)))
    y = layers.Input((4, 4, 3))
    outer = keras.Sequential([y, inner, layers.Flatten(), layers.Dense(2)])
    assert macs_by_type(outer) == ({"Conv2D": 2 * 4 * 4 * 3 * 3, "Dense": 48 * 2}, [])


class Doubled(layers.Layer):
    """Of a user: what it computes cannot be known."""

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return x + x


def test_what_is_not_counted_is_named() -> None:
    x = layers.Input((4, 3))
    y = layers.Dense(3)(x)
    y = keras.ops.matmul(y, keras.ops.transpose(y, (0, 2, 1)))
    y = layers.EinsumDense("bij,jk->bik", output_shape=(4, 2), name="einsum")(y)
    y = layers.MultiHeadAttention(1, 2, name="attention")(y, y)
    kinds, not_counted = macs_by_type(keras.Model(x, Doubled(name="doubled")(y)))
    assert kinds == {"Dense": 4 * 3 * 3}
    assert [name.partition("_")[0] for name in not_counted] == ["matmul", "einsum", "attention", "doubled"]


def test_networks_that_tell_no_sizes_are_refused() -> None:
    x = layers.Input((None, None, 3))
    with pytest.raises(UserError, match="images of a known size. Received: a tensor of .None, None, None, 5."):
        count_macs(keras.Model(x, layers.Conv2D(5, 3)(x)))
    with pytest.raises(UserError, match="costs are read from a Functional or Sequential model that is built. Received: Sequential"):
        count_macs(keras.Sequential([layers.Dense(3)]))


def test_wrn_16_1_by_hand() -> None:
    """Zagoruyko and Komodakis (2016), table 1, for 32x32 pixels, widths 16, 32 and 64, and two blocks a group."""
    wide = 32 * 32 * (3 * 9 * 16 + 4 * 9 * 16 * 16)  # the stem, and two blocks of two convolutions
    middle = 16 * 16 * (9 * 16 * 32 + 3 * 9 * 32 * 32 + 16 * 32)  # the last one is the 1x1 shortcut
    deep = 8 * 8 * (9 * 32 * 64 + 3 * 9 * 64 * 64 + 32 * 64)
    model = plugins.build("models", "wrn_16_1", image_shape=(32, 32, 3), num_classes=10)
    assert macs_by_type(model) == ({"Conv2D": wide + middle + deep, "Dense": 64 * 10}, [])


# ResNet50 as first published strides in the 1x1 convolution that opens a group; torchvision's in the 3x3 behind it, which has the
# 1x1 run on four times the pixels, 3 * (3 * 28^2 * 256 * 128) more (each of the three later groups costs the same): 4.09 G.
PUBLISHED = [
    ("keras_applications:ResNet50", 3.86e9),  # He et al. (2016), table 1: 3.8e9
    ("keras_applications:MobileNetV2", 300e6),  # Sandler et al. (2018), table 4: 300 M
    ("keras_applications:VGG16", 15.47e9),  # Simonyan and Zisserman (2014), configuration D; as torchvision's table has it
    ("keras_applications:DenseNet121", 2.83e9),  # Huang et al. (2017); as torchvision's table has it
    ("keras_applications:EfficientNetB0", 0.39e9),  # Tan and Le (2019), table 2
    ("keras_applications:ConvNeXtTiny", 4.46e9),  # Liu et al. (2022), table 1: 4.5 G
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "macs"), PUBLISHED)
def test_published_numbers(name: str, macs: float) -> None:
    model = plugins.build("models", name, image_shape=(224, 224, 3), num_classes=1000)
    assert count_macs(model) == pytest.approx(macs, rel=0.02)
    assert macs_by_type(model)[1] == []


# Memory


def chain(*middle: layers.Layer) -> keras.Model:
    """A convolution of 8x8x3 to 8x8x4, what is given, another convolution, and a classifier."""
    x = image = layers.Input((8, 8, 3))
    for layer in (layers.Conv2D(4, 3, padding="same"), *middle, layers.Conv2D(4, 3, padding="same")):
        x = layer(x)
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


FEATURE, ENDS = (
    8 * 8 * 4 * 4,
    8 * 8 * 3 * 4 + 4 * 4,
)  # bytes: a feature map; the image, which the first convolution reads, and the embedding


@pytest.mark.parametrize(
    ("middle", "maps"),
    [
        ([], 1),  # what the second convolution reads
        ([layers.BatchNormalization()], 2),  # and what BatchNorm reads
        ([layers.BatchNormalization(), layers.ReLU()], 2),  # the ReLU's output is the convolution's input, and kept once
        ([layers.BatchNormalization(), layers.Activation("silu")], 3),  # its gradient reads its input, the convolution's its output
        ([layers.ZeroPadding2D(0), layers.Reshape((8, 8, 4))], 1),  # neither keeps anything, and a reshape is the same memory
        ([layers.Reshape((64, 4)), layers.ReLU(), layers.Reshape((8, 8, 4))], 1),
        ([layers.Conv2D(4, 1, activation="relu")], 2),
        ([layers.Conv2D(4, 1, activation="gelu")], 3),  # what it reads, and what is before the gelu and behind it
        ([layers.MaxPooling2D(1)], 2),
    ],
)
def test_what_the_backward_pass_keeps_by_hand(middle: list[layers.Layer], maps: int) -> None:
    copies = [type(layer).from_config(layer.get_config()) for layer in middle]
    assert kept_bytes(chain(*copies)) == maps * FEATURE + ENDS


def test_batchnorm_keeps_float32_where_the_network_computes_in_less() -> None:
    with precision("mixed_bfloat16"):
        plain, normalised = chain(), chain(layers.BatchNormalization())
    assert kept_bytes(plain) == (FEATURE + ENDS) // 2
    assert kept_bytes(normalised) == kept_bytes(plain) + FEATURE


def test_the_memory_of_a_step_by_hand() -> None:
    x = layers.Input((2, 2, 1))
    student = keras.Model(x, layers.Dense(3)(layers.Flatten()(x)))  # 4 * 3 + 3 weights
    connector = keras.Model(x, layers.BatchNormalization()(x))  # 2 that are trained, and 2 statistics
    teacher = keras.Model(x, layers.Conv2D(5, 1)(x))  # 5 + 5 weights, and its output is the largest tensor
    memory = training_memory(
        student, 10, momentum=True, average=True, connectors=[connector], teacher=teacher, features=[teacher.output, x]
    )
    assert memory._asdict() == {
        "weights": 4 * (15 + 4 + 10),
        "gradients": 4 * (15 + 2),
        "optimizer": 4 * (15 + 2) * 2,
        "activations": 10 * 4 * (4 + 4),  # what Dense and BatchNorm read
        "features": 10 * 4 * (20 + 4),
        "working": 10 * (working_bytes(teacher) + 4 * 4),  # and the images
    }
    assert memory.total == sum(memory)
    assert training_memory(student, 10, momentum=False).optimizer == 0


PAIRS = [
    ("wrn_10_2", "wrn_10_1", 32, 128),
    *(
        pytest.param(*pair, marks=pytest.mark.slow)
        for pair in (
            ("wrn_28_4", "wrn_16_2", 32, 64),
            ("resnet56", "resnet20", 32, 128),
            ("vgg13", "vgg8", 32, 64),
            ("keras_applications:ResNet50", "keras_applications:MobileNetV3Small", 64, 64),
            ("keras_applications:ResNet50", "mobilenet_v2", 64, 64),
        )
    ),
]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux")
@pytest.mark.parametrize(("teacher", "student", "side", "batch_size"), PAIRS)
def test_a_step_takes_what_was_estimated_within_a_third(teacher: str, student: str, side: int, batch_size: int) -> None:
    """In a process of its own, because kernels keep for later steps what they had for earlier ones."""
    command = [sys.executable, str(Path(__file__).parents[1] / "peak.py"), teacher, student, str(side), str(batch_size)]
    ratio = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 2 / 3 < ratio < 4 / 3
