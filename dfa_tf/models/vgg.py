"""VGG networks for images of 32x32: biased 3x3 convolutions, each with BatchNorm and ReLU, and one Dense layer.

References:
    Simonyan, Zisserman (2014), Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv 1409.1556, table 1:
    `vgg11` is configuration A, `vgg13` B, `vgg16` D and `vgg19` E; BatchNorm, and one Dense layer in place of three, are later changes.
    Tian, Krishnan, Isola (2019), Contrastive Representation Distillation, arXiv 1910.10699: the networks of its tables, with `vgg8`.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from dfa_tf.networks.layers import classify, convolve, normalise, pixels

VARIANTS: dict[str, dict[str, Any]] = {f"vgg{depth}": {"depth": depth} for depth in (8, 11, 13, 16, 19)}
_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def build(
    *,
    image_shape: tuple[int, ...],
    num_classes: int,
    depth: int,
    mean: Sequence[float] = (127.5,),
    std: Sequence[float] = (63.75,),
) -> keras.Model:
    """Five stacks of convolutions of 64, 128, 256, 512 and 512 channels, with max-pooling between them.

    The last two stacks have the same resolution and form one layer group, unless the sides have 64 pixels or more. With
    images of 32x32, that group is at 4x4.

    Args:
        image_shape: height, width, channels; sides of 8 or more.
        num_classes: number of logits.
        depth: 8, 11, 13, 16 or 19: number of convolutions, plus three for the Dense layers of the original.
        mean: mean of the raw pixels, by channel or one for all channels.
        std: standard deviation of the raw pixels, by channel or one for all channels.

    Returns:
        A model from float32 raw pixels 0..255, `[B, height, width, channels]`, to float32 logits
        `[B, num_classes]`. It includes its normalisation.
    """
    pooled = (1, 2, 3, 4) if min(image_shape[:2]) >= 64 else (1, 2, 3)
    image, x = pixels(image_shape, mean, std)
    for stack, (count, channels) in enumerate(zip(_CONVOLUTIONS[depth], _WIDTHS, strict=True), start=1):
        for position in range(1, count + 1):
            name = f"stack{stack}_{position}"
            x = normalise(convolve(x, channels, 3, bias=True, name=f"{name}_conv"), name=f"{name}_bn")
            x = layers.ReLU(name=f"{name}_relu")(x)
        if stack in pooled:
            x = layers.MaxPooling2D(2, name=f"stack{stack}_pool")(x)
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    return keras.Model(image, classify(x, num_classes), name=f"vgg{depth}")
