"""Stage 2: `distil` prepares the methods, goes through their phases with `fit`, and evaluates each epoch."""

import contextlib
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import Config, TrainConfig
from dfa_tf.distillation.callbacks import BestEpoch, KerasNames, check_callbacks
from dfa_tf.distillation.distiller import USUAL, Distiller, as_method
from dfa_tf.distillation.resuming import ResumingCallback
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Split, Splits
from dfa_tf.methods import Method, Phase
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.pairing import keep_paired_groups
from dfa_tf.networks.precision import computing_in, precision
from dfa_tf.process import interruption
from dfa_tf.process.status import doing
from dfa_tf.training.callbacks import MetricsLog, ProgressCallback
from dfa_tf.training.context import ALONE, StageContext
from dfa_tf.training.divergence import FiniteCallback
from dfa_tf.training.evaluation import EvaluationCallback
from dfa_tf.training.replicas import distributed
from dfa_tf.training.strategies import check_batch, check_execution, check_fits, in_scope, steps_at_once
from dfa_tf.training.teacher_cache import CachedOutputs, TeacherCache, Tell
from dfa_tf.training.tensorboard import EpochEvents
from dfa_tf.training.updates import optimizer


@dataclass(frozen=True)
class Distilled:
    """What a training gives.

    Attributes:
        student: the model that is served: raw pixels to logits, of built-in layers.
        history: the numbers of each epoch.
        steps: updates of its weights.
        final: accuracy and loss of the student as it is here, on the test set and the validation split as far as there are any:
            those of the last epoch, unless another epoch was kept or callbacks have changed the weights.
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
        teacher: frozen. None trains plainly, without any method: the student's baseline, or a teacher.
        student: trained from the weights that it has; in place, on one device.
        splits: the data; `test` is evaluated if there is one, and nothing is chosen by it.
        config: its `distil`, `data`, `teacher.batchnorm`, `train.precision` and `seed` are read.
        aggregation: the searched weights, for the methods that take them.
        train: the schedule; `config.student_train` where None.
        keras_losses: Keras' own distillation losses by any name, each with its weight, beside the methods of the configuration.
        callbacks: ordinary Keras callbacks, for `fit`. The numbers of an epoch have Keras' usual names for them too (`val_loss`,
            `val_accuracy` of the validation split, `loss`); `self.model` is the Distiller, whose `save` saves the student.
        directory: `metrics.jsonl`, and what a method prepares, are kept there where given.
        context: devices, checkpoints, display, events, teacher cache. From its checkpoints an interrupted training resumes, bit
            for bit but for what `callbacks` remember.

    Returns:
        The student after the last epoch, or of the best one (`train.choose_best`), and the numbers of each epoch.

    Raises:
        UserError: if the networks, the data, the methods and the callbacks do not fit one another.
        DivergenceError: if a term is no longer finite; it names the term, its group, the step and the learning rate.
        KeyboardInterrupt: after a checkpoint, if a signal asked to stop (`dfa_tf.process.interruption`).
    """
    train = train or config.student_train
    student, teacher = FeatureModel.from_model(student), None if teacher is None else FeatureModel.from_model(teacher)
    check_callbacks(callbacks, train, validation=len(splits.validation) > 0)
    strategy, checkpoints, report = context.strategy or tf.distribute.get_strategy(), context.checkpoints, context.report
    data, batch_size = splits.train + splits.search, config.data.batch_size
    check_batch(batch_size, strategy.num_replicas_in_sync)
    check_execution(train, strategy.num_replicas_in_sync)
    for network in (student, teacher):
        if network is not None:
            check_fits(network, splits)
    steps = data.steps(batch_size)
    with strategy.scope(), precision(train.precision):
        distiller, plan = _prepared(
            teacher,
            student,
            data,
            config,
            train=train,
            strategy=strategy,
            aggregation=aggregation,
            keras_losses=keras_losses or {},
            cache=None if directory is None else directory / "prepared",
        )
        deployed = distiller.deployed()
    log = MetricsLog(directory / "metrics.jsonl" if directory else None)
    evaluation = EvaluationCallback(deployed, splits, train)
    best = BestEpoch(deployed) if train.choose_best else None
    resuming = None if checkpoints is None else ResumingCallback(checkpoints, log, steps, best)
    done = 0 if resuming is None else resuming.step
    told = None if context.events is None else EpochEvents(context.events, log)
    ours = [FiniteCallback(distiller.watch), evaluation, best, log, told, resuming, KerasNames(callbacks, distiller, splits)]
    first = None if report is None else ProgressCallback(report, train.epochs, steps, done)  # nothing is written before its report
    watching: list[keras.callbacks.Callback] = [*(callback for callback in [first, *ours] if callback is not None), *callbacks]
    with strategy.scope():
        tell = None if report is None else functools.partial(report, done, train.epochs * steps)
        cached_outputs = _cached_outputs(context.teacher_cache, distiller, splits, config, mixup=train.mixup, tell=tell)
    epoch = 0
    for phase, method_name, epochs in plan:
        start, epoch = epoch * steps, epoch + epochs
        if done >= epoch * steps:
            continue
        distiller.begin_phase(phase, method_name, start)
        with strategy.scope():
            _compile(distiller, train, steps, epochs)
            if resuming is not None:
                resuming.restore(distiller)
        done = max(done, start)
        batches = data.batches(batch_size, seed=config.seed, start=done, **config.augmentation)
        # Before the others, because they look at the weights that it puts into the student; anew, because it knows one optimizer.
        averaging = [] if train.ema is None else [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]
        with contextlib.nullcontext() if resuming is None else interruption.deferred():
            distiller.fit(
                distributed(batches if cached_outputs is None else cached_outputs.join(batches, data), strategy),
                initial_epoch=done // steps,
                epochs=epoch,
                steps_per_epoch=steps,
                callbacks=[*averaging, *watching],
                shuffle=False,
                verbose=0,
            )
        if distiller.stop_training:
            break
    evaluation.evaluate_into(log.rows[-1])
    if best is not None:
        best.restore()
    final = {} if best or callbacks else log.rows[-1]  # callbacks may restore weights too, as EarlyStopping does
    evaluation.evaluate_into(final)
    if told is not None:
        told.end(evaluation.predict, splits)
    distiller.synchronise_batchnorm(False)
    return Distilled(deployed, log.rows, len(log.rows) * steps, final)


