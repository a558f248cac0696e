"""The Distiller of stage 2: a keras.Model with its own train_step."""

import functools
import os
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from dfa_tf.errors import UserError, nearest
from dfa_tf.images.augmentation import mix
from dfa_tf.methods import Batch, Method, Phase
from dfa_tf.methods.classification import correct, cross_entropy, replica_share, weighted_mean
from dfa_tf.methods.keras_loss import KerasLoss
from dfa_tf.networks.batchnorm import batchnorm_switch, fused_batchnorm
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.frozen_teacher import frozen
from dfa_tf.networks.pairing import check_pair
from dfa_tf.training.divergence import FiniteWatch
from dfa_tf.training.replicas import ReplicatedModel
from dfa_tf.training.teacher_cache import outputs_read
from dfa_tf.training.updates import gradient_norm, sees_whole_gradient, update

USUAL = Phase(fraction=1.0, ce_weight=1.0, method_weight=1.0, other_weight=1.0)


class Distiller(ReplicatedModel):
    """Trains a student on cross-entropy and the terms of any distillation methods (Eq. 4 of the paper).

    One forward pass of the teacher and one of the student serve all methods. The teacher is frozen: neither
    its weights nor its statistics change. Without teacher and methods this is plain training.

    The loss is `ce_weight CE + sum over methods of weight * sum of its terms`, plus 0.5 wd sum ||w||^2 over
    student and connectors, whose gradient is added in the update and whose value is not in `total_loss`. The
    logs hold every term without the weight of its method, so that its scale can be seen; the learning rate; and the norm of the
    gradient, but under a loss scale or on several replicas, where no step sees it.

    Sample weights count as Keras has it by default: the cross-entropy, and every term that is per example, is the mean
    of w l over the batch (`distances.weighted_mean`). A term that is a statistic of the batch has no weights, nor has
    accuracy, nor any number of `evaluate`.

    Made in the scope of a strategy of several replicas, it lets every BatchNorm take its statistics over all of them. Every
    example of a batch counts alike there too, where the replicas do not divide the batch, or one has no example.

    `distil` does more: it prepares the methods, goes through their phases, and evaluates each epoch.

    Args:
        student: the network that is trained.
        teacher: the frozen network; needed where there are methods.
        methods: distillation methods by name; a `keras.distillation.DistillationLoss` is one too.
        weights: weight of each method; its recommended weight where None or missing.
        ce_weight: weight of the cross-entropy with the labels.
        weight_decay: wd.
        clip_norm: largest norm of the gradient of the loss; no limit where None.
        label_smoothing: share of the label's probability that the cross-entropy spreads over all classes.
        mixup: alpha of the Beta distribution that pairs of images are mixed by, for both networks; 0 mixes none.
        seed: of the mixing.
        warmup_steps: by method, the steps over which its weight rises from 0.
        teacher_batchnorm: statistics that the teacher's BatchNorm uses: `"inference"` or `"training"`.

    Attributes:
        student: the student's `keras.Model`.
        teaching: the frozen teacher as the methods read it; None where there are none.
        watch: of the terms, in every step.
        synchronise_batchnorm: lets BatchNorm take its statistics over all replicas, as it does where there are several, or no
            longer, as it is to be saved.

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
        weights, given = dict(weights or {}), methods or {}
        _check_methods(student, teacher, given)
        methods = {name: as_method(name, method, student, teacher) for name, method in given.items()}
        for name in (*weights, *(warmup_steps or {})):
            if name not in methods:
                raise UserError(f"weights and warmup_steps are of methods. Received: {name!r}. {nearest(name, methods)}")
        self.student = student.model
        self.methods = methods
        self._method_weights = {name: _weight(method, weights.get(name)) for name, method in methods.items()}
        self._ce_weight = ce_weight
        self._weight_decay, self._clip_norm = weight_decay, clip_norm
        self._label_smoothing, self._mixup, self._seed = label_smoothing, mixup, seed
        self._num_classes = student.num_classes
        self._warmup_steps = dict(warmup_steps or {})
        self._phase, self._phase_method, self._phase_start = USUAL, "", 0
        self._teacher_variables = set() if teacher is None else {id(variable) for variable in teacher.model.variables}
        taps = {tap for method in methods.values() for tap in method.taps}
        ours, theirs = (
            {name for method in methods.values() for name in getattr(method, f"{who}_layers")} for who in ("student", "teacher")
        )
        self._extract = student.extractor(taps, ours)
        self.teaching = frozen(teacher, taps, teacher_batchnorm, theirs) if teacher is not None and methods else None
        networks = [student.model, *methods.values(), *([] if self.teaching is None else [self.teaching.extractor.model])]
        self._fused_batchnorm = functools.partial(fused_batchnorm, *networks)  # a partial, because Keras would track the models
        names = ["total_loss", "cross_entropy", *self._term_names(student)]
        self._means = [keras.metrics.Mean(name=name) for name in names]
        self._accuracy = keras.metrics.Mean(name="accuracy")
        self._rate, self._norm = (keras.metrics.Mean(name=name) for name in ("learning_rate", "gradient_norm"))
        self._test_metrics = [keras.metrics.Mean(name="cross_entropy"), keras.metrics.Mean(name="accuracy")]
        self._testing = False
        self.watch = FiniteWatch("Lower the learning rate, or the weight of the method")
        self._serve = functools.partial(self.deployed(), training=False)  # a partial, because Keras would track the model
        self.synchronise_batchnorm = batchnorm_switch(self.student, *methods.values())
        self.synchronise_batchnorm(tf.distribute.get_strategy().num_replicas_in_sync > 1)
        self.built = True

    def _term_names(self, student: FeatureModel) -> list[str]:
        """The names of all terms, from a symbolic call, which makes no forward pass."""
        if self.teaching is None:
            return []
        batch = Batch(student.model.input, keras.KerasTensor([None], "int32"), keras.KerasTensor([None], "int64"))
        ours, theirs = self._extract.symbolic(), self.teaching.symbolic()
        return [name for method in self.methods.values() for name in method(ours, theirs, batch)]

    def outputs_read(self, batch: Mapping[str, tf.TensorSpec]) -> set[int]:
        """Which outputs of the teacher the methods read, as `teacher_cache.outputs_read`, for batches as `Split.batches` gives them."""
        if self.teaching is None:
            return set()

        def terms(theirs: Features, ours: Features, data: Mapping[str, tf.Tensor]) -> list[dict[str, tf.Tensor]]:
            return [method(ours, theirs, as_batch(data)) for method in self.methods.values()]

        return outputs_read(self.teaching, terms, self._extract.symbolic(), batch)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        if self._testing:
            return self._test_metrics
        is_whole = sees_whole_gradient(getattr(self, "optimizer", None), self.distribute_strategy.num_replicas_in_sync)
        return [*self._means, self._accuracy, self._rate, *([self._norm] if is_whole else [])]

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """What the present phase trains, of the student and of the methods."""
        student = self.student.trainable_variables
        # A method may keep a part of either network as an attribute, whose variables Keras then counts as its own.
        known = self._teacher_variables | {id(variable) for variable in student}
        own = {id(variable): variable for method in self.methods.values() for variable in method.trainable_variables}
        of_methods = [variable for key, variable in own.items() if key not in known]
        return {"all": [*student, *of_methods], "student": student, "methods": of_methods}[self._phase.trains]

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        """As `trainable_variables`; Keras asks for them by this name where it puts an average of the weights in their place."""
        return self.trainable_variables

    @property
    def state_variables(self) -> list[keras.Variable]:
        """All variables of student and methods: what a checkpoint holds beside the optimizer's."""
        own = {id(variable): variable for layer in (self.student, *self.methods.values()) for variable in layer.variables}
        return [variable for key, variable in own.items() if key not in self._teacher_variables]

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Builds the optimizer for several replicas; all else is built. Keras would add up their parts of a batch, which may be unequal."""
        if self.distribute_strategy.num_replicas_in_sync > 1 and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)

    def begin_phase(self, phase: Phase, method: str, start: int) -> None:
        """Enters a phase that a method declares, after so many steps; `fit` then traces its step anew."""
        self._phase, self._phase_method, self._phase_start = phase, method, start
        self.train_function = None

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The student's logits, `[B, num_classes]`."""
        return self.student(images, training=training)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One update of student and methods.

        Args:
            data: `{"images", "labels", "index"}`, with `"weights"` where there are sample weights and `"cached_outputs"` where outputs
                of the teacher were kept, or images `[B, H, W, C]`, labels and, where there are any, sample weights.
        """
        batch = self._varied(as_batch(data))
        if batch.index is None and any("index" in method.needs for method in self.methods.values()):
            raise UserError("a method needs the index of each example: train on dfa_tf.splits.Split.batches")
        variables = self.trainable_variables
        with self._fused_batchnorm():
            teacher = None if self.teaching is None else self.teaching(batch.images, batch.cached_outputs)
            with tf.GradientTape() as tape:
                terms, logits = self._terms(batch, teacher)
                # Replicas add their gradients up.
                scaled = self.optimizer.scale_loss(terms["total_loss"] / tf.distribute.get_strategy().num_replicas_in_sync)
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
        noted, done = terms | gradient_norm(self.optimizer, gradients), tf.cast(self.optimizer.iterations, tf.int64)
        rate = tf.cast(self.optimizer.learning_rate, tf.float32)
        self.watch.note(noted, done + self._phase_start, rate)
        update(self.optimizer, gradients, variables, weight_decay=self._weight_decay, clip_norm=self._clip_norm)
        numbers = {**noted, "accuracy": correct(batch.labels, logits), "learning_rate": rate}
        for metric in self.metrics:
            metric.update_state(numbers[metric.name])
        return {metric.name: metric.result() for metric in self.metrics}

    def _terms(self, batch: Batch, teacher: Features | None) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Every term as a scalar by name, the loss that is made of them last, and the student's logits."""
        student, share = self._extract(batch.images, training=True), replica_share(batch.labels)
        ce = weighted_mean(cross_entropy(batch.labels, student.logits, self._label_smoothing), batch.weights, share)
        losses, means = [(self._ce_weight * self._phase.ce_weight, ce)], {"cross_entropy": ce}
        for name, method in self.methods.items():
            terms = {key: weighted_mean(term, batch.weights, share) for key, term in method(student, teacher, batch).items()}
            losses.append((self._weight_now(name), tf.add_n(list(terms.values()))))
            means.update(terms)
        # A term of no weight is left out: its zero gradients would let weight decay move what it alone reaches.
        loss = tf.add_n([weight * value for weight, value in losses if not (isinstance(weight, float) and weight == 0)])
        return {**means, "total_loss": loss}, student.logits

    def _varied(self, batch: Batch) -> Batch:
        if not self._mixup:
            return batch
        context = tf.distribute.get_replica_context()
        number = tf.cast(self.optimizer.iterations, tf.int64) + self._phase_start
        replica = tf.cast(context.replica_id_in_sync_group, tf.int64)
        seed = [self._seed, number * context.num_replicas_in_sync + replica]
        labels, weights = batch.labels, batch.weights
        if weights is not None:
            # Each label takes its weight along into the mixture, which has both weights in their shares.
            soft = labels if labels.shape.rank == 2 else tf.one_hot(labels, self._num_classes)
            labels = weights[:, tf.newaxis] * tf.cast(soft, tf.float32)
        images, labels = mix(batch.images, labels, num_classes=self._num_classes, alpha=self._mixup, seed=seed)
        if weights is not None:
            weights = tf.reduce_sum(labels, axis=1)
            labels = tf.math.divide_no_nan(labels, weights[:, tf.newaxis])
        return batch._replace(images=images, labels=labels, weights=weights)

    def _weight_now(self, name: str) -> tf.Tensor | float:
        phase = self._phase
        weight = self._method_weights[name] * (phase.method_weight if name == self._phase_method else phase.other_weight)
        if name not in self._warmup_steps or weight == 0:
            return weight
        step = tf.cast(self.optimizer.iterations, tf.float32) + self._phase_start
        return weight * tf.minimum(1.0, step / self._warmup_steps[name])

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Cross-entropy and accuracy of the deployed model in inference mode."""
        batch = as_batch(data)
        logits = self._serve(batch.images)
        ce, accuracy = self._test_metrics
        ce.update_state(cross_entropy(batch.labels, logits))
        accuracy.update_state(correct(batch.labels, logits))
        return {metric.name: metric.result() for metric in self._test_metrics}

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`, on `(images, labels)`; every image counts alike."""
        self._testing = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._testing = False

    def save(self, filepath: str | os.PathLike[str], **options: Any) -> None:
        """Saves the student as it is served, as `keras.Model.save` does: `keras.callbacks.ModelCheckpoint` so writes students."""
        self.synchronise_batchnorm(False)
        self.deployed().save(filepath, **options)
        self.synchronise_batchnorm(self.distribute_strategy.num_replicas_in_sync > 1)

    def get_config(self) -> dict[str, Any]:
        """A Distiller cannot be made again from a configuration.

        Raises:
            UserError: always; it says what can be saved.
        """
        raise UserError("a Distiller holds a frozen teacher and has no configuration of its own: its save saves the student")

    def deployed(self) -> keras.Model:
        """The model that is served, sharing the student's weights."""
        model = self.student
        for method in self.methods.values():
            model = method.deploy(model)
        return model


