"""MobileNetV2 for images of 32x32, of any width.

References:
    Sandler, Howard, Zhu, Zhmoginov, Chen (2018), MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv 1801.04381, table 2.
    Tian, Krishnan, Isola (2019), Contrastive Representation Distillation, arXiv 1910.10699: the network of its tables has width
    0.5, ReLU in place of ReLU6, an expanding convolution in the first block too, and stride 1 in the second sequence.
"""

import math
from collections.abc import Sequence

import keras
from keras import layers

from dfa_tf.errors import UserError
from dfa_tf.networks.layers import classify, convolve, convolve_depthwise, normalise, pixels

# Expansion, channels, blocks, and the stride of the first block, by sequence: table 2.
_SEQUENCES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def build(
    *,
    image_shape: tuple[int, ...],
    num_classes: int,
    width: float = 0.5,
    mean: Sequence[float] = (127.5,),
    std: Sequence[float] = (63.75,),
) -> keras.Model:
    """A stem of stride 2, seventeen inverted residual blocks, and a head of 1,280 channels.

    Args:
        image_shape: height, width, channels.
        num_classes: number of logits.
        width: factor on the channels, finite, 1/16 or more; channels are rounded down. A width below 1 does not narrow the head.
        mean: mean of the raw pixels, by channel or one for all channels.
        std: standard deviation of the raw pixels, by channel or one for all channels.

    Returns:
        A model from float32 raw pixels 0..255, `[B, height, width, channels]`, to float32 logits
        `[B, num_classes]`. It includes its normalisation.

    Raises:
        UserError: if the width is below 1/16 or not finite.
    """
    if not 1 / 16 <= width < math.inf:
        raise UserError(f"width must be a finite number of 1/16 or more. Received: width={width}. Published tables use 0.5.")
    image, x = pixels(image_shape, mean, std)
    x = _activated(convolve(x, int(32 * width), 3, stride=2, name="stem_conv"), "stem")
    number = 0
    for expansion, channels, count, stride in _SEQUENCES:
        for position in range(count):
            number += 1
            x = _block(x, expansion, int(channels * width), stride if position == 0 else 1, f"block{number}")
    x = _activated(convolve(x, max(1280, int(1280 * width)), 1, name="head_conv"), "head")
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    return keras.Model(image, classify(x, num_classes), name="mobilenet_v2")


def _block(x: keras.KerasTensor, expansion: int, channels: int, stride: int, name: str) -> keras.KerasTensor:
    shortcut = x
    x = _activated(convolve(x, expansion * x.shape[-1], 1, name=f"{name}_expand_conv"), f"{name}_expand")
    x = _activated(convolve_depthwise(x, 3, stride=stride, name=f"{name}_depthwise_conv"), f"{name}_depthwise")
    x = normalise(convolve(x, channels, 1, name=f"{name}_project_conv"), name=f"{name}_project_bn")
    if stride > 1 or shortcut.shape[-1] != channels:
        return x
    return layers.Add(name=f"{name}_add")([shortcut, x])


def _activated(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return layers.ReLU(name=f"{name}_relu")(normalise(x, name=f"{name}_bn"))
