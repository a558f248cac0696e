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
    """A network of keras.applications with weights drawn anew.

    It is the whole network, of default options, but for its own preprocessing, which only suits the weights
    trained with it: pixels are normalised by mean and deviation, as in the other networks here. Its last layer
    computes in float32. Of NASNet only the last cell is found as a block: each cell takes the outputs of the two
    before it, so that no other tensor is on all paths. BatchNorm has a momentum of 0.999 in MobileNetV2 and V3, and of 0.9997
    in NASNet: trained for less than some thousands of steps, they are evaluated with statistics that are not yet the data's.

    Args:
        image_shape: height, width, channels. The sides are at least 32 (Xception: 71, InceptionV3 and
            InceptionResNetV2: 75).
        num_classes: number of logits.
        application: the network's name in keras.applications.
        mean: of the pixels, by channel or one for all, in raw pixels.
        std: their standard deviation, likewise.

    Returns:
        A flat model of float32 raw pixels `[B, height, width, channels]`, 0..255, to float32 logits
        `[B, num_classes]`. Its normalisation is part of it.

    Raises:
        UserError: if the image is too small.
    """
    smallest = _SMALLEST_SIDE.get(application, 32)
    if min(image_shape[:2]) < smallest:
        raise UserError(f"{application} takes images of {smallest}x{smallest} pixels or more. Received: image_shape={tuple(image_shape)}")
    function = getattr(keras.applications, application)
    options: dict[str, Any] = {"weights": None, "classes": num_classes}
    if "include_preprocessing" in inspect.signature(function).parameters:
        options["include_preprocessing"] = False
    if application.startswith("EfficientNetB"):
        std = [deviation / 255 for deviation in std]  # these divide their input by 255, and cannot be told not to
    _, x = pixels(image_shape, mean, std)
    network = flat_classifier(function(input_tensor=x, input_shape=tuple(image_shape), classifier_activation=None, **options))
    # The last layer is built again, for float32: some have a Dense layer there, some a convolution of one pixel.
    last = next(node for node in reversed(Graph(network).nodes) if getattr(node.operation, "weights", ()))
    features = last.input_tensors[0]
    if len(features.shape) == 4:
        features = layers.Flatten(name="embedding")(features)
    return keras.Model(network.inputs[0], classify(features, num_classes), name=f"keras_applications_{application}")
