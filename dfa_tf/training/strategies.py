"""What every training shares: strategy, optimizer, schedule, the update with its L2 term, callbacks."""

import functools
import json
import math
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from dfa_tf.config import Config, TrainConfig
from dfa_tf.errors import DivergenceError, UserError, shortened
from dfa_tf.images.splits import Splits
from dfa_tf.networks.features import FeatureModel, copy_of
from dfa_tf.networks.precision import named
from dfa_tf.process import status, workers
from dfa_tf.process.status import Step
from dfa_tf.storage.run_directory import differing, write_text
from dfa_tf.training.multi_worker import multi_worker_strategy

_SECONDS_BETWEEN_READS = 0.5
_NO_LOSSES = {"learning_rate", "gradient_norm"}
_EVALUATED = ("validation_accuracy", "test_accuracy")


@functools.cache
def strategy(name: str) -> tf.distribute.Strategy:
    """The strategy that a configuration names; in one process always the same one.

    Two MirroredStrategies over the same devices number their collective operations alike, and TensorFlow then
    takes those of one for the other's.

    Args:
        name: `"auto"`: MirroredStrategy over all GPUs where there are several, else one device;
            `"gpu"`: the same, where there is a GPU; `"mirrored"`: MirroredStrategy over all GPUs, or else over all logical CPUs;
            `"multi_worker"`: MultiWorkerMirroredStrategy over all GPUs of the workers that TF_CONFIG names, or else over their CPUs.
            It waits for the others, and can only be made before TensorFlow has computed anything.

    Raises:
        UserError: if a GPU is asked for and TensorFlow sees none; or workers cannot come together.
    """
    if name == "multi_worker":
        return multi_worker_strategy()
    gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
    if name == "gpu" and not gpus:
        raise UserError(
            "strategy=gpu needs a GPU that TensorFlow can use. Received: a machine with none. Use strategy=auto, or install dfa_tf[cuda]"
        )
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(gpus or [device.name for device in tf.config.list_logical_devices("CPU")])
    if len(gpus) > 1:
        return tf.distribute.MirroredStrategy(gpus)
    return tf.distribute.get_strategy()


def begin(config: Config) -> tf.distribute.Strategy:
    """The strategy of a configuration. From here on operations are deterministic, for the whole process.

    Raises:
        UserError: as `strategy` does; or if the workers have different configurations, but for paths.
    """
    tf.config.experimental.enable_op_determinism()
    if config.strategy != "multi_worker":
        check_cluster()
    made = strategy(config.strategy)
    paths: dict[str, Any] = {"data": {"data_dir"}, "teacher": {"path"}, "student": {"path"}}
    if config.distil.aggregation_file is not None:
        paths["distil"] = {"aggregation"}
    workers.check_same("configuration", config.model_dump(mode="json", exclude=paths), differing)
    return made


def check_cluster() -> None:
    """Raises UserError unless TensorFlow can read the environment variable TF_CONFIG, as its strategies do."""
    try:
        tf.distribute.cluster_resolver.TFConfigClusterResolver().cluster_spec()
    except (TypeError, ValueError, RecursionError):
        raise UserError(
            'TF_CONFIG must be unset, or JSON as {"cluster": {"worker": ["host:port"]}, "task": {"type": "worker", "index": 0}}. '
            f"Received: {shortened(os.environ.get('TF_CONFIG'))}"
        ) from None


def check_batch(batch_size: int, replicas: int) -> None:
    """Raises UserError unless a global batch has an example for each replica."""
    if batch_size < replicas:
        raise UserError(f"data.batch_size must be at least the number of replicas, {replicas}. Received: {batch_size}")


def check_execution(config: TrainConfig, replicas: int) -> None:
    """Raises UserError if several replicas are asked for what only one device does."""
    if replicas > 1 and (config.jit_compile or config.steps_per_execution > 1):
        raise UserError(
            "train.jit_compile=true and train.steps_per_execution above 1 need one device. "
            f"Received: {str(config.jit_compile).lower()} and {config.steps_per_execution} on {replicas} replicas"
        )


def steps_at_once(config: TrainConfig, steps: int) -> int:
    """The largest divisor of an epoch's steps up to `train.steps_per_execution`: others would run into the next epoch."""
    return next(count for count in range(min(config.steps_per_execution, steps), 0, -1) if steps % count == 0)