def as_method(
    name: str, method: Method | keras.distillation.DistillationLoss, student: FeatureModel, teacher: FeatureModel | None
) -> Method:
    """A method as it is, or one of Keras' distillation losses made one."""
    return method if isinstance(method, Method) or teacher is None else KerasLoss(name, method, student, teacher)


def as_batch(data: Any) -> Batch:
    """The batch that `fit` hands to a step, whatever its form."""
    if isinstance(data, Mapping):
        return Batch(data["images"], data["labels"], data.get("index"), data.get("weights"), data.get("cached_outputs"))
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    labels = tf.convert_to_tensor(labels)
    if labels.shape.rank == 2 and labels.shape[1] == 1:  # as keras.datasets gives classes
        labels = tf.squeeze(labels, 1)
    if weights is not None:
        weights = tf.reshape(tf.cast(weights, tf.float32), [-1])
    return Batch(tf.convert_to_tensor(images), labels, None, weights)


def _weight(method: Method, weight: float | None) -> float:
    return method.recommended_weight if weight is None else weight


def _check_methods(student: FeatureModel, teacher: FeatureModel | None, methods: Mapping[str, Any]) -> None:
    if teacher is not None:
        check_pair(student, teacher)
    elif methods:
        raise UserError(f"the methods {sorted(methods)} need a teacher")
