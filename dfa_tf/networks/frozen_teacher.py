"""The frozen teacher, read through its layer groups."""

from collections.abc import Collection, Mapping

import keras
import tensorflow as tf

from dfa_tf.config import Tap
from dfa_tf.networks.copying import copy_of
from dfa_tf.networks.features import Extractor, FeatureModel, Features


class FrozenTeacher:
    """A frozen network: its features have no gradient, its weights and statistics never change.

    Made by `frozen`.

    Attributes:
        network: the network itself.
        extractor: reads its features.
    """

    def __init__(self, network: FeatureModel, extractor: Extractor, training: bool) -> None:
        self.network, self.extractor, self._training = network, extractor, training

    def __call__(self, images: tf.Tensor, cached_outputs: Mapping[str, tf.Tensor] | None = None) -> Features:
        """Features of a batch.

        Args:
            images: raw pixels, `[B, H, W, C]`.
            cached_outputs: outputs that are known already, by their names in `Extractor.outputs`. The network is not called then, and
                reading another output raises UserError.
        """
        if cached_outputs is None:
            return self.extractor.features(self.outputs(images))
        return self.extractor.from_some(cached_outputs)

    def outputs(self, images: tf.Tensor) -> list[tf.Tensor]:
        """The outputs of the extractor's model for a batch of raw pixels, `[B, H, W, C]`."""
        return [tf.stop_gradient(output) for output in keras.tree.flatten(self.extractor.model(images, training=self._training))]

    def up_to_group(self, group: int) -> "FrozenTeacher":
        """The same network, read at its own tap and cut behind a group, as `FeatureModel.extractor` does it."""
        return FrozenTeacher(self.network, self.network.extractor(up_to_group=group), self._training)


def frozen(teacher: FeatureModel, taps: Collection[Tap] = (), batchnorm: str = "inference", layers: Collection[str] = ()) -> FrozenTeacher:
    """Freezes a teacher.

    Args:
        teacher: the network.
        taps: taps to read beside its own.
        batchnorm: `"inference"` uses the moving statistics of its BatchNorm; `"training"` those of each batch,
            as OFD does, on a copy whose moving statistics have momentum 1 and so do not change. Under a
            strategy of several devices it is called in its scope.
        layers: names of layers whose outputs to read.
    """
    if batchnorm == "inference":
        return FrozenTeacher(teacher, teacher.extractor(taps, layers), training=False)
    copy = copy_of(teacher.model)
    for layer in copy._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable, layer.momentum = True, 1.0
            layer.synchronized = tf.distribute.get_strategy().num_replicas_in_sync > 1
        elif hasattr(layer, "rate"):
            layer.rate = 0.0  # the option concerns BatchNorm, not dropout
    network = teacher.with_model(copy)
    return FrozenTeacher(network, network.extractor(taps, layers), training=True)
