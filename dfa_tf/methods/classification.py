"""Logits against labels: cross-entropy, accuracy, and means over the examples of a batch."""

import tensorflow as tf

from dfa_tf.errors import UserError


def replica_share(labels: tf.Tensor) -> tf.Tensor | None:
    """The factor on this replica's mean that turns the mean over the replicas into the mean over all examples.

    Replicas may have unequal parts of a batch; some have no examples of a small batch.

    Args:
        labels: of this replica's part, `[B, ...]`.

    Returns:
        The number of replicas times B, divided by the examples of all of them: a scalar, float32, 1 if all have the same number. None
        on one device.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas == 1:
        return None
    ours = tf.cast(tf.shape(labels)[0], tf.float32)
    return replicas * ours / tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, ours)


def weighted_mean(term: tf.Tensor, weights: tf.Tensor | None, share: tf.Tensor | None = None) -> tf.Tensor:
    """The mean of a term over the batch, each example times its sample weight: sum of w l, divided by the batch size.

    The sum is divided by B and not by the sum of the weights, as in Keras by default (`sum_over_batch_size`): an example of weight 2
    counts like two, and a weight of 1 for all changes nothing.

    Args:
        term: float32, per example `[B]`; a scalar is a statistic of the batch, which has no weights, and stays as it is.
        weights: float32 `[B]`, or None if all examples count equally.
        share: of this replica, from `replica_share`; the mean is multiplied by it. A statistic of the batch is computed on each
            replica's part, and counts as much as that part.

    Returns:
        A scalar, float32.
    """
    mean = tf.reduce_mean(term if weights is None or term.shape.rank == 0 else weights * term)
    # The mean of no examples is NaN. Its gradient is not NaN: the tensor has no elements.
    return mean if share is None else share * tf.where(share > 0, mean, 0.0)


def classes_of(labels: tf.Tensor) -> tf.Tensor:
    """The class of each example, int64 `[B]`: for soft labels `[B, num_classes]` the most probable one."""
    return tf.argmax(labels, axis=-1) if labels.shape.rank == 2 else tf.cast(labels, tf.int64)


def correct(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """1 where the largest logit is that of the label's class, else 0: float32 `[B]`."""
    return tf.cast(tf.equal(tf.argmax(logits, axis=-1), classes_of(labels)), tf.float32)


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """Cross-entropy of logits with labels.

    Args:
        labels: classes, integers `[B]`, or soft labels, float32 `[B, num_classes]`.
        logits: `[B, num_classes]`.
        smoothing: share of the label's probability that is spread evenly over all classes, 0..1.

    Returns:
        Float32 `[B]`.
    """
    logits = tf.cast(logits, tf.float32)
    if smoothing:
        even = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=1)
        return (1 - smoothing) * cross_entropy(labels, logits) + smoothing * even
    if labels.shape.rank == 2:
        if labels.shape[1] != logits.shape[1]:
            raise UserError(f"soft labels need a column for each of {logits.shape[1]} classes. Received: labels of shape {labels.shape}")
        return tf.nn.softmax_cross_entropy_with_logits(labels, logits)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
