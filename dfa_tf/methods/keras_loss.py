"""Keras' own distillation losses as methods of the Distiller."""

import keras
import tensorflow as tf

from dfa_tf.errors import UserError
from dfa_tf.methods.base import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features


class KerasLoss(Method):
    """A `keras.distillation.DistillationLoss` on logits, or on the layers that it names; a scalar for the batch.

    Args:
        name: of the method and of its term.
        loss: for instance `keras.distillation.FeatureDistillation`.
        student: the loss may name its layers.
        teacher: the same for the teacher.

    Raises:
        UserError: if the loss does not fit the networks.
    """

    def __init__(self, name: str, loss: keras.distillation.DistillationLoss, student: FeatureModel, teacher: FeatureModel) -> None:
        super().__init__(name)
        try:
            loss.validate_model_compatibility(teacher.model, student.model)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
        self.loss = loss
        self._student_layer = getattr(loss, "student_layer_name", None)
        self._teacher_layer = getattr(loss, "teacher_layer_name", None)
        self.reads = ("logits",) if self._teacher_layer is None else ()
        self.student_layers = () if self._student_layer is None else (self._student_layer,)
        self.teacher_layers = () if self._teacher_layer is None else (self._teacher_layer,)

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        ours = student.logits if self._student_layer is None else student.layers[self._student_layer]
        theirs = teacher.logits if self._teacher_layer is None else teacher.layers[self._teacher_layer]
        return {self.name: tf.cast(self.loss.compute_loss(theirs, ours), tf.float32)}
