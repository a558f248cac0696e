"""The loss of stage 2: cross-entropy and the terms of the methods, with their weights in the current phase."""

from collections.abc import Mapping

import keras
import tensorflow as tf

from dfa_tf.methods import Batch, Method, Phase
from dfa_tf.methods.classification import cross_entropy, replica_share, weighted_mean
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.frozen_teacher import FrozenTeacher, frozen

USUAL = Phase(fraction=1.0, ce_weight=1.0, method_weight=1.0, other_weight=1.0)


class Objective:
    """The terms of a batch, and the loss made of them.

    Args:
        student: the network that is trained.
        teacher: the network that teaches it; required with methods.
        methods: by name.
        weights: of each method.
        ce_weight: of the cross-entropy.
        label_smoothing: share of the label's probability that the cross-entropy spreads over all classes.
        warmup_steps: by method, the steps over which its weight rises from 0.
        teacher_batchnorm: statistics that the teacher's BatchNorm uses: `"inference"` or `"training"`.

    Attributes:
        teaching: the frozen teacher as the methods read it; None without methods.
        phase: the current phase.
        phase_start: steps before it.
    """

    def __init__(
        self,
        student: FeatureModel,
        teacher: FeatureModel | None,
        methods: Mapping[str, Method],
        weights: Mapping[str, float],
        *,
        ce_weight: float,
        label_smoothing: float,
        warmup_steps: Mapping[str, int],
        teacher_batchnorm: str,
    ) -> None:
        self._methods, self._weights, self._warmup_steps = methods, weights, warmup_steps
        self._ce_weight, self._label_smoothing = ce_weight, label_smoothing
        self.phase, self._phase_method, self.phase_start = USUAL, "", 0
        taps = {tap for method in methods.values() for tap in method.taps}
        ours, theirs = (
            {name for method in methods.values() for name in getattr(method, f"{who}_layers")} for who in ("student", "teacher")
        )
        self._images = student.model.input
        self._extract = student.extractor(taps, ours)
        self.teaching: FrozenTeacher | None = None
        if teacher is not None and methods:
            self.teaching = frozen(teacher, taps, teacher_batchnorm, theirs)

    def term_names(self) -> list[str]:
        """The names of the methods' terms, from a symbolic call, which makes no forward pass."""
        if self.teaching is None:
            return []
        batch = Batch(self._images, keras.KerasTensor([None], "int32"), keras.KerasTensor([None], "int64"))
        ours, theirs = self._extract.symbolic(), self.teaching.extractor.symbolic()
        return [term for name in self._methods for term in self._call(name, ours, theirs, batch)]

    def outputs_read(self) -> set[str]:
        """The outputs of the teacher that the methods declare to read, by their names in `Extractor.outputs`."""
        if self.teaching is None:
            return set()
        return self.teaching.extractor.outputs_of(set().union(*(self._names_read(method) for method in self._methods.values())))

    def begin_phase(self, phase: Phase, method: str, start: int) -> None:
        """Begins a phase that a method declares, after `start` steps."""
        self.phase, self._phase_method, self.phase_start = phase, method, start

    def teacher_features(self, batch: Batch) -> Features | None:
        """The teacher's features of a batch; None without methods."""
        return None if self.teaching is None else self.teaching(batch.images, batch.cached_outputs)

    def terms(self, batch: Batch, teacher: Features | None, step: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Every term, and the loss made of them.

        Args:
            batch: of this replica.
            teacher: from `teacher_features`.
            step: float32, the updates before this one.

        Returns:
            Scalars by name, `total_loss` the last, and the student's logits.
        """
        student, share = self._extract(batch.images, training=True), replica_share(batch.labels)
        ce = weighted_mean(cross_entropy(batch.labels, student.logits, self._label_smoothing), batch.weights, share)
        losses, means = [(self._ce_weight * self.phase.ce_weight, ce)], {"cross_entropy": ce}
        for name in self._methods:
            terms = {key: weighted_mean(term, batch.weights, share) for key, term in self._call(name, student, teacher, batch).items()}
            losses.append((self._weight(name, step), tf.add_n(list(terms.values()))))
            means.update(terms)
        # A term of weight 0 is left out: with its zero gradients, weight decay would move variables that only this term reaches.
        loss = tf.add_n([weight * value for weight, value in losses if not (isinstance(weight, float) and weight == 0)])
        return {**means, "total_loss": loss}, student.logits

    def _call(self, name: str, student: Features, teacher: Features | None, batch: Batch) -> dict[str, tf.Tensor]:
        """The terms of a method; it gets only the teacher's features that it declares."""
        method = self._methods[name]
        if self.teaching is not None and teacher is not None:
            teacher = self.teaching.extractor.declared(teacher, self._names_read(method), f"the method {name!r}")
        return method(student, teacher, batch)

    def _names_read(self, method: Method) -> set[str]:
        if self.teaching is None:
            return set()
        return self.teaching.extractor.names_read(method.reads, method.taps, method.teacher_layers)

    def _weight(self, name: str, step: tf.Tensor) -> tf.Tensor | float:
        weight = self._weights[name] * (self.phase.method_weight if name == self._phase_method else self.phase.other_weight)
        if name not in self._warmup_steps or weight == 0:
            return weight
        return weight * tf.minimum(1.0, (step + self.phase_start) / self._warmup_steps[name])
