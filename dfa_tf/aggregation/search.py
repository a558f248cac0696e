"""Stage 1: the aggregation search, an alternating loop on tf.GradientTape (Algorithm 1 of the paper)."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from dfa_tf.aggregation.bridge import Bridge
from dfa_tf.aggregation.search_state import PassReporter, Progress, Row, group_weights, rows_of
from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import Config
from dfa_tf.images.splits import Split, Splits
from dfa_tf.methods.classification import cross_entropy, replica_share, weighted_mean
from dfa_tf.networks.batchnorm import batchnorm_switch, fused_batchnorm, twice_differentiable
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.frozen_teacher import FrozenTeacher, frozen
from dfa_tf.networks.pairing import keep_paired_groups
from dfa_tf.networks.precision import computing_in, precision
from dfa_tf.process import interruption
from dfa_tf.training.context import ALONE, StageContext
from dfa_tf.training.divergence import FiniteWatch
from dfa_tf.training.replicas import distributed
from dfa_tf.training.strategies import check_batch, check_execution, check_fits, in_scope
from dfa_tf.training.teacher_cache import outputs_read
from dfa_tf.training.updates import gradient_norm, loss_scaled, over_replicas, sees_whole_gradient, update

Batch = dict[str, Any]


@dataclass(frozen=True)
class SearchResult:
    """What a search gives.

    Attributes:
        weights: the aggregation weights.
        trajectory: a row for each epoch, group and block: beta, alpha, entropy, whether alpha has collapsed (1 or 0), and the
            mean of every loss term of the group on the training half and on the search half, of both learning rates, and of the
            norm of the weights' gradient (but under a loss scale or on several replicas, where no step sees it).
        steps: weight updates.
    """

    weights: AggregationWeights
    trajectory: list[Row]
    steps: int


def search(
    teacher: FeatureModel | keras.Model,
    student: FeatureModel | keras.Model,
    splits: Splits,
    config: Config,
    *,
    config_hash: str = "",
    context: StageContext = ALONE,
) -> SearchResult:
    """Searches the aggregation weights of a teacher for a student.

    Each iteration makes one step on beta with a batch of the search split, then one on the student's weights
    and the connectors with a batch of the training split. With `search.order=second` the step on beta is by the
    loss at the weights one step ahead on that training batch: the unrolled step of DARTS (Liu et al. 2019), here
    with its exact gradient. In mode `group_wise` the groups are searched one after the other, each with its own
    schedule and optimizers while the student goes on; in mode `joint` all at once, with one teacher pass per batch
    for all groups.

    Where the entropy of a group's alpha falls under `search.entropy_bound` ln N, one candidate has it nearly all: that is warned
    about once a group, and with `search.stop_on_collapse` the groups that are searched with it keep the alpha that they have then.

    With models and arrays of your own:

        splits = dfa_tf.split(dfa_tf.source((images, labels)), config.data, seed=config.seed)
        found = dfa_tf.search(teacher, student, splits, config)

    Args:
        teacher: frozen: neither its weights nor its statistics change.
        student: freshly initialised; it is trained here, in place on one device, and of no use afterwards.
        splits: `splits.train` and `splits.search` are used, and no other.
        config: its `search`, `data` and `seed` are read.
        config_hash: noted in the weights.
        context: devices, all of which have one beta; checkpoints, from which an interrupted search resumes, bit for bit; display;
            events, of mode `group_wise` in a part for each group; teacher cache.

    Returns:
        Weights and trajectory.

    Raises:
        UserError: if the networks do not fit each other or the data.
        DivergenceError: if a term is no longer finite; it names the term, its group, the step and the learning rate.
        KeyboardInterrupt: after a checkpoint, if a signal asked to stop (`dfa_tf.process.interruption`).
    """
    settings, data = config.search, config.data
    teacher, student = FeatureModel.from_model(teacher), FeatureModel.from_model(student)
    for network in (teacher, student):
        check_fits(network, splits)
    strategy, checkpoints, report = context.strategy or tf.distribute.get_strategy(), context.checkpoints, context.report
    check_batch(data.batch_size, strategy.num_replicas_in_sync)
    check_execution(config.train, strategy.num_replicas_in_sync)
    steps = splits.train.steps(data.batch_size)
    with strategy.scope(), precision(config.train.precision):
        student, teacher = keep_paired_groups(
            in_scope(strategy, student), computing_in(config.teacher_precision, in_scope(strategy, teacher))
        )
        keras.utils.set_random_seed(config.seed)
        bridge = Bridge(teacher, student, settings, seed=config.seed)
        batchnorm_switch(*bridge.networks)(strategy.num_replicas_in_sync > 1)
        teaching = frozen(teacher, batchnorm=config.teacher.batchnorm)
    everything = range(len(bridge.aggregations))
    passes = [[group] for group in everything] if settings.mode == "group_wise" else [list(everything)]

    progress = Progress(bridge, steps, settings, checkpoints)
    total = len(passes) * settings.epochs * steps
    cached_outputs = None
    if context.teacher_cache is not None:
        tell = None if report is None else functools.partial(report, progress.done, total)
        read = outputs_read(teaching, lambda features: features.groups)
        with strategy.scope():
            cached_outputs = context.teacher_cache.cached_outputs(teaching, read, splits, config, tell=tell)

    def batches(half: Split, seed: int, start: int) -> Iterator[Batch]:
        made = half.batches(data.batch_size, seed=seed, start=start, **config.augmentation)
        return iter(distributed(made if cached_outputs is None else cached_outputs.join(made, half), strategy))

    training = batches(splits.train, config.seed, progress.updates)
    searching = batches(splits.search, config.seed + 1, progress.beta_updates)
    with contextlib.nullcontext() if checkpoints is None else interruption.deferred():
        for number, groups in enumerate(passes):
            if progress.passes_done > number:
                continue
            with strategy.scope():
                cut = (
                    teaching.up_to_group(max(groups)) if cached_outputs is None else teaching
                )  # cached outputs are by the outputs of the whole
                loop = _Loop(bridge, cut, config, groups, settings.epochs * steps, start=number * settings.epochs * steps)
                progress.begin(loop.watch, loop.optimizer_variables)
            reporter = PassReporter(progress, report, context.events, number=number, passes=len(passes), total=total)
            while progress.passes_done == number:
                batch = next(training)
                if progress.beta_moves:
                    progress.add("search", loop.beta_step(next(searching), batch))
                progress.add("train", loop.weight_step(batch))
                reporter.step()
                if progress.epoch_ended:
                    loop.watch.check()
                    means = progress.sums.means()
                    rows = rows_of(bridge, teacher, groups, progress.epoch, means, bound=settings.entropy_bound)
                    progress.end_epoch(rows)
                    reporter.epoch(rows, means)
                progress.save_where_wanted()
    weights = AggregationWeights(
        teacher=teacher.model.name,
        data=config.data.name,
        seed=config.seed,
        config_hash=config_hash,
        standardise=settings.standardise,
        groups=tuple(group_weights(bridge, teacher, group) for group in everything),
    )
    return SearchResult(weights, progress.trajectory, progress.updates)


class _Loop:
    """The two updates over some groups, with the optimizers of one pass; made in the scope of the strategy."""

    def __init__(
        self, bridge: Bridge, teacher: FrozenTeacher, config: Config, groups: Sequence[int], steps: int, *, start: int = 0
    ) -> None:
        self._bridge, self._config, self._groups = bridge, config.search, groups
        self._teacher = teacher
        self._betas = [bridge.aggregations[group].beta for group in groups]
        self._start = start
        self.watch = FiniteWatch("Lower search.learning_rate")
        rate = keras.optimizers.schedules.CosineDecay(self._config.learning_rate, steps)
        sgd = keras.optimizers.SGD(rate, momentum=self._config.momentum)
        adam = keras.optimizers.Adam(self._config.beta_learning_rate, *self._config.beta_decays)
        self._weight_optimizer, self._beta_optimizer = (loss_scaled(one, config.train.precision) for one in (sgd, adam))
        # Both are built before either is traced: an optimizer cannot make its variables inside a tf.function.
        self._weight_optimizer.build(bridge.weight_variables)
        self._beta_optimizer.build(self._betas)
        self.optimizer_variables = [*self._weight_optimizer.variables, *self._beta_optimizer.variables]
        fused = fused_batchnorm(*bridge.networks, self._teacher.extractor.model)
        beta_step = self._second_order_step if self._config.order == "second" else self._beta_step
        self.weight_step, self.beta_step = (_on_all(fused(step), config.train.jit_compile) for step in (self._weight_step, beta_step))

    def _weight_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """One step on the student's weights and the connectors."""
        means, gradients = self._weight_gradients(batch, self._teacher(batch["images"], batch.get("cached_outputs")))
        noted = self._note("train", means, gradient_norm(self._weight_optimizer, gradients))
        update(self._weight_optimizer, gradients, self._bridge.weight_variables, weight_decay=self._config.weight_decay)
        return noted

    def _weight_gradients(self, batch: Batch, teacher: Features) -> tuple[dict[str, tf.Tensor], list[tf.Tensor | None]]:
        with tf.GradientTape() as tape:
            student = self._bridge.student_features(batch["images"], self._groups)
            loss, means = self._group_losses(student, teacher, batch)
            if student is not None and self._config.objective == "student":
                ce = cross_entropy(batch["labels"], student.logits)
                means["ce"] = weighted_mean(ce, batch.get("weights"), replica_share(batch["labels"]))
                loss += means["ce"]
            scaled = self._weight_optimizer.scale_loss(_share_of(loss))
        return {"loss": loss, **means}, tape.gradient(scaled, _values(self._bridge.weight_variables))

    def _beta_step(self, batch: Batch, training: Batch) -> dict[str, tf.Tensor]:
        """One step on beta with the weights as they are (first order); the training batch plays no part."""
        teacher = self._teacher(batch["images"], batch.get("cached_outputs"))
        student = self._bridge.student_features(batch["images"], self._groups)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(_values(self._betas))
            loss, means = self._search_loss(student, teacher, batch)
            scaled = self._beta_optimizer.scale_loss(_share_of(loss))
        noted = self._note("search", means)
        update(self._beta_optimizer, tape.gradient(scaled, _values(self._betas)), self._betas)
        return noted

    def _second_order_step(self, batch: Batch, training: Batch) -> dict[str, tf.Tensor]:
        """One step on beta by the loss at the weights w' that the optimizer's next step would come to.

        With w' = w + momentum velocity - rate (g(beta) + wd w), where g is the gradient of the training loss, the gradient
        of the search loss L is dL/dbeta - rate (dL/dw')^T dg/dbeta; the product is a vector-Jacobian product of g.
        """
        betas, variables = _values(self._betas), _values(self._bridge.weight_variables)
        teacher = self._teacher(training["images"], training.get("cached_outputs"))
        with tf.GradientTape(watch_accessed_variables=False) as outer, twice_differentiable(*self._bridge.networks):
            outer.watch(betas)
            means, gradients = self._weight_gradients(training, teacher)
        self._note("train", means)
        before = [tf.identity(variable) for variable in variables]
        rate = tf.cast(self._weight_optimizer.learning_rate, tf.float32)
        for variable, now, gradient, velocity in zip(variables, before, over_replicas(gradients), self._velocities(), strict=True):
            if gradient is not None:
                variable.assign(now + velocity - rate * (gradient + self._config.weight_decay * now))
        teacher = self._teacher(batch["images"], batch.get("cached_outputs"))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*betas, *variables])
            student = self._bridge.student_features(batch["images"], self._groups)
            loss, means = self._search_loss(student, teacher, batch)
            scaled = _share_of(loss)
        noted = self._note("search", means)
        direct, ahead = tape.gradient(scaled, [betas, variables])
        ahead = over_replicas(ahead)
        for variable, now in zip(variables, before, strict=True):
            variable.assign(now)
        pairs = [(g, -rate * a) for g, a in zip(gradients, ahead, strict=True) if g is not None and a is not None]
        implicit = outer.gradient([g for g, _ in pairs], betas, output_gradients=[a for _, a in pairs])
        total = [one if other is None else one + other for one, other in zip(direct, implicit, strict=True)]
        update(self._beta_optimizer, total, self._betas)
        return noted

    def _note(self, half: str, means: dict[str, tf.Tensor], more: Mapping[str, tf.Tensor] | None = None) -> dict[str, tf.Tensor]:
        """Watches the terms of a step, the loss that is made of them last, and more; gives their means, and the learning rate."""
        watched = {**dict([*means.items()][1:]), "loss": means["loss"], **(more or {})}
        terms = {f"{half}/{name}": value for name, value in watched.items()}
        done = tf.cast(self._weight_optimizer.iterations, tf.int64) + self._start
        noted = self.watch.note(terms, done, self._weight_optimizer.learning_rate)
        optimizer = self._weight_optimizer if half == "train" else self._beta_optimizer
        rate = tf.cast(optimizer.learning_rate, tf.float32)
        is_whole = sees_whole_gradient(optimizer, tf.distribute.get_strategy().num_replicas_in_sync)
        kept = [*means, *(more or {} if is_whole else {})]
        return {**{name: noted[f"{half}/{name}"] for name in kept}, "learning_rate": rate}

    def _velocities(self) -> list[tf.Tensor]:
        """What momentum adds to each weight at the next step."""
        if not self._config.momentum:
            return [tf.constant(0.0) for _ in self._bridge.weight_variables]
        return [self._config.momentum * velocity.value for velocity in self._weight_optimizer.momentums]

    def _search_loss(self, student: Features | None, teacher: Features, batch: Batch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        loss, means = self._group_losses(student, teacher, batch)
        regulariser = self._bridge.regulariser(self._config.regulariser, self._groups)
        loss += self._config.lambda_ * regulariser
        return loss, {"loss": loss, "regulariser": regulariser, **means}

    def _group_losses(self, student: Features | None, teacher: Features, batch: Batch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        losses, means = [], {}
        labels, weights = batch["labels"], batch.get("weights")
        share = replica_share(labels)
        for group in self._groups:
            terms = self._bridge.group_terms(group, student, teacher, labels)
            losses.append(self._bridge.combine(terms, weights, share))
            means.update({f"group{group + 1}/{name}": weighted_mean(term, weights, share) for name, term in terms.items()})
        return tf.add_n(losses), means


def _on_all(step: Callable[..., dict[str, tf.Tensor]], jit_compile: bool) -> Callable[..., dict[str, tf.Tensor]]:
    """A step on every replica, each with its part of the batches; it gives the terms, of which all have the same."""
    strategy = tf.distribute.get_strategy()

    @tf.function(jit_compile=jit_compile or None)
    def on_all(*batches: Batch) -> dict[str, tf.Tensor]:
        terms = strategy.run(step, args=batches)
        return {name: strategy.experimental_local_results(value)[0] for name, value in terms.items()}

    return on_all


def _share_of(loss: tf.Tensor) -> tf.Tensor:
    """What a replica differentiates: replicas add their gradients up."""
    return loss / tf.distribute.get_strategy().num_replicas_in_sync


def _values(variables: Sequence[keras.Variable]) -> list[tf.Variable]:
    return [variable.value for variable in variables]