def check_fits(network: FeatureModel, splits: Splits) -> None:
    """Raises UserError unless a network takes the images of the data and has an output for each class."""
    for what in ("num_classes", "image_shape"):
        ours, theirs = getattr(network, what), getattr(splits, what)
        if ours != theirs:
            raise UserError(f"networks must fit the data's {what} {theirs}. Received: {ours} of {network.model.name!r}")


def schedule(config: TrainConfig, steps: int) -> keras.optimizers.schedules.LearningRateSchedule | float:
    """The learning rate over a run of so many steps."""
    if config.schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(config.learning_rate, steps)
    if config.schedule == "step":
        rates = [config.learning_rate * config.decay**i for i in range(len(config.milestones) + 1)]
        return keras.optimizers.schedules.PiecewiseConstantDecay([round(steps * part) - 1 for part in config.milestones], rates)
    return config.learning_rate


def optimizer(config: TrainConfig, steps: int) -> keras.optimizers.Optimizer:
    """SGD on the schedule of a run of so many steps. The L2 term and clipping are not its business: see `update`."""
    average = {} if config.ema is None else {"use_ema": True, "ema_momentum": config.ema}
    sgd = keras.optimizers.SGD(schedule(config, steps), momentum=config.momentum, nesterov=config.nesterov, **average)
    return loss_scaled(sgd, config.precision)


def loss_scaled(optimizer: keras.optimizers.Optimizer, precision: str) -> keras.optimizers.Optimizer:
    """The optimizer; where networks compute in float16, whose small gradients vanish, one of the loss times a scale around it.

    The scale is found as Keras finds it: a step whose gradients are not all finite is left out, and halves it.
    """
    return keras.optimizers.LossScaleOptimizer(optimizer) if named(precision) == "mixed_float16" else optimizer


