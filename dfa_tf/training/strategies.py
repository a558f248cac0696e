"""The strategy of a training: over which devices it runs, and what must fit them."""

import functools
import os
from typing import Any

import tensorflow as tf

from dfa_tf.config import Config, TrainConfig
from dfa_tf.errors import UserError, shortened
from dfa_tf.images.splits import Splits
from dfa_tf.networks.copying import copy_of
from dfa_tf.networks.features import FeatureModel
from dfa_tf.process import workers
from dfa_tf.storage.reading import differing
from dfa_tf.training.multi_worker import multi_worker_strategy


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
        UserError: as `strategy` does; or if the workers have different configurations, apart from paths.
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


def in_scope(strategy: tf.distribute.Strategy, model: FeatureModel) -> FeatureModel:
    """The model itself where its variables are the strategy's; else a copy whose variables are (call it in the scope)."""
    if all(strategy.extended.variable_created_in_scope(variable.value) for variable in model.model.variables):
        return model
    return model.with_model(copy_of(model.model))
