"""Decoupled knowledge distillation: the target class and the other classes have separate weights.

References:
    Zhao, Cui, Song, Qiu, Liang (2022), Decoupled Knowledge Distillation, arXiv 2203.08679, Eq. 5 to 7.
"""

import tensorflow as tf

from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features


class DecoupledDistillation(Method):
    """alpha T^2 TCKD and beta T^2 NCKD, per example, of logits at temperature T.

    TCKD is the KL divergence between the teacher's and the student's probabilities of the target class and of all
    others together. NCKD is the KL divergence between their distributions over the other classes alone. Soft targets are TCKD + (1 - p)
    NCKD with the teacher's probability p of the target class (Eq. 5).
    """

    reads = ("logits",)

    def __init__(self, alpha: float, beta: float, temperature: float) -> None:
        super().__init__("dkd")
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        target = tf.one_hot(batch.classes, student.logits.shape[-1], on_value=True, off_value=False, dtype=tf.bool)
        ours = _log_probabilities(student.logits / self.temperature, target)
        theirs = _log_probabilities(teacher.logits / self.temperature, target)
        square = self.temperature**2
        return {
            "dkd/target": self.alpha * square * _divergence(theirs[0], ours[0]),
            "dkd/non_target": self.beta * square * _divergence(theirs[1], ours[1]),
        }


def _log_probabilities(logits: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`[B, 2]` of the target class and all others together, and `[B, num_classes]` over the others alone."""
    # Not minus infinity, whose product with a probability of 0 is NaN.
    others = tf.where(target, -1e9, logits)
    # Both by logsumexp: the logarithm of a sum of probabilities is minus infinity where they underflow.
    rest, whole = tf.reduce_logsumexp(others, axis=-1), tf.reduce_logsumexp(logits, axis=-1)
    own = tf.reduce_sum(tf.where(target, logits, 0.0), axis=-1)
    return tf.stack([own - whole, rest - whole], axis=-1), others - rest[:, tf.newaxis]


def _divergence(log_teacher: tf.Tensor, log_student: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.exp(log_teacher) * (log_teacher - log_student), axis=-1)


def build(
    student: FeatureModel, teacher: FeatureModel, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0
) -> DecoupledDistillation:
    """Soft targets in two parts.

    The recommended weight is 1, because the terms `dkd/target` and `dkd/non_target` include alpha, beta and T^2. The paper increases
    the weight of both over the first 20 epochs; the Distiller does so with `distil.warmup_epochs={"dkd": 20}`. The target class of a
    soft label is its most probable class.

    Args:
        student: logits `[B, num_classes]`.
        teacher: the same for the teacher.
        alpha: weight of TCKD, 0 or more; 1 as in the paper.
        beta: weight of NCKD, 0 or more; 8 as for the paper's resnet32x4 and resnet8x4 on CIFAR-100. The paper chooses it
            for each pair of networks, higher for a more confident teacher.
        temperature: T, above 0; 4 as in the paper on CIFAR-100.

    Raises:
        UserError: if T is not above 0, or a weight is below 0.
    """
    if not temperature > 0:
        raise UserError(f"the temperature of dkd must be above 0. Received: {temperature}")
    for name, weight in (("alpha", alpha), ("beta", beta)):
        if not weight >= 0:
            raise UserError(f"{name} of dkd must be 0 or more. Received: {weight}")
    return DecoupledDistillation(float(alpha), float(beta), float(temperature))
