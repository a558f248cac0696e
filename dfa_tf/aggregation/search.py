"""Stage 1: the aggregation search, an alternating loop on tf.GradientTape (Algorithm 1 of the paper)."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from dfa_tf.aggregation.bridge import Bridge
from dfa_tf.aggregation.search_state import PassReporter, Progress, Row, group_weights, rows_of
from dfa_tf.aggregation.search_steps import SearchSteps
from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import Config
from dfa_tf.images.splits import Split, Splits
from dfa_tf.networks.batchnorm import batchnorm_switch
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.frozen_teacher import FrozenTeacher, frozen
from dfa_tf.networks.pairing import keep_paired_groups
from dfa_tf.networks.precision import computing_in, precision
from dfa_tf.process import interruption
from dfa_tf.training.context import ALONE, StageContext
from dfa_tf.training.replicas import distributed
from dfa_tf.training.strategies import check_batch, check_execution, check_fits, in_scope
from dfa_tf.training.teacher_cache import CachedOutputs


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

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
    loss at the weights one step ahead on that training batch, the unrolled step of DARTS (Liu et al. 2019), here
    with its exact gradient. In mode `group_wise` the groups are searched one after the other, each with its own
    schedule and optimizers, while the student keeps its weights; in mode `joint` all at once, with one teacher pass per batch
    for all groups.

    Where the entropy of a group's alpha falls under `search.entropy_bound` ln N, one candidate has nearly all the weight. A warning
    says so once a group; with `search.stop_on_collapse` the pass ends there, and its groups keep the alpha that they have then.

    With models and arrays of your own:

        splits = dfa_tf.split(dfa_tf.source((images, labels)), config.data, seed=config.seed)
        found = dfa_tf.search(teacher, student, splits, config)

    Args:
        teacher: frozen: neither its weights nor its statistics change.
        student: freshly initialised; it is trained here, in place on one device, and not needed afterwards.
        splits: only `splits.train` and `splits.search` are used.
        config: its `search`, `data` and `seed` are read.
        config_hash: stored in the weights.
        context: devices, all of which have one beta; checkpoints, from which an interrupted search resumes, bit for bit; display;
            events, of mode `group_wise` in a part for each group; teacher cache.

    Returns:
        Weights and trajectory.

    Raises:
        UserError: if the networks do not fit each other or the data.
        DivergenceError: if a term is no longer finite; the message names the term, its group, the step and the learning rate.
        KeyboardInterrupt: after a checkpoint, if a signal asked to stop (`dfa_tf.process.interruption`).
    """
    settings, strategy = config.search, context.strategy or tf.distribute.get_strategy()
    bridge, teaching = _networks(FeatureModel.from_model(teacher), FeatureModel.from_model(student), splits, config, strategy)
    everything = range(len(bridge.aggregations))
    passes = [[group] for group in everything] if settings.mode == "group_wise" else [list(everything)]
    progress = Progress(bridge, splits.train.steps(config.data.batch_size), settings, context.checkpoints)
    total = len(passes) * progress.steps_of_pass
    cached_outputs = _cached_outputs(teaching, splits, config, context, (progress.done, total))

    def batches(half: Split, seed: int, start: int) -> Iterator[Any]:
        made = half.batches(config.data.batch_size, seed=seed, start=start, **config.augmentation)
        return iter(distributed(made if cached_outputs is None else cached_outputs.join(made, half), strategy))

    training = batches(splits.train, config.seed, progress.updates)
    searching = batches(splits.search, config.seed + 1, progress.beta_updates)
    with contextlib.nullcontext() if context.checkpoints is None else interruption.deferred():
        for number, groups in enumerate(passes):
            if progress.passes_done > number:
                continue
            with strategy.scope():
                # The cache has the outputs of the whole teacher.
                cut = teaching.up_to_group(max(groups)) if cached_outputs is None else teaching
                steps = SearchSteps(bridge, cut, config, groups, progress.steps_of_pass, start=number * progress.steps_of_pass)
                progress.begin(steps.watch, steps.optimizer_variables)
            reporter = PassReporter(progress, context.report, context.events, number=number, passes=len(passes), total=total)
            rows_of_epoch = functools.partial(rows_of, bridge, teaching.network, groups, bound=settings.entropy_bound)
            _run_pass(steps, progress, reporter, rows_of_epoch, training=training, searching=searching)
    weights = AggregationWeights(
        teacher=teaching.network.model.name,
        data=config.data.name,
        seed=config.seed,
        config_hash=config_hash,
        standardise=settings.standardise,
        groups=tuple(group_weights(bridge, teaching.network, group) for group in everything),
    )
    return SearchResult(weights, progress.trajectory, progress.updates)


def _run_pass(
    steps: SearchSteps,
    progress: Progress,
    reporter: PassReporter,
    rows_of_epoch: Callable[[int, dict[str, float]], list[Row]],
    *,
    training: Iterator[Any],
    searching: Iterator[Any],
) -> None:
    """Alternates both steps until the pass ends."""
    number = progress.passes_done
    while progress.passes_done == number:
        batch = next(training)
        if progress.beta_moves:
            progress.add("search", steps.beta_step(next(searching), batch))
        progress.add("train", steps.weight_step(batch))
        reporter.step()
        if progress.epoch_ended:
            steps.watch.check()
            means = progress.sums.means()
            progress.end_epoch(rows := rows_of_epoch(progress.epoch, means))
            reporter.epoch(rows, means)
        progress.save_where_wanted()


def _networks(
    teacher: FeatureModel, student: FeatureModel, splits: Splits, config: Config, strategy: tf.distribute.Strategy
) -> tuple[Bridge, FrozenTeacher]:
    """The bridge between both networks, and the frozen teacher; in the scope of the strategy.

    Raises:
        UserError: if the networks do not fit each other, the data or the devices.
    """
    for network in (teacher, student):
        check_fits(network, splits)
    check_batch(config.data.batch_size, strategy.num_replicas_in_sync)
    check_execution(config.train, strategy.num_replicas_in_sync)
    with strategy.scope(), precision(config.train.precision):
        student, teacher = keep_paired_groups(
            in_scope(strategy, student), computing_in(config.teacher_precision, in_scope(strategy, teacher))
        )
        keras.utils.set_random_seed(config.seed)
        bridge = Bridge(teacher, student, config.search, seed=config.seed)
        batchnorm_switch(*bridge.networks)(strategy.num_replicas_in_sync > 1)
        return bridge, frozen(teacher, batchnorm=config.teacher.batchnorm)


def _cached_outputs(
    teaching: FrozenTeacher, splits: Splits, config: Config, context: StageContext, steps: tuple[int, int]
) -> CachedOutputs | None:
    """The teacher's block outputs, where a cache keeps them; while they are made, the steps done and in all are reported."""
    if context.teacher_cache is None:
        return None
    report = None if context.report is None else functools.partial(context.report, *steps)
    read = teaching.extractor.outputs_of(teaching.extractor.names_read(["groups"]))
    with (context.strategy or tf.distribute.get_strategy()).scope():
        return context.teacher_cache.cached_outputs(teaching, read, splits, config, report=report)
