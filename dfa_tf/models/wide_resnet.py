"""Wide residual networks: `wrn_D_W` has D = 6n + 4 convolutions and W times the width.

References:
    Zagoruyko, Komodakis (2016), Wide Residual Networks, arXiv 1605.07146.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from dfa_tf.networks.layers import classify, convolve, normalise, pixels

VARIANTS: dict[str, dict[str, Any]] = {
    f"wrn_{depth}_{width}": {"depth": depth, "width": width} for depth in range(10, 101, 6) for width in range(1, 13)
}


def build(
    *,
    image_shape: tuple[int, ...],
    num_classes: int,
    depth: int,
    width: int,
    mean: Sequence[float] = (127.5,),
    std: Sequence[float] = (63.75,),
) -> keras.Model:
    """A pre-activation wide ResNet with three groups of `(depth - 4) / 6` basic blocks.

    Args:
        image_shape: height, width, channels.
        num_classes: number of logits.
        depth: number of convolutions on the longest path, 6n + 4.
        width: factor on the widths 16, 32, 64 of the groups.
        mean: mean of the raw pixels, by channel or one for all channels.
        std: standard deviation of the raw pixels, by channel or one for all channels.

    Returns:
        A model from float32 raw pixels 0..255, `[B, height, width, channels]`, to float32 logits
        `[B, num_classes]`. It includes its normalisation.
    """
    image, x = pixels(image_shape, mean, std)
    x = convolve(x, 16, 3, name="stem_conv")
    for group in range(3):
        for block in range((depth - 4) // 6):
            stride = 2 if group > 0 and block == 0 else 1
            x = _block(x, 16 * width * 2**group, stride, f"group{group + 1}_block{block + 1}")
    x = _activated(x, "head")
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    return keras.Model(image, classify(x, num_classes), name=f"wrn_{depth}_{width}")


def _block(x: keras.KerasTensor, channels: int, stride: int, name: str) -> keras.KerasTensor:
    shortcut = x
    x = _activated(x, f"{name}_1")
    if shortcut.shape[-1] != channels or stride > 1:
        # In a block that changes the shape, both branches start from the activation.
        shortcut = convolve(x, channels, 1, stride=stride, name=f"{name}_shortcut")
    x = convolve(x, channels, 3, stride=stride, name=f"{name}_conv1")
    x = _activated(x, f"{name}_2")
    x = convolve(x, channels, 3, name=f"{name}_conv2")
    return layers.Add(name=f"{name}_add")([shortcut, x])


def _activated(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return layers.ReLU(name=f"{name}_relu")(normalise(x, name=f"{name}_bn"))
