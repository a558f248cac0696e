"""The two updates of the search: of the weights on the training half, of beta on the search half."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from dfa_tf.aggregation.bridge import Bridge
from dfa_tf.aggregation.pass_losses import Losses, PassLosses
from dfa_tf.config import Config
from dfa_tf.methods import Batch
from dfa_tf.networks.batchnorm import fused_batchnorm, twice_differentiable
from dfa_tf.networks.features import Features
from dfa_tf.networks.frozen_teacher import FrozenTeacher
from dfa_tf.training.divergence import FiniteWatch
from dfa_tf.training.updates import gradient_norm, loss_scaled, over_replicas, sees_whole_gradient, update


class SearchSteps:
    """The updates over the groups of one pass, with the optimizers of that pass; made in the scope of the strategy.

    Args:
        bridge: the variables and terms of the search.
        teacher: frozen.
        config: its `search` and `train` are read.
        groups: indices of the groups that the pass searches.
        steps: weight updates of the pass, for the schedule of the learning rate.
        start: weight updates before the pass.

    Attributes:
        watch: records terms that are not finite.
        optimizer_variables: the variables of the pass that a checkpoint holds beside the networks.
        weight_step: called with a training batch; updates the student's weights and the connectors.
        beta_step: called with a search batch and a training batch; updates beta. Both return the terms of the step by name.
    """

    def __init__(
        self, bridge: Bridge, teacher: FrozenTeacher, config: Config, groups: Sequence[int], steps: int, *, start: int = 0
    ) -> None:
        self._config, self._teacher, self._start = config.search, teacher, start
        self._networks, self._weights = bridge.networks, bridge.weight_variables
        self._losses = PassLosses(bridge, config.search, groups)
        self._betas = [bridge.aggregations[group].beta for group in groups]
        self.watch = FiniteWatch("Lower search.learning_rate")
        rate = keras.optimizers.schedules.CosineDecay(self._config.learning_rate, steps)
        sgd = keras.optimizers.SGD(rate, momentum=self._config.momentum)
        adam = keras.optimizers.Adam(self._config.beta_learning_rate, *self._config.beta_decays)
        self._weight_optimizer, self._beta_optimizer = (loss_scaled(one, config.train.precision) for one in (sgd, adam))
        # Both are built before either is traced: an optimizer cannot make its variables inside a tf.function.
        self._weight_optimizer.build(self._weights)
        self._beta_optimizer.build(self._betas)
        self.optimizer_variables = [*self._weight_optimizer.variables, *self._beta_optimizer.variables]
        fused = fused_batchnorm(*self._networks, teacher.extractor.model)
        beta_step = self._second_order_step if self._config.order == "second" else self._first_order_step
        self.weight_step, self.beta_step = (_on_all(fused(step), config.train.jit_compile) for step in (self._weight_step, beta_step))

    def _teach(self, batch: Batch) -> Features:
        return self._teacher(batch.images, batch.cached_outputs)

    def _weight_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        losses, gradients = self._weight_gradients(batch, self._teach(batch))
        noted = self._note("train", losses, gradient_norm(self._weight_optimizer, gradients))
        update(self._weight_optimizer, gradients, self._weights, weight_decay=self._config.weight_decay)
        return noted

    def _weight_gradients(self, batch: Batch, teacher: Features) -> tuple[Losses, list[tf.Tensor | None]]:
        with tf.GradientTape() as tape:
            losses = self._losses.of_weights(teacher, batch)
            scaled = self._weight_optimizer.scale_loss(_share_of(losses.loss))
        return losses, tape.gradient(scaled, _values(self._weights))

    def _first_order_step(self, batch: Batch, training: Batch) -> dict[str, tf.Tensor]:
        """One step on beta with the current weights; the training batch is not read."""
        teacher, student = self._teach(batch), self._losses.student_features(batch)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(_values(self._betas))
            losses = self._losses.of_beta(student, teacher, batch)
            scaled = self._beta_optimizer.scale_loss(_share_of(losses.loss))
        noted = self._note("search", losses)
        update(self._beta_optimizer, tape.gradient(scaled, _values(self._betas)), self._betas)
        return noted

    def _second_order_step(self, batch: Batch, training: Batch) -> dict[str, tf.Tensor]:
        """One step on beta by the loss at the weights w' after the optimizer's next step.

        With w' = w + momentum velocity - rate (g(beta) + wd w), where g is the gradient of the training loss, the gradient
        of the search loss L is dL/dbeta - rate (dL/dw')^T dg/dbeta; the product is a vector-Jacobian product of g.
        """
        betas, variables = _values(self._betas), _values(self._weights)
        teacher = self._teach(training)
        with tf.GradientTape(watch_accessed_variables=False) as outer, twice_differentiable(*self._networks):
            outer.watch(betas)
            losses, gradients = self._weight_gradients(training, teacher)
        self._note("train", losses)
        before = [tf.identity(variable) for variable in variables]
        rate = tf.cast(self._weight_optimizer.learning_rate, tf.float32)
        for variable, now, gradient, velocity in zip(variables, before, over_replicas(gradients), self._velocities(), strict=True):
            if gradient is not None:
                variable.assign(now + velocity - rate * (gradient + self._config.weight_decay * now))
        losses, direct, ahead = self._gradients_ahead(batch)
        noted = self._note("search", losses)
        ahead = over_replicas(ahead)
        for variable, now in zip(variables, before, strict=True):
            variable.assign(now)
        pairs = [(g, -rate * a) for g, a in zip(gradients, ahead, strict=True) if g is not None and a is not None]
        implicit = outer.gradient([g for g, _ in pairs], betas, output_gradients=[a for _, a in pairs])
        total = [one if other is None else one + other for one, other in zip(direct, implicit, strict=True)]
        update(self._beta_optimizer, total, self._betas)
        return noted

    def _gradients_ahead(self, batch: Batch) -> tuple[Losses, list[tf.Tensor], list[tf.Tensor | None]]:
        """The search loss at the current weights, and its gradients by beta and by the weights."""
        betas, variables = _values(self._betas), _values(self._weights)
        teacher = self._teach(batch)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*betas, *variables])
            losses = self._losses.of_beta(self._losses.student_features(batch), teacher, batch)
            scaled = _share_of(losses.loss)
        direct, ahead = tape.gradient(scaled, [betas, variables])
        return losses, direct, ahead

    def _velocities(self) -> list[tf.Tensor]:
        """The change of each weight by momentum at the next step."""
        if not self._config.momentum:
            return [tf.constant(0.0) for _ in self._weights]
        return [self._config.momentum * velocity.value for velocity in self._weight_optimizer.momentums]

    def _note(self, half: str, losses: Losses, norm: Mapping[str, tf.Tensor] | None = None) -> dict[str, tf.Tensor]:
        """Watches the terms of a step, then their loss, then the gradient's norm; returns their means and the learning rate."""
        norm = norm or {}
        watched = {f"{half}/{name}": value for name, value in {**losses.terms, "loss": losses.loss, **norm}.items()}
        done = tf.cast(self._weight_optimizer.iterations, tf.int64) + self._start
        noted = self.watch.note(watched, done, self._weight_optimizer.learning_rate)
        optimizer = self._weight_optimizer if half == "train" else self._beta_optimizer
        rate = tf.cast(optimizer.learning_rate, tf.float32)
        is_whole = sees_whole_gradient(optimizer, tf.distribute.get_strategy().num_replicas_in_sync)
        kept = ["loss", *losses.terms, *(norm if is_whole else [])]
        return {**{name: noted[f"{half}/{name}"] for name in kept}, "learning_rate": rate}


def _on_all(step: Callable[..., dict[str, tf.Tensor]], jit_compile: bool) -> Callable[..., dict[str, tf.Tensor]]:
    """Runs a step on every replica, each with its part of the batches; returns the terms, which are the same on all."""
    strategy = tf.distribute.get_strategy()

    @tf.function(jit_compile=jit_compile or None)
    def on_all(*batches: Any) -> dict[str, tf.Tensor]:
        terms = strategy.run(lambda *parts: step(*map(Batch.of, parts)), args=batches)
        return {name: strategy.experimental_local_results(value)[0] for name, value in terms.items()}

    return on_all


def _share_of(loss: tf.Tensor) -> tf.Tensor:
    """The loss that a replica differentiates: replicas add up their gradients."""
    return loss / tf.distribute.get_strategy().num_replicas_in_sync


def _values(variables: Sequence[keras.Variable]) -> list[tf.Variable]:
    return [variable.value for variable in variables]
