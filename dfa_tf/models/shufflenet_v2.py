"""ShuffleNet V2 for small images, in two variants: of the distillation literature, and of the author of DFA.

References:
    Ma, Zhang, Zheng, Sun (2018), ShuffleNet V2, arXiv 1807.11164, figure 3 (c, d) and table 5.
    Tian, Krishnan, Isola (2020), Contrastive Representation Distillation, arXiv 1910.10699: ShuffleV2 of its code.
    Guan et al. (2020), Differentiable Feature Aggregation Search, arXiv 2008.00506: CINIC-10.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from dfa_tf.errors import UserError
from dfa_tf.networks.layers import classify, convolve, convolve_depthwise, normalise, pixels, shuffle

VARIANTS: dict[str, dict[str, Any]] = {
    "shufflenet_v2": {"width": 1.0, "dfa": False},
    **{f"shufflenet_v2_dfa_{width}".replace(".", "_"): {"width": width, "dfa": True} for width in (0.5, 1.0, 2.0)},
}

_CHANNELS = {0.5: (48, 96, 192, 1024), 1.0: (116, 232, 464, 1024), 2.0: (244, 488, 976, 2048)}
_BLOCKS = (4, 8, 4)


def build(
    *,
    image_shape: tuple[int, ...],
    num_classes: int,
    width: float,
    dfa: bool = False,
    mean: Sequence[float] = (127.5,),
    std: Sequence[float] = (63.75,),
) -> keras.Model:
    """A ShuffleNet V2 that starts with a convolution of stride 1 without pooling.

    A unit splits its channels into two halves. One half is unchanged, the other passes through a 1x1, a depthwise 3x3
    and a 1x1 convolution. The first unit of a group samples down: both branches convolve the whole input. The
    halves are then concatenated and shuffled.

    - Variant of the literature: the first convolution is 1x1; a ReLU ends each branch; the middle of a
      down-sampling unit is as wide as the output of its branch; convolutions have no bias.
    - Variant of the author of DFA (`dfa`): the first convolution is 3x3 without a ReLU after it; a ReLU is at the start
      of each unit and before the last convolution, not at the end; the middle of a down-sampling unit is as
      wide as its input; convolutions have a bias.

    Args:
        image_shape: height, width, channels.
        num_classes: number of logits.
        width: 0.5, 1.0 or 2.0: the widths of table 5.
        dfa: whether to build the variant of the author of DFA.
        mean: mean of the raw pixels, by channel or one for all channels.
        std: standard deviation of the raw pixels, by channel or one for all channels.

    Returns:
        A model from float32 raw pixels 0..255, `[B, height, width, channels]`, to float32 logits
        `[B, num_classes]`. It includes its normalisation. Its three layer groups have 1/2, 1/4 and 1/8 of
        the image's resolution, and 4, 8 and 4 blocks.

    Raises:
        UserError: if the width is another.
    """
    if width not in _CHANNELS:
        raise UserError(f"the width of shufflenet_v2 must be one of {', '.join(map(str, _CHANNELS))}. Received: {width}")
    image, x = pixels(image_shape, mean, std)
    x = _convolved(x, 24, "stem", size=3 if dfa else 1, bias=dfa, relu=not dfa)
    *groups, last = _CHANNELS[width]
    for group, (channels, blocks) in enumerate(zip(groups, _BLOCKS, strict=True), start=1):
        for block in range(1, blocks + 1):
            x = _unit(x, channels, f"group{group}_block{block}", down=block == 1, dfa=dfa)
    if dfa:
        x = layers.ReLU(name="head_open")(x)
    x = _convolved(x, last, "head", bias=dfa)
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    name = f"shufflenet_v2_dfa_{width}".replace(".", "_") if dfa else "shufflenet_v2"
    return keras.Model(image, classify(x, num_classes), name=name)


def _unit(x: keras.KerasTensor, channels: int, name: str, *, down: bool, dfa: bool) -> keras.KerasTensor:
    middle = half = channels // 2
    stride = 2 if down else 1
    if dfa:
        x = layers.ReLU(name=f"{name}_open")(x)
    if down:
        middle = x.shape[-1] if dfa else half
        left = _convolved_depthwise(x, f"{name}_left1", stride=stride, bias=dfa)
        left, right = _convolved(left, half, f"{name}_left2", bias=dfa, relu=not dfa), x
    else:
        left, right = keras.ops.split(x, 2, axis=-1)
    right = _convolved(right, middle, f"{name}_right1", bias=dfa)
    right = _convolved_depthwise(right, f"{name}_right2", stride=stride, bias=dfa)
    right = _convolved(right, half, f"{name}_right3", bias=dfa, relu=not dfa)
    return shuffle(layers.Concatenate(name=f"{name}_concat")([left, right]), 2, name=f"{name}_shuffle")


def _convolved(x: keras.KerasTensor, channels: int, name: str, *, bias: bool, size: int = 1, relu: bool = True) -> keras.KerasTensor:
    x = normalise(convolve(x, channels, size, bias=bias, name=f"{name}_conv"), name=f"{name}_bn")
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def _convolved_depthwise(x: keras.KerasTensor, name: str, *, stride: int, bias: bool) -> keras.KerasTensor:
    return normalise(convolve_depthwise(x, 3, stride=stride, bias=bias, name=f"{name}_conv"), name=f"{name}_bn")
