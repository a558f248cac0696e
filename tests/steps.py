"""Shared by the tests of the Distiller and of methods: one batch, one step, and weights compared."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dfa_tf.distillation.distiller import Distiller
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.frozen_teacher import frozen

IMAGES = np.random.default_rng(0).uniform(0, 255, (12, 8, 8, 1)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 10, 12).astype(np.int32)


def step(distiller: Distiller, rate: float = 0.0) -> dict[str, float]:
    """The logs of one eager step."""
    if not hasattr(distiller, "optimizer"):
        distiller.compile(optimizer=keras.optimizers.SGD(rate), run_eagerly=True)
    distiller.reset_metrics()
    logs = distiller.train_on_batch(IMAGES, LABELS, return_dict=True)
    return {name: float(value) for name, value in logs.items()}


def weights_of(model: keras.Model) -> list[np.ndarray]:
    return [weight.copy() for weight in model.get_weights()]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


class Gradients(NamedTuple):
    """Of the sum of a method's terms. Attributes: of the student's variables by path, of the method's own, of the teacher's."""

    student: dict[str, tf.Tensor | None]
    method: list[tf.Tensor | None]
    teacher: list[tf.Tensor | None]

    def reached(self) -> set[str]:
        """The paths of the student's variables that the terms move."""
        return {path for path, gradient in self.student.items() if gradient is not None and np.any(gradient)}


def gradients(method: Method, student: FeatureModel, teacher: FeatureModel, images: np.ndarray, batch: Batch) -> Gradients:
    with tf.GradientTape() as tape:
        terms = method(student.extractor(method.taps)(images, training=True), frozen(teacher, method.taps)(images), batch)
    groups = [student.model.trainable_variables, method.trainable_variables, teacher.model.trainable_variables]
    ours, own, theirs = tape.gradient(list(terms.values()), [[variable.value for variable in group] for group in groups])
    return Gradients({variable.path: gradient for variable, gradient in zip(groups[0], ours, strict=True)}, own, theirs)
