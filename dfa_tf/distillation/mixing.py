"""Mixup of a batch, sample weights included."""

import tensorflow as tf

from dfa_tf.images.augmentation import mix
from dfa_tf.methods import Batch


def mixed(batch: Batch, step: tf.Tensor, *, alpha: float, seed: int, num_classes: int) -> Batch:
    """A batch of mixed pairs of images, with mixed labels; called in a replica.

    Args:
        batch: of this replica.
        step: int64, the updates before this one; with the seed and the replica it determines the draw.
        alpha: of the Beta distribution of the shares; 0 mixes nothing.
        seed: of the run.
        num_classes: columns of the soft labels.
    """
    if not alpha:
        return batch
    context = tf.distribute.get_replica_context()
    replica = tf.cast(context.replica_id_in_sync_group, tf.int64)
    draw = [seed, step * context.num_replicas_in_sync + replica]
    labels, weights = batch.labels, batch.weights
    if weights is not None:
        # Each label keeps its weight in the mixture: the mixture's weight is the sum of both, each times its share.
        soft = labels if labels.shape.rank == 2 else tf.one_hot(labels, num_classes)
        labels = weights[:, tf.newaxis] * tf.cast(soft, tf.float32)
    images, labels = mix(batch.images, labels, num_classes=num_classes, alpha=alpha, seed=draw)
    if weights is not None:
        weights = tf.reduce_sum(labels, axis=1)
        labels = tf.math.divide_no_nan(labels, weights[:, tf.newaxis])
    return batch._replace(images=images, labels=labels, weights=weights)
