"""The layers of the networks in this package, in the convention of their authors.

Convolutions are He-normal (fan out) without bias, BatchNorm has momentum 0.9 and epsilon 1e-5, and
strided convolutions are padded equally on all sides; `padding="same"` would pad only bottom and right.
"""

from collections.abc import Sequence

import keras
from keras import layers


def pixels(image_shape: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """The input of a network, and its normalisation, which is a part of the network.

    Args:
        image_shape: height, width, channels.
        mean: of the raw pixels, by channel or one for all.
        std: their standard deviation, in the same form.

    Returns:
        Raw pixels `[B, height, width, channels]`, and (pixels - mean) / std.
    """
    raw = layers.Input(tuple(image_shape), name="image")
    scale, offset = [1 / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
    return raw, layers.Rescaling(scale, offset, name="normalisation")(raw)


def he_normal() -> keras.initializers.Initializer:
    """Normal with variance 2 / fan out."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def convolve(x: keras.KerasTensor, channels: int, size: int, *, name: str, stride: int = 1, bias: bool = False) -> keras.KerasTensor:
    """A convolution to `ceil(side / stride)` pixels a side.

    Args:
        x: `[B, H, W, C]`.
        channels: of the result.
        size: odd side of the kernel.
        name: of the layer; its padding layer, if any, is `<name>_pad`.
        stride: of the kernel.
        bias: whether to add one.
    """
    x, padding = _padded(x, size, stride, name)
    return layers.Conv2D(channels, size, strides=stride, padding=padding, use_bias=bias, kernel_initializer=he_normal(), name=name)(x)


def convolve_depthwise(x: keras.KerasTensor, size: int, *, name: str, stride: int = 1, bias: bool = False) -> keras.KerasTensor:
    """A convolution of each channel separately; arguments as for `convolve`."""
    x, padding = _padded(x, size, stride, name)
    return layers.DepthwiseConv2D(size, strides=stride, padding=padding, use_bias=bias, depthwise_initializer=he_normal(), name=name)(x)


def _padded(x: keras.KerasTensor, size: int, stride: int, name: str) -> tuple[keras.KerasTensor, str]:
    if stride == 1 or size == 1:
        return x, "same"
    return layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x), "valid"


def normalise(x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
    """BatchNorm."""
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def shuffle(x: keras.KerasTensor, groups: int, *, name: str) -> keras.KerasTensor:
    """Interleaves the channels of groups: `[1a 1b 2a 2b]` becomes `[1a 2a 1b 2b]`.

    Args:
        x: `[B, H, W, C]`.
        groups: number of groups; it divides C.
        name: of the last of its layers.
    """
    height, width, channels = x.shape[1:]
    # With the pixels on one axis, the graph's readers would take this tensor for an image.
    x = layers.Reshape((height, width, groups, channels // groups), name=f"{name}_split")(x)
    x = layers.Permute((1, 2, 4, 3), name=f"{name}_permute")(x)
    return layers.Reshape((height, width, channels), name=name)(x)


def classify(x: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    """Float32 logits `[B, num_classes]` of features `[B, D]`, whatever the precision of the network."""
    return layers.Dense(num_classes, dtype="float32", name="logits")(x)