def _prepared(
    teacher: FeatureModel | None,
    student: FeatureModel,
    data: Split,
    config: Config,
    *,
    train: TrainConfig,
    strategy: tf.distribute.Strategy,
    aggregation: AggregationWeights | None,
    keras_losses: Mapping[str, tuple[keras.distillation.DistillationLoss, float]],
    cache: Path | None,
) -> tuple[Distiller, list[tuple[Phase, str, int]]]:
    """The Distiller with its methods prepared, and the plan of its phases; called in the scope of the strategy."""
    settings, steps = config.distil, data.steps(config.data.batch_size)
    student = in_scope(strategy, student)
    if teacher is not None:
        teacher = computing_in(config.teacher_precision, in_scope(strategy, teacher))
    # Here and not before: copying the networks draws random numbers, and connectors must not depend on that.
    keras.utils.set_random_seed(config.seed)
    methods: dict[str, Method] = {}
    plan = [(USUAL, "", train.epochs)]
    if teacher is not None:
        student, teacher = keep_paired_groups(student, teacher)
        methods = build_methods(config, student, teacher, aggregation)
        methods |= {name: as_method(name, loss, student, teacher) for name, (loss, _) in keras_losses.items()}
        plan = _plan(methods, train.epochs)
        for name, method in methods.items():
            with doing(f"preparing {name}"):
                method.prepare(teacher, data, _cache(cache, config, name, teacher))
    distiller = Distiller(
        student,
        teacher,
        methods,
        weights={**settings.methods, **{name: weight for name, (_, weight) in keras_losses.items()}} if methods else {},
        ce_weight=settings.ce_weight if methods else 1.0,
        weight_decay=train.weight_decay,
        clip_norm=train.clip_norm,
        label_smoothing=train.label_smoothing,
        mixup=train.mixup,
        seed=config.seed,
        warmup_steps={name: epochs * steps for name, epochs in settings.warmup_epochs.items()} if methods else {},
        teacher_batchnorm=config.teacher.batchnorm,
    )
    return distiller, plan


