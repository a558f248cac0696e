"""Stage 2: `distil` prepares the methods, trains phase by phase with `fit`, and evaluates each epoch."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import Config, TrainConfig
from dfa_tf.distillation.callbacks import check_callbacks
from dfa_tf.distillation.distiller import Distiller
from dfa_tf.distillation.phases import PlannedPhase, planned
from dfa_tf.distillation.preparing import all_methods, build_distiller, placed, prepare
from dfa_tf.distillation.training_callbacks import TrainingCallbacks
from dfa_tf.images.splits import Splits
from dfa_tf.methods import Method
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.precision import precision
from dfa_tf.process import interruption
from dfa_tf.training.context import ALONE, StageContext
from dfa_tf.training.replicas import distributed
from dfa_tf.training.strategies import check_batch, check_execution, check_fits, steps_at_once
from dfa_tf.training.teacher_cache import CachedOutputs, ReportShare, TeacherCache
from dfa_tf.training.updates import optimizer


@dataclass(frozen=True)
class Distilled:
    """The result of a training.

    Attributes:
        student: the served model: raw pixels to logits, of built-in layers.
        history: the numbers of each epoch.
        steps: updates of its weights.
        final: accuracy and loss of this student on the test set and the validation split, where these exist: those of the last
            epoch, unless the best epoch was kept or callbacks have changed the weights.
    """

    student: keras.Model
    history: list[dict[str, float]]
    steps: int
    final: dict[str, float]


def distil(
    teacher: FeatureModel | keras.Model | None,
    student: FeatureModel | keras.Model,
    splits: Splits,
    config: Config,
    *,
    aggregation: AggregationWeights | None = None,
    train: TrainConfig | None = None,
    keras_losses: Mapping[str, tuple[keras.distillation.DistillationLoss, float]] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    directory: Path | None = None,
    context: StageContext = ALONE,
) -> Distilled:
    """Stage 2: trains the student on `splits.train + splits.search` with the methods of `config.distil`.

    With models and arrays of your own:

        splits = dfa_tf.split(dfa_tf.source((images, labels), (test_images, test_labels)), config.data, seed=config.seed)
        distilled = dfa_tf.distil(teacher, student, splits, config, aggregation=found.weights)  # found by dfa_tf.search

    Args:
        teacher: frozen. None trains without any method: the student's baseline, or a teacher.
        student: trained from its current weights; in place, on one device.
        splits: the data; `test` is evaluated if it exists, and does not affect the result.
        config: its `distil`, `data`, `teacher.batchnorm`, `train.precision` and `seed` are read.
        aggregation: the searched weights, for the methods that take them.
        train: the schedule; `config.student_train` where None.
        keras_losses: Keras' own distillation losses by any name, each with its weight, in addition to the configuration's methods.
        callbacks: ordinary Keras callbacks, for `fit`. They see the numbers of an epoch under Keras' usual names too (`val_loss`,
            `val_accuracy` of the validation split, `loss`); `self.model` is the Distiller, whose `save` saves the student.
        directory: of `metrics.jsonl` and the results of `Method.prepare`; None keeps nothing.
        context: devices, checkpoints, display, events, teacher cache. An interrupted training resumes from its checkpoints bit for bit,
            except for the state of `callbacks`.

    Returns:
        The student after the last epoch, or of the best one (`train.choose_best`), and the numbers of each epoch.

    Raises:
        UserError: if the networks, the data, the methods and the callbacks do not fit one another.
        DivergenceError: if a term is no longer finite; the message names the term, its group, the step and the learning rate.
        KeyboardInterrupt: after a checkpoint, if a signal requested a stop (`dfa_tf.process.interruption`).
    """
    train, strategy = train or config.student_train, context.strategy or tf.distribute.get_strategy()
    student, teacher = FeatureModel.from_model(student), None if teacher is None else FeatureModel.from_model(teacher)
    check_callbacks(callbacks, train, validation=len(splits.validation) > 0)
    check_batch(config.data.batch_size, strategy.num_replicas_in_sync)
    check_execution(train, strategy.num_replicas_in_sync)
    for network in (student, teacher):
        if network is not None:
            check_fits(network, splits)
    data, losses, methods = splits.train + splits.search, keras_losses or {}, dict[str, Method]()
    steps = data.steps(config.data.batch_size)
    with strategy.scope(), precision(train.precision):
        student, teacher = placed(student, teacher, config, strategy)
        if teacher is not None:
            methods = all_methods(config, student, teacher, aggregation, losses)
        plan = planned(methods, train.epochs)
        if teacher is not None:
            prepare(methods, teacher, data, config, None if directory is None else directory / "prepared")
        distiller = build_distiller(student, teacher, methods, config, train=train, keras_losses=losses, steps=steps)
        deployed = distiller.deployed()
    ours = TrainingCallbacks(deployed, distiller, splits, train, context, steps=steps, directory=directory, callbacks=callbacks)
    report = None if context.report is None else functools.partial(context.report, ours.done, train.epochs * steps)
    with strategy.scope():
        cached_outputs = _cached_outputs(context.teacher_cache, distiller, splits, config, mixup=train.mixup, report=report)

    def batches(done: int) -> tf.data.Dataset | tf.distribute.DistributedDataset:
        made = data.batches(config.data.batch_size, seed=config.seed, start=done, **config.augmentation)
        return distributed(made if cached_outputs is None else cached_outputs.join(made, data), strategy)

    _fit(distiller, plan, ours, batches, train=train, strategy=strategy, steps=steps)
    final = ours.end()
    distiller.synchronise_batchnorm(False)
    rows = ours.log.rows
    return Distilled(deployed, rows, len(rows) * steps, final)


def _fit(
    distiller: Distiller,
    plan: Sequence[PlannedPhase],
    ours: TrainingCallbacks,
    batches: Callable[[int], tf.data.Dataset | tf.distribute.DistributedDataset],
    *,
    train: TrainConfig,
    strategy: tf.distribute.Strategy,
    steps: int,
) -> None:
    """Trains phase by phase, from the state of the checkpoint on.

    Args:
        distiller: the model that is trained.
        plan: the phases.
        ours: the callbacks.
        batches: makes the batches after a number of updates.
        train: the schedule.
        strategy: of the Distiller.
        steps: of an epoch.
    """
    epoch, done = 0, ours.done
    for phase, method, epochs in plan:
        start, epoch = epoch * steps, epoch + epochs
        if done >= epoch * steps:
            continue
        distiller.begin_phase(phase, method, start)
        with strategy.scope():
            _compile(distiller, train, steps, epochs)
            ours.restore(distiller)
        done = max(done, start)
        with interruption.deferred() if ours.resumes else contextlib.nullcontext():
            distiller.fit(
                batches(done),
                initial_epoch=done // steps,
                epochs=epoch,
                steps_per_epoch=steps,
                callbacks=ours.callbacks(),
                shuffle=False,
                verbose=0,
            )
        if distiller.stop_training:
            break


def _cached_outputs(
    cache: TeacherCache | None, distiller: Distiller, splits: Splits, config: Config, *, mixup: float, report: ReportShare | None
) -> CachedOutputs | None:
    """The outputs of the teacher that the methods read, if a cache keeps them."""
    if cache is None or distiller.teaching is None:
        return None
    return cache.cached_outputs(distiller.teaching, distiller.outputs_read, splits, config, mixup=mixup, report=report)


def _compile(distiller: Distiller, train: TrainConfig, steps: int, epochs: int) -> None:
    """Compiles a phase of this many epochs; called in the scope of the strategy."""
    distiller.compile(optimizer=optimizer(train, epochs * steps), jit_compile=False, steps_per_execution=steps_at_once(train, steps))
    distiller.optimizer.build(distiller.trainable_variables)
    if train.jit_compile:
        # Not by `compile`, which leaves XLA out if operations are deterministic.
        distiller.train_step = tf.function(functools.partial(Distiller.train_step, distiller), jit_compile=True)  # type: ignore[method-assign]
