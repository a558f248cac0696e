"""The Distiller of stage 2: a keras.Model with its own train_step."""

import functools
import os
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf

from dfa_tf.distillation.mixing import mixed
from dfa_tf.distillation.objective import Objective
from dfa_tf.distillation.step_metrics import StepMetrics, updated
from dfa_tf.errors import UserError, nearest
from dfa_tf.methods import Batch, Method, Phase
from dfa_tf.methods.classification import correct
from dfa_tf.methods.keras_loss import KerasLoss
from dfa_tf.networks.batchnorm import batchnorm_switch, fused_batchnorm
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.pairing import check_pair
from dfa_tf.training.divergence import FiniteWatch
from dfa_tf.training.replicas import ReplicatedModel
from dfa_tf.training.updates import gradient_norm, sees_whole_gradient, update


class Distiller(ReplicatedModel):
    """Trains a student on cross-entropy and the terms of any distillation methods (Eq. 4 of the paper).

    One forward pass of the teacher and one of the student serve all methods. The teacher is frozen: neither
    its weights nor its statistics change. Without teacher and methods this is plain training.

    The loss is `ce_weight CE + sum over methods of weight * sum of its terms`, plus 0.5 wd sum ||w||^2 over
    student and connectors. The update adds the gradient of this L2 term; `total_loss` does not include its value. The logs hold every
    term without the weight of its method, so that its scale is visible; the learning rate; and the norm of the gradient. Under a loss
    scale or on several replicas no step sees the norm, and the logs do not hold it.

    Sample weights count as in Keras by default: the cross-entropy and every per-example term are means of w l over the batch
    (`classification.weighted_mean`). They do not count in terms that are statistics of the batch, in the accuracy and in the numbers of
    `evaluate`.

    In the scope of a strategy of several replicas, every BatchNorm takes its statistics over all of them. Every example of a batch
    counts equally there too, even if the replicas do not divide the batch, or one has no example.

    `distil` does more: it prepares the methods, runs their phases, and evaluates each epoch.

    Args:
        student: the network that is trained.
        teacher: the frozen network; required with methods.
        methods: distillation methods by name; a `keras.distillation.DistillationLoss` is one too.
        weights: weight of each method; its recommended weight if None or missing.
        ce_weight: weight of the cross-entropy with the labels.
        weight_decay: wd.
        clip_norm: largest norm of the gradient of the loss; None sets no limit.
        label_smoothing: share of the label's probability that the cross-entropy spreads over all classes.
        mixup: alpha of the Beta distribution for the mixing of pairs of images, for both networks; 0 mixes none.
        seed: of the mixing.
        warmup_steps: by method, the steps over which its weight rises from 0.
        teacher_batchnorm: statistics that the teacher's BatchNorm uses: `"inference"` or `"training"`.

    Attributes:
        student: the student's `keras.Model`.
        teaching: the frozen teacher as the methods read it; None without methods.
        watch: checks the terms of every step.
        synchronise_batchnorm: switches BatchNorm to the statistics over all replicas (the default with several replicas), or back (as
            it is saved).

    Raises:
        UserError: if the networks differ in classes or images, or a teacher is missing.
    """

    def __init__(
        self,
        student: FeatureModel,
        teacher: FeatureModel | None = None,
        methods: Mapping[str, Method | keras.distillation.DistillationLoss] | None = None,
        *,
        weights: Mapping[str, float | None] | None = None,
        ce_weight: float = 1.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        seed: int = 0,
        warmup_steps: Mapping[str, int] | None = None,
        teacher_batchnorm: str = "inference",
    ) -> None:
        super().__init__(name=f"{student.model.name}_distiller")
        given, warmup_steps = methods or {}, warmup_steps or {}
        _check_methods(student, teacher, given, [*(weights or {}), *warmup_steps])
        self.student = student.model
        self.methods = {name: as_method(name, method, student, teacher) for name, method in given.items()}
        self._objective = Objective(
            student,
            teacher,
            self.methods,
            {name: _weight(method, (weights or {}).get(name)) for name, method in self.methods.items()},
            ce_weight=ce_weight,
            label_smoothing=label_smoothing,
            warmup_steps=warmup_steps,
            teacher_batchnorm=teacher_batchnorm,
        )
        self.teaching = self._objective.teaching
        self._mixed = functools.partial(mixed, alpha=mixup, seed=seed, num_classes=student.num_classes)
        self._update = functools.partial(update, weight_decay=weight_decay, clip_norm=clip_norm)
        self._teacher_variables = set() if teacher is None else {id(variable) for variable in teacher.model.variables}
        networks = [self.student, *self.methods.values(), *([] if self.teaching is None else [self.teaching.extractor.model])]
        self._fused_batchnorm = functools.partial(fused_batchnorm, *networks)  # a partial, because Keras would track the models
        self._numbers, self._testing = StepMetrics(self._objective.term_names()), False
        self.watch = FiniteWatch("Lower the learning rate, or the weight of the method")
        self._serve = functools.partial(self.deployed(), training=False)  # a partial, because Keras would track the model
        self.synchronise_batchnorm = batchnorm_switch(self.student, *self.methods.values())
        self.synchronise_batchnorm(tf.distribute.get_strategy().num_replicas_in_sync > 1)
        self.built = True

    def compile(self, *args: Any, jit_compile: bool = False, **options: Any) -> None:
        """As `keras.Model.compile`, but without XLA by default. On a GPU Keras would use XLA, which takes minutes for such a step."""
        super().compile(*args, jit_compile=jit_compile, **options)

    @property
    def outputs_read(self) -> set[str]:
        """The outputs of the teacher that the methods declare to read, by their names in `Extractor.outputs`."""
        return self._objective.outputs_read()

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        if self._testing:
            return self._numbers.evaluation
        is_whole = sees_whole_gradient(getattr(self, "optimizer", None), self.distribute_strategy.num_replicas_in_sync)
        return self._numbers.training(with_gradient=is_whole)

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The variables of the student and the methods that the current phase trains."""
        student = self.student.trainable_variables
        # A method may keep a part of either network as an attribute, whose variables Keras then counts as its own.
        known = self._teacher_variables | {id(variable) for variable in student}
        own = {id(variable): variable for method in self.methods.values() for variable in method.trainable_variables}
        of_methods = [variable for key, variable in own.items() if key not in known]
        return {"all": [*student, *of_methods], "student": student, "methods": of_methods}[self._objective.phase.trains]

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        """As `trainable_variables`; Keras uses this name when it replaces the weights by their average."""
        return self.trainable_variables

    @property
    def state_variables(self) -> list[keras.Variable]:
        """All variables of student and methods: a checkpoint holds these and the optimizer's."""
        own = {id(variable): variable for layer in (self.student, *self.methods.values()) for variable in layer.variables}
        return [variable for key, variable in own.items() if key not in self._teacher_variables]

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Builds the optimizer for several replicas; the rest is built. Keras would add up their parts of a batch, which may be unequal."""
        if self.distribute_strategy.num_replicas_in_sync > 1 and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)

    def begin_phase(self, phase: Phase, method: str, start: int) -> None:
        """Begins a phase that a method declares, after `start` steps; `fit` then traces its step again."""
        self._objective.begin_phase(phase, method, start)
        self.train_function = None

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The student's logits, `[B, num_classes]`."""
        return self.student(images, training=training)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One update of student and methods.

        Args:
            data: `{"images", "labels", "index"}`, with `"weights"` if there are sample weights and `"cached_outputs"` if outputs of the
                teacher are cached; or images `[B, H, W, C]`, labels and optional sample weights.
        """
        done = tf.cast(self.optimizer.iterations, tf.int64) + self._objective.phase_start
        batch = self._mixed(as_batch(data), done)
        if batch.index is None and any("index" in method.needs for method in self.methods.values()):
            raise UserError("a method needs the index of each example: train on dfa_tf.splits.Split.batches")
        variables = self.trainable_variables
        with self._fused_batchnorm():
            teacher = self._objective.teacher_features(batch)
            with tf.GradientTape() as tape:
                terms, logits = self._objective.terms(batch, teacher, tf.cast(self.optimizer.iterations, tf.float32))
                # Replicas add up their gradients.
                scaled = self.optimizer.scale_loss(terms["total_loss"] / tf.distribute.get_strategy().num_replicas_in_sync)
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
        noted = terms | gradient_norm(self.optimizer, gradients)
        rate = tf.cast(self.optimizer.learning_rate, tf.float32)
        self.watch.note(noted, done, rate)
        self._update(self.optimizer, gradients, variables)
        return updated(self.metrics, {**noted, "accuracy": correct(batch.labels, logits), "learning_rate": rate})

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Cross-entropy and accuracy of the deployed model in inference mode."""
        batch = as_batch(data)
        return self._numbers.evaluated(batch.labels, self._serve(batch.images))

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`, on `(images, labels)`; every image counts equally."""
        self._testing = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._testing = False

    def save(self, filepath: str | os.PathLike[str], **options: Any) -> None:
        """Saves the served student, as `keras.Model.save` does, so that `keras.callbacks.ModelCheckpoint` writes students."""
        self.synchronise_batchnorm(False)
        self.deployed().save(filepath, **options)
        self.synchronise_batchnorm(self.distribute_strategy.num_replicas_in_sync > 1)

    def get_config(self) -> dict[str, Any]:
        """A Distiller cannot be rebuilt from a configuration.

        Raises:
            UserError: always; the message says what can be saved.
        """
        raise UserError("a Distiller holds a frozen teacher and has no configuration of its own: its save saves the student")

    def deployed(self) -> keras.Model:
        """The served model; it shares the student's weights."""
        model = self.student
        for method in self.methods.values():
            model = method.deploy(model)
        return model


def as_method(
    name: str, method: Method | keras.distillation.DistillationLoss, student: FeatureModel, teacher: FeatureModel | None
) -> Method:
    """A method as it is, or one of Keras' distillation losses as a method."""
    return method if isinstance(method, Method) or teacher is None else KerasLoss(name, method, student, teacher)


def as_batch(data: Any) -> Batch:
    """The batch that `fit` passes to a step, in any form."""
    if isinstance(data, Mapping):
        return Batch.of(data)
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    labels = tf.convert_to_tensor(labels)
    if labels.shape.rank == 2 and labels.shape[1] == 1:  # as keras.datasets gives classes
        labels = tf.squeeze(labels, 1)
    if weights is not None:
        weights = tf.reshape(tf.cast(weights, tf.float32), [-1])
    return Batch(tf.convert_to_tensor(images), labels, None, weights)


def _weight(method: Method, weight: float | None) -> float:
    return method.recommended_weight if weight is None else weight


def _check_methods(student: FeatureModel, teacher: FeatureModel | None, methods: Mapping[str, Any], named: Iterable[str]) -> None:
    if teacher is not None:
        check_pair(student, teacher)
    elif methods:
        raise UserError(f"the methods {sorted(methods)} need a teacher")
    for name in named:
        if name not in methods:
            raise UserError(f"weights and warmup_steps must name methods. Received: {name!r}. {nearest(name, methods)}")
