"""Logit standardisation: a method on logits sees their z-scores, so that the student need not match the teacher's scale.

References:
    Sun, Ren, Li, Wang, Cao (2024), Logit Standardization in Knowledge Distillation, arXiv 2403.01427, section 4.2.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.errors import UserError, nearest
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features

# They read nothing but logits and labels, and have no phases.
_BASES = ("kd", "dkd", "dist")
_FACTOR = 9.0


class LogitStandardisation(Method):
    """The terms of another method on the logits' z-scores, example by example."""

    def __init__(self, base: Method) -> None:
        super().__init__("logit_standardisation")
        self.base = base
        self.reads = base.reads
        self.recommended_weight = _FACTOR * base.recommended_weight

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        ours, theirs = (features._replace(logits=_z_scores(features.logits)) for features in (student, teacher))
        return {f"logit_standardisation/{name}": term for name, term in self.base(ours, theirs, batch).items()}


def _z_scores(logits: tf.Tensor) -> tf.Tensor:
    """Logits scaled to mean 0 and standard deviation 1 over the classes; 0 where all logits are equal."""
    mean, variance = tf.nn.moments(logits, axes=[-1], keepdims=True)
    # Added inside the root: its gradient is infinite where all logits are equal.
    return (logits - mean) * tf.math.rsqrt(variance + 1e-12)


def build(
    student: FeatureModel,
    teacher: FeatureModel,
    *,
    base: str = "kd",
    temperature: float = 2.0,
    base_options: Mapping[str, Any] | None = None,
) -> LogitStandardisation:
    """Applies a method on logits to standardised logits.

    The terms have the base's names after `logit_standardisation/`. The recommended weight is 9 times that of the base: 9 is the paper's
    for `kd` (beside a cross-entropy of weight 0.1, `distil.ce_weight`) and its factor on both parts of `dkd`; `dist` is not among the
    paper's bases. The standard deviation divides by the number of classes K; the authors' code divides by K - 1.

    Args:
        student: logits `[B, num_classes]`.
        teacher: the same for the teacher.
        base: `"kd"`, `"dkd"` or `"dist"`.
        temperature: T of the base, above 0: the softmax is taken of z-scores / T; 2 as in the paper.
        base_options: the base's other options by name.

    Raises:
        UserError: if the base is not one of these, or an option does not fit it.
    """
    if base not in _BASES:
        raise UserError(f"the base of logit_standardisation is one of {_BASES}. Received: {base!r}. {nearest(base, _BASES)}")
    return LogitStandardisation(plugins.build("losses", base, student, teacher, temperature=temperature, **(base_options or {})))