def _cached_outputs(
    cache: TeacherCache | None, distiller: Distiller, splits: Splits, config: Config, *, mixup: float, tell: Tell | None
) -> CachedOutputs | None:
    """What the methods read of the teacher, where it is kept."""
    if cache is None or distiller.teaching is None:
        return None
    batch = (splits.train + splits.search).batches(config.data.batch_size, seed=0).element_spec
    return cache.cached_outputs(distiller.teaching, distiller.outputs_read(batch), splits, config, mixup=mixup, tell=tell)


def _compile(distiller: Distiller, train: TrainConfig, steps: int, epochs: int) -> None:
    """Compiles a phase of so many epochs; called in the scope of the strategy."""
    distiller.compile(optimizer=optimizer(train, epochs * steps), jit_compile=False, steps_per_execution=steps_at_once(train, steps))
    distiller.optimizer.build(distiller.trainable_variables)
    if train.jit_compile:
        # Not by `compile`, which leaves it out where operations are deterministic.
        distiller.train_step = tf.function(functools.partial(Distiller.train_step, distiller), jit_compile=True)  # type: ignore[method-assign]


def _plan(methods: Mapping[str, Method], epochs: int) -> list[tuple[Phase, str, int]]:
    """The phases with the method that declares them and their whole epochs; the usual training takes the rest."""
    declaring = [name for name, method in methods.items() if method.phases]
    if len(declaring) > 1:
        raise UserError(f"only one method with a phase of its own can be used at a time. Received: {declaring}")
    plan, done, fraction = [], 0, 0.0
    for name in declaring:
        for phase in methods[name].phases:
            # The ends are rounded and not the lengths, which could add up to more than there are epochs.
            fraction += phase.fraction
            count = round(fraction * epochs) - done
            if phase.fraction and phase.method_weight and not count:
                raise UserError(
                    f"a phase of {name} takes {phase.fraction:g} of the epochs, which must be at least one. Received: {epochs} epochs"
                )
            plan.append((phase, name, count))
            done += count
    if done > epochs:
        raise UserError(f"the phases of {declaring[0]} take more than the {epochs} epochs of the training")
    return [part for part in [*plan, (USUAL, "", epochs - done)] if part[2]]


def takes_aggregation(config: Config) -> bool:
    """Whether a method of the configuration takes aggregation weights."""
    return any("aggregation" in plugins.arguments("losses", name) for name in config.distil.methods)


def needs_search(config: Config) -> bool:
    """Whether stage 2 reads searched weights."""
    return takes_aggregation(config) and config.distil.aggregation == "searched"


def build_methods(
    config: Config, student: FeatureModel, teacher: FeatureModel, aggregation: AggregationWeights | None
) -> dict[str, Method]:
    """The methods of a configuration by name, for these networks.

    Raises:
        UserError: if an option or the networks do not fit a method.
    """
    methods = {}
    for name in config.distil.methods:
        options: dict[str, Any] = dict(config.distil.options.get(name, {}))
        if "aggregation" in plugins.arguments("losses", name):
            if aggregation is not None and config.distil.discretise:
                aggregation = aggregation.discretised()
            options["aggregation"] = aggregation
        methods[name] = plugins.build("losses", name, student, teacher, **options)
    return methods


def _cache(folder: Path | None, config: Config, method: str, teacher: FeatureModel) -> Path | None:
    """Where a method keeps what it prepares, told apart by the teacher's weights and all that the stage reads of the configuration."""
    if folder is None:
        return None
    weights = hashlib.sha256(b"".join(weight.tobytes() for weight in teacher.model.get_weights())).hexdigest()
    return folder / f"{method}-{config.stage_hash('distil', weights)}"
