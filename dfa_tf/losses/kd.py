"""Knowledge distillation by soft targets.

References:
    Hinton, Vinyals, Dean (2015), Distilling the Knowledge in a Neural Network, arXiv 1503.02531, section 2.
"""

import tensorflow as tf

from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features


class KnowledgeDistillation(Method):
    """T^2 KL(softmax(t/T) || softmax(s/T)) of teacher's logits t and student's s, per example."""

    reads = ("logits",)

    def __init__(self, temperature: float) -> None:
        super().__init__("kd")
        self.temperature = temperature

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        log_student = tf.nn.log_softmax(student.logits / self.temperature)
        log_teacher = tf.nn.log_softmax(teacher.logits / self.temperature)
        divergence = tf.reduce_sum(tf.exp(log_teacher) * (log_teacher - log_student), axis=-1)
        return {"kd": self.temperature**2 * divergence}


def build(student: FeatureModel, teacher: FeatureModel, *, temperature: float = 4.0) -> KnowledgeDistillation:
    """Soft targets.

    Args:
        student: logits `[B, num_classes]`.
        teacher: the same for the teacher.
        temperature: T, above 0; 4 as in the standard tables of the field.

    Raises:
        UserError: if T is not above 0.
    """
    if not temperature > 0:
        raise UserError(f"the temperature of kd must be above 0. Received: {temperature}")
    return KnowledgeDistillation(float(temperature))
