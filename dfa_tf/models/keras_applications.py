"""The classifiers of keras.applications, untrained.

References:
    https://keras.io/api/applications
"""

import inspect
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from dfa_tf.errors import UserError
from dfa_tf.networks.flatten import flat_classifier
from dfa_tf.networks.graph import Graph
from dfa_tf.networks.layers import classify, pixels

VARIANTS: dict[str, dict[str, Any]] = {
    f"keras_applications:{name}": {"application": name}
    for name in (
        *("MobileNetV3Small", "MobileNetV3Large", "MobileNetV2", "MobileNet", "NASNetMobile", "NASNetLarge"),
        *("EfficientNetB0", "EfficientNetB1", "EfficientNetB2", "EfficientNetB3"),
        *("EfficientNetB4", "EfficientNetB5", "EfficientNetB6", "EfficientNetB7"),
        *("EfficientNetV2B0", "EfficientNetV2B1", "EfficientNetV2B2", "EfficientNetV2B3"),
        *("EfficientNetV2S", "EfficientNetV2M", "EfficientNetV2L"),
        *("ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "ResNet101V2", "ResNet152V2"),
        *("DenseNet121", "DenseNet169", "DenseNet201", "VGG16", "VGG19"),
        *("Xception", "InceptionV3", "InceptionResNetV2"),
        *("ConvNeXtTiny", "ConvNeXtSmall", "ConvNeXtBase", "ConvNeXtLarge", "ConvNeXtXLarge"),
    )
}

_SMALLEST_SIDE = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}


def build(
    *,
    image_shape: tuple[int, ...],
    num_classes: int,
    application: str,
    mean: Sequence[float] = (127.5,),
    std: Sequence[float] = (63.75,),
) -> keras.Model:
    """A network of keras.applications with fresh weights.

    The network has its default options, except for its preprocessing, which suits only the weights trained with it:
    pixels are normalised by mean and standard deviation, as in the other networks here. The last layer computes in float32.

    In NASNet, only the last cell is found as a block: each cell takes the outputs of the two cells before it, so no other
    tensor is on all paths. BatchNorm has a momentum of 0.999 in MobileNetV2 and V3, and of 0.9997 in NASNet: its moving
    statistics need some thousands of training steps to reach those of the data.

    Args:
        image_shape: height, width, channels. The sides are at least 32 (Xception: 71, InceptionV3 and
            InceptionResNetV2: 75).
        num_classes: number of logits.
        application: name of the network in keras.applications.
        mean: mean of the raw pixels, by channel or one for all channels.
        std: standard deviation of the raw pixels, by channel or one for all channels.

    Returns:
        A flat model from float32 raw pixels 0..255, `[B, height, width, channels]`, to float32 logits
        `[B, num_classes]`. It includes its normalisation.

    Raises:
        UserError: if the image is too small.
    """
    smallest = _SMALLEST_SIDE.get(application, 32)
    if min(image_shape[:2]) < smallest:
        raise UserError(f"{application} needs images of {smallest}x{smallest} pixels or more. Received: image_shape={tuple(image_shape)}")
    function = getattr(keras.applications, application)
    options: dict[str, Any] = {"weights": None, "classes": num_classes}
    if "include_preprocessing" in inspect.signature(function).parameters:
        options["include_preprocessing"] = False
    if application.startswith("EfficientNetB"):
        std = [deviation / 255 for deviation in std]  # these networks always divide their input by 255
    _, x = pixels(image_shape, mean, std)
    network = flat_classifier(function(input_tensor=x, input_shape=tuple(image_shape), classifier_activation=None, **options))
    # The last layer, a Dense layer or a 1x1 convolution, is built again in float32.
    last = next(node for node in reversed(Graph(network).nodes) if getattr(node.operation, "weights", ()))
    features = last.input_tensors[0]
    if len(features.shape) == 4:
        features = layers.Flatten(name="embedding")(features)
    return keras.Model(network.inputs[0], classify(features, num_classes), name=f"keras_applications_{application}")
