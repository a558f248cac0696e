"""Splits batches into parts, one for each replica of a strategy; and `fit` with replicas of several workers."""

from typing import Any

import keras
import tensorflow as tf


def distributed(batches: tf.data.Dataset, strategy: tf.distribute.Strategy) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """An endless data set that gives each replica of a strategy its own part of every batch, in the batch's order.

    If the replicas do not divide a batch, its parts differ by one example. Every worker makes the whole batch, so that augmentation
    does not depend on the workers.

    Args:
        batches: endless; elements are a tensor or a structure of tensors of one first dimension.
        strategy: on one device the batches stay as they are.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return batches

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        here = replicas // context.num_input_pipelines
        mine = tf.data.Dataset.range(context.input_pipeline_id * here, (context.input_pipeline_id + 1) * here)

        def parts_of(*items: Any) -> tf.data.Dataset:
            batch = items if isinstance(batches.element_spec, tuple) else items[0]  # a function gets the items of a tuple one by one
            return mine.map(lambda replica: _part(batch, replica, replicas))

        parts = batches.flat_map(parts_of)
        # Declared: otherwise the workers would ask one another in every step whether there are more data.
        return parts.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)).prefetch(tf.data.AUTOTUNE)

    return strategy.distribute_datasets_from_function(of_worker)


def _part(batch: Any, replica: tf.Tensor, replicas: int) -> Any:
    """The part of a batch that one of the replicas takes."""
    size = tf.shape(tf.nest.flatten(batch)[0], tf.int64)[0]
    first, end = size * replica // replicas, size * (replica + 1) // replicas
    return tf.nest.map_structure(lambda values: values[first:end], batch)


class ReplicatedModel(keras.Model):
    """A model whose `fit` runs its `train_step` under tf.distribute.MultiWorkerMirroredStrategy too."""

    def make_train_function(self, force: bool = False) -> None:
        """As in Keras, whose step fails with replicas of several workers: it takes the mean of the logs over an axis that they lack."""
        super().make_train_function(force)
        strategy = self.distribute_strategy
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return

        @tf.function
        def step(batch: Any) -> dict[str, tf.Tensor]:
            logs = strategy.run(self.train_step, args=(batch,))
            return {name: strategy.experimental_local_results(value)[0] for name, value in logs.items()}

        self.train_function: Any = lambda iterator: step(next(iterator))
