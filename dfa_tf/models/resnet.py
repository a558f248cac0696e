"""Residual networks for images of 32x32: ReLU after the sum, 1x1 convolution and BatchNorm on the shortcuts that change the shape.

`resnetD` has D = 6n + 2 layers in three groups of n basic blocks. `resnetDx4` is four times as wide, with a stem twice as wide.
`resnet50` has four groups of bottlenecks.

References:
    He, Zhang, Ren, Sun (2015), Deep Residual Learning for Image Recognition, arXiv 1512.03385, section 4.2.
    Tian, Krishnan, Isola (2019), Contrastive Representation Distillation, arXiv 1910.10699: the networks of its tables. The
    shortcuts are option B of He et al., whose networks for CIFAR-10 have option A. A bottleneck has its stride in the 3x3 convolution.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from dfa_tf.networks.layers import classify, convolve, normalise, pixels

VARIANTS: dict[str, dict[str, Any]] = {
    **{f"resnet{depth}": {"depth": depth, "widths": (16, 16, 32, 64)} for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": {"depth": depth, "widths": (32, 64, 128, 256)} for depth in (8, 14, 32)},
    "resnet50": {"depth": 50, "widths": (64, 64, 128, 256, 512)},
}
# Bottlenecks by group, He et al., table 1.
_BOTTLENECKS = {50: (3, 4, 6, 3)}


def build(
    *,
    image_shape: tuple[int, ...],
    num_classes: int,
    depth: int,
    widths: Sequence[int],
    mean: Sequence[float] = (127.5,),
    std: Sequence[float] = (63.75,),
) -> keras.Model:
    """A post-activation ResNet with a 3x3 stem of stride 1. Each group after the first halves the resolution.

    Args:
        image_shape: height, width, channels.
        num_classes: number of logits.
        depth: number of convolutions on the longest path, plus the Dense layer: 6n + 2 for three groups of n basic blocks,
            or 50 for four groups of 3, 4, 6 and 3 bottlenecks.
        widths: channels of the stem, and of the 3x3 convolutions by group; a bottleneck has four times as many output channels.
        mean: mean of the raw pixels, by channel or one for all channels.
        std: standard deviation of the raw pixels, by channel or one for all channels.

    Returns:
        A model from float32 raw pixels 0..255, `[B, height, width, channels]`, to float32 logits
        `[B, num_classes]`. It includes its normalisation.
    """
    bottleneck = depth in _BOTTLENECKS
    blocks = _BOTTLENECKS[depth] if bottleneck else ((depth - 2) // 6,) * 3
    image, x = pixels(image_shape, mean, std)
    x = _convolved(x, widths[0], 3, "stem")
    for group, (count, width) in enumerate(zip(blocks, widths[1:], strict=True)):
        for block in range(count):
            stride = 2 if group > 0 and block == 0 else 1
            x = _block(x, width, stride, bottleneck, f"group{group + 1}_block{block + 1}")
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    factor = "" if bottleneck or widths[1] == 16 else f"x{widths[1] // 16}"
    return keras.Model(image, classify(x, num_classes), name=f"resnet{depth}{factor}")


def _block(x: keras.KerasTensor, width: int, stride: int, bottleneck: bool, name: str) -> keras.KerasTensor:
    channels = 4 * width if bottleneck else width
    shortcut = x
    if x.shape[-1] != channels or stride > 1:
        shortcut = _convolved(x, channels, 1, f"{name}_shortcut", stride=stride, relu=False)
    if bottleneck:
        x = _convolved(x, width, 1, f"{name}_1")
        x = _convolved(x, width, 3, f"{name}_2", stride=stride)
        x = _convolved(x, channels, 1, f"{name}_3", relu=False)
    else:
        x = _convolved(x, width, 3, f"{name}_1", stride=stride)
        x = _convolved(x, channels, 3, f"{name}_2", relu=False)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([shortcut, x]))


def _convolved(x: keras.KerasTensor, channels: int, size: int, name: str, *, stride: int = 1, relu: bool = True) -> keras.KerasTensor:
    x = normalise(convolve(x, channels, size, stride=stride, name=f"{name}_conv"), name=f"{name}_bn")
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x