def update(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor | None],
    variables: Sequence[keras.Variable],
    *,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> None:
    """One step of the optimizer on the gradients, clipped, plus that of 0.5 wd sum ||w||^2.

    Variables that the loss does not reach (gradient None) stay as they are. Gradients must be of the loss
    divided by the number of replicas, because replicas add theirs up.

    Args:
        optimizer: built on a list that holds the variables.
        gradients: of `optimizer.scale_loss(loss)`, one for each variable.
        variables: what is trained.
        weight_decay: wd.
        clip_norm: largest norm of the loss's gradient, over all variables and all replicas together.
    """
    scale = optimizer.scale_loss(1.0)  # the optimizer divides by it what it is given
    if clip_norm is not None or isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        gradients = _together(gradients, None if clip_norm is None else clip_norm * scale)
    share = scale * weight_decay / tf.distribute.get_strategy().num_replicas_in_sync
    reached = [(g + share * v.value if weight_decay else g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
    optimizer.apply([gradient for gradient, _ in reached], [variable for _, variable in reached])


def gradient_norm(optimizer: keras.optimizers.Optimizer, gradients: Sequence[tf.Tensor | None]) -> dict[str, tf.Tensor]:
    """The norm of the gradients by its name, to be watched with the terms of the loss, which some kernels give finite values of NaN.

    Empty under a loss scale, which is found by gradients that overflow.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return {}
    return {"gradient_norm": tf.linalg.global_norm([gradient for gradient in gradients if gradient is not None])}


def sees_whole_gradient(optimizer: keras.optimizers.Optimizer | None, replicas: int) -> bool:
    """Whether the norm of the gradients tells of the loss's own gradient: they are not scaled, nor a replica's part of it."""
    return replicas == 1 and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def _together(gradients: Sequence[tf.Tensor | None], norm: tf.Tensor | float | None) -> list[tf.Tensor | None]:
    """Each replica's part of the sum of all their gradients, clipped to a norm: what is decided by it, all decide alike."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    # Replicas add their gradients up, so each would clip too early by itself: each takes its part of the clipped sum.
    reached = [gradient for gradient in over_replicas(gradients) if gradient is not None]
    if norm is not None:
        reached = tf.clip_by_global_norm(reached, norm)[0]
    parts = iter(reached)
    return [None if gradient is None else next(parts) / replicas for gradient in gradients]


def over_replicas(gradients: Sequence[tf.Tensor | None]) -> list[tf.Tensor | None]:
    """The sum of each gradient over the replicas."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return list(gradients)
    reached = [gradient for gradient in gradients if gradient is not None]
    summed = iter(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, reached))
    return [None if gradient is None else next(summed) for gradient in gradients]


def batchnorm_switch(*layers: keras.layers.Layer) -> Callable[[bool], None]:
    """Lets every BatchNorm inside, but those that are made so, take its statistics over all replicas; or, for saving, no longer."""
    inner = [each for layer in layers for each in layer._flatten_layers()]
    norms = [each for each in inner if isinstance(each, keras.layers.BatchNormalization) and not each.synchronized]

    def switch(on: bool) -> None:
        for norm in norms:
            norm.synchronized = on

    return switch


def within(strategy: tf.distribute.Strategy, model: FeatureModel) -> FeatureModel:
    """The model itself where its variables are the strategy's; else a copy whose variables are (call it in the scope)."""
    if all(strategy.extended.variable_created_in_scope(variable.value) for variable in model.model.variables):
        return model
    return FeatureModel.from_model(copy_of(model.model), model.block_names(), model.tap)


def check_finite(numbers: Mapping[str, float], advice: str) -> None:
    """Raises DivergenceError, naming the first of the numbers that is NaN or infinite."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise DivergenceError(f"the training diverged: {name} is {value} {advice}")


class ProgressCallback(keras.callbacks.Callback):
    """Reports each step of `fit`, and says which epoch it is of.

    Args:
        report: is told steps done, steps in all, and the latest numbers that were read: reading them waits for the device. They
            are the losses, those of the groups of a method together, and the accuracies.
        epochs: in all.
        steps: in an epoch.
        done: steps that were made before.
    """

    def __init__(self, report: Step, epochs: int, steps: int, done: int = 0) -> None:
        super().__init__()
        self._report, self._epochs, self._steps, self._done = report, epochs, steps, done
        self._numbers: dict[str, float] = {}
        self._evaluated: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._read = -math.inf
        self._epoch, self._is_traced = "", False

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self._is_traced = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = f"epoch {epoch + 1}/{self._epochs}"
        status.begin(self._epoch if self._is_traced else f"preparing the first step of {self._epoch}")

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if not self._is_traced:
            self._is_traced = True
            status.begin(self._epoch)
        self._done += self.model.steps_per_execution
        if time.monotonic() - self._read >= _SECONDS_BETWEEN_READS:
            self._read = time.monotonic()
            self._evaluated |= {name: self._ended[name] for name in _EVALUATED if name in self._ended}
            self._numbers = _shown(logs or {}) | self._evaluated
        self._report(self._done, self._epochs * self._steps, self._numbers)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._ended = {} if logs is None else logs  # the callbacks behind this one add to it what they evaluate


def _shown(logs: Mapping[str, float]) -> dict[str, float]:
    """The numbers of a step that a display has room for."""
    numbers: dict[str, float] = {}
    for name in sorted(logs.keys() - _NO_LOSSES, key=lambda name: (name != "total_loss", name != "accuracy", name)):
        method = name.partition("/")[0]
        numbers[method] = numbers.get(method, 0.0) + float(logs[name])
    return numbers


class MetricsLog(keras.callbacks.Callback):
    """Keeps the numbers of each epoch, and writes them as lines of a JSON Lines file.

    Args:
        path: of the file, written anew after each epoch; None writes nothing.

    Attributes:
        rows: the numbers of each epoch.
    """

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []
        self._path = path

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        numbers = {name: float(value) for name, value in (logs or {}).items()}
        check_finite(numbers, f"in epoch {epoch + 1}: lower the learning rate")
        self.rows.append({"epoch": epoch + 1, **numbers})
        if self._path is not None:
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))


def peak_memory() -> float:
    """Most memory that this process has had so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not from getrusage, where a process begins with the peak of the one that started it.
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Stopwatch:
    """Time, speed and memory of a stage, as `result.json` holds them."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def result(self, steps: int, batch_size: int, seconds_before: float = 0.0) -> dict[str, Any]:
        """Steps, seconds (with those before an interruption), examples a second; the peak is of the whole process so far, in MiB."""
        seconds = seconds_before + time.perf_counter() - self._start
        return {
            "steps": steps,
            "seconds": round(seconds, 3),
            "examples_per_second": round(steps * batch_size / seconds, 1),
            "peak_memory_mb": round(peak_memory(), 1),
            "versions": {name: version(name) for name in ("tensorflow", "keras", "numpy")},
        }
