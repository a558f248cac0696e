"""ShuffleNet for small images, in the variant of the distillation literature.

References:
    Zhang, Zhou, Lin, Sun (2018), ShuffleNet, arXiv 1707.01083, figure 2 and table 1.
    Tian, Krishnan, Isola (2020), Contrastive Representation Distillation, arXiv 1910.10699: ShuffleV1 of its code.
"""

from collections.abc import Sequence

import keras
from keras import layers

from dfa_tf.networks.layers import classify, convolve, convolve_depthwise, he_normal, normalise, pixels, shuffle


def build(
    *, image_shape: tuple[int, ...], num_classes: int, mean: Sequence[float] = (127.5,), std: Sequence[float] = (63.75,)
) -> keras.Model:
    """A ShuffleNet of width 1 with 1x1 convolutions in three groups, and units of 240, 480 and 960 channels.

    Unlike the network of the paper, it starts with a 1x1 convolution of stride 1 without pooling, and a ReLU
    follows each depthwise convolution. As in the paper, the first convolution of the first unit is not grouped,
    because its input is narrow.

    Args:
        image_shape: height, width, channels.
        num_classes: number of logits.
        mean: mean of the raw pixels, by channel or one for all channels.
        std: standard deviation of the raw pixels, by channel or one for all channels.

    Returns:
        A model from float32 raw pixels 0..255, `[B, height, width, channels]`, to float32 logits
        `[B, num_classes]`. It includes its normalisation. Its three layer groups have 1/2, 1/4 and 1/8 of
        the image's resolution, and 4, 8 and 4 blocks.
    """
    image, x = pixels(image_shape, mean, std)
    x = convolve(x, 24, 1, name="stem_conv")
    x = layers.ReLU(name="stem_relu")(normalise(x, name="stem_bn"))
    for group, (channels, blocks) in enumerate([(240, 4), (480, 8), (960, 4)], start=1):
        for block in range(1, blocks + 1):
            x = _unit(x, channels, f"group{group}_block{block}", down=block == 1, groups=1 if group == block == 1 else 3)
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    return keras.Model(image, classify(x, num_classes), name="shufflenet_v1")


def _unit(x: keras.KerasTensor, channels: int, name: str, *, down: bool, groups: int) -> keras.KerasTensor:
    """A residual unit. A down-sampling unit concatenates its channels with those of its pooled input."""
    shortcut, stride = x, 1
    if down:
        # The average includes the zeros of the padding, as in the code of the authors.
        shortcut = layers.ZeroPadding2D(1, name=f"{name}_pool_pad")(x)
        shortcut = layers.AveragePooling2D(3, 2, name=f"{name}_pool")(shortcut)
        channels, stride = channels - x.shape[-1], 2
    x = _convolved(x, channels // 4, groups, f"{name}_conv1")
    x = layers.ReLU(name=f"{name}_relu1")(normalise(x, name=f"{name}_bn1"))
    if groups > 1:
        x = shuffle(x, groups, name=f"{name}_shuffle")
    x = convolve_depthwise(x, 3, stride=stride, name=f"{name}_conv2")
    x = layers.ReLU(name=f"{name}_relu2")(normalise(x, name=f"{name}_bn2"))
    x = normalise(_convolved(x, channels, 3, f"{name}_conv3"), name=f"{name}_bn3")
    x = layers.Concatenate(name=f"{name}_concat")([x, shortcut]) if down else layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.ReLU(name=f"{name}_relu")(x)


def _convolved(x: keras.KerasTensor, channels: int, groups: int, name: str) -> keras.KerasTensor:
    """A grouped 1x1 convolution.

    It is written as a matrix product: Keras computes grouped convolutions by XLA, at half the speed on the CPU.
    """
    if groups == 1:
        return convolve(x, channels, 1, name=name)
    height, width, wide = x.shape[1:]
    x = layers.Reshape((height, width, groups, wide // groups), name=f"{name}_split")(x)
    shape = (height, width, groups, channels // groups)
    x = layers.EinsumDense("bhwgi,gio->bhwgo", shape, kernel_initializer=he_normal(), name=name)(x)
    return layers.Reshape((height, width, channels), name=f"{name}_join")(x)
