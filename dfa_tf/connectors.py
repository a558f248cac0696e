"""Connectors: what brings one network's feature to the width and resolution of another's."""

from collections.abc import Sequence

import keras
from keras import layers


def connector(source: Sequence[int], target: Sequence[int], *, name: str) -> keras.Model:
    """Bilinear resizing where resolutions differ, then a 1x1 convolution without bias and BatchNorm.

    Without the BatchNorm results are worse (Heo et al. 2019, A Comprehensive Overhaul of Feature
    Distillation). It is the F_s and F_t of the DFA paper, section 3.3.

    Args:
        source: height, width, channels of what comes in.
        target: height, width, channels of what goes out.
        name: of the model.

    Returns:
        A model of `[B, *source]` to `[B, *target]`.
    """
    feature = x = layers.Input(tuple(source))
    if tuple(source[:2]) != tuple(target[:2]):
        x = layers.Resizing(target[0], target[1], name=f"{name}_resize")(x)
    x = layers.Conv2D(
        target[2],
        1,
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        name=f"{name}_conv",
    )(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return keras.Model(feature, x, name=name)
