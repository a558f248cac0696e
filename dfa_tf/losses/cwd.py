"""Channel-wise distillation: where in the image each channel is active, as a distribution over the positions.

References:
    Shu, Liu, Gao, Yan, Shen (2021), Channel-wise Knowledge Distillation for Dense Prediction, arXiv 2011.13256,
    Eq. 4 and 5.
"""

from typing import ClassVar

import tensorflow as tf

from dfa_tf.config import Tap
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.connectors import connector
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.pairing import pair_groups


class ChannelWiseDistillation(Method):
    """T^2 / C times the sum over channels of KL(softmax(t/T) || softmax(s/T)) over the positions, per example."""

    taps: ClassVar[tuple[Tap, ...]] = ("output",)
    recommended_weight = 35.0

    def __init__(self, student: FeatureModel, teacher: FeatureModel, temperature: float) -> None:
        super().__init__("cwd")
        self.temperature = temperature
        self.reads = (f"group{len(teacher.groups)}/last_block",)
        ours, theirs = pair_groups(student, teacher)[-1]
        if theirs.shape[:2] == (1, 1):
            raise UserError(f"cwd compares distributions over positions. Received: {teacher.model.name!r}, whose last group has one pixel")
        self.connector = connector(ours.shape, theirs.shape, name="connector")

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        ours = self._log_distributions(self.connector(student.at("output")[-1][-1], training=True))
        theirs = self._log_distributions(teacher.at("output")[-1][-1])
        divergence = tf.reduce_sum(tf.exp(theirs) * (theirs - ours), axis=1)
        return {"cwd": self.temperature**2 * tf.reduce_mean(divergence, axis=-1)}

    def _log_distributions(self, feature: tf.Tensor) -> tf.Tensor:
        """`[B, H, W, C]` to float32 `[B, H W, C]`, a distribution over axis 1 for each channel."""
        _, height, width, channels = feature.shape
        flat = tf.reshape(tf.cast(feature, tf.float32), [-1, height * width, channels])
        return tf.nn.log_softmax(flat / self.temperature, axis=1)


def build(student: FeatureModel, teacher: FeatureModel, *, temperature: float = 4.0) -> ChannelWiseDistillation:
    """Activity maps of the last feature, channel by channel.

    The paper matches one map of a segmentation network: the last feature before the classifier, or the map of its logits. An image
    classifier has no map of logits, so this method matches the output of the last block of the last group. A connector (1x1 convolution
    and BatchNorm; the authors' has a ReLU after it) brings the student's feature to the teacher's width and resolution. The recommended
    weight is 35, as in the authors' published runs on the feature (theirs is 3 on the map of logits). It was chosen for segmentation:
    tune it on a validation split.

    Args:
        student: its last block's output, `[B, H, W, C]`, is matched.
        teacher: the same for the teacher; more than one pixel.
        temperature: T, above 0; 4 as in the authors' published commands.

    Raises:
        UserError: if T is not above 0, the groups do not pair, or the teacher's last feature is a single pixel.
    """
    if not temperature > 0:
        raise UserError(f"the temperature of cwd must be above 0. Received: {temperature}")
    return ChannelWiseDistillation(student, teacher, float(temperature))
