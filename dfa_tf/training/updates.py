"""The optimizer with its schedule, and its update with clipping and the L2 term."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from dfa_tf.config import TrainConfig
from dfa_tf.networks.precision import policy_name


def schedule(config: TrainConfig, steps: int) -> keras.optimizers.schedules.LearningRateSchedule | float:
    """The learning rate over a run of this many steps."""
    if config.schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(config.learning_rate, steps)
    if config.schedule == "step":
        rates = [config.learning_rate * config.decay**i for i in range(len(config.milestones) + 1)]
        return keras.optimizers.schedules.PiecewiseConstantDecay([round(steps * part) - 1 for part in config.milestones], rates)
    return config.learning_rate


def optimizer(config: TrainConfig, steps: int) -> keras.optimizers.Optimizer:
    """SGD with the schedule of a run of this many steps. `update` adds the L2 term and clips."""
    average = {} if config.ema is None else {"use_ema": True, "ema_momentum": config.ema}
    sgd = keras.optimizers.SGD(schedule(config, steps), momentum=config.momentum, nesterov=config.nesterov, **average)
    return loss_scaled(sgd, config.precision)


def loss_scaled(optimizer: keras.optimizers.Optimizer, precision: str) -> keras.optimizers.Optimizer:
    """The optimizer, wrapped with loss scaling if networks compute in float16, where small gradients vanish.

    Keras adapts the scale: a step whose gradients are not all finite is left out, and halves it.
    """
    return keras.optimizers.LossScaleOptimizer(optimizer) if policy_name(precision) == "mixed_float16" else optimizer


def update(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor | None],
    variables: Sequence[keras.Variable],
    *,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> None:
    """One step of the optimizer on the clipped gradients, plus the gradient of 0.5 wd sum ||w||^2.

    Variables that the loss does not reach (gradient None) stay as they are. Gradients must be of the loss
    divided by the number of replicas, because replicas add them up.

    Args:
        optimizer: built on a list that holds the variables.
        gradients: of `optimizer.scale_loss(loss)`, one for each variable.
        variables: the trained ones.
        weight_decay: wd.
        clip_norm: largest norm of the loss's gradient, over all variables and all replicas together.
    """
    scale = optimizer.scale_loss(1.0)  # the optimizer divides the gradients by it
    if clip_norm is not None or isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        gradients = _together(gradients, None if clip_norm is None else clip_norm * scale)
    share = scale * weight_decay / tf.distribute.get_strategy().num_replicas_in_sync
    reached = [(g + share * v.value if weight_decay else g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
    optimizer.apply([gradient for gradient, _ in reached], [variable for _, variable in reached])


def gradient_norm(optimizer: keras.optimizers.Optimizer, gradients: Sequence[tf.Tensor | None]) -> dict[str, tf.Tensor]:
    """The norm of the gradients by name, watched beside the terms of the loss: some kernels turn NaN into finite terms.

    Empty under a loss scale, which is adapted by letting gradients overflow.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return {}
    return {"gradient_norm": tf.linalg.global_norm([gradient for gradient in gradients if gradient is not None])}


def sees_whole_gradient(optimizer: keras.optimizers.Optimizer | None, replicas: int) -> bool:
    """Whether the norm of the gradients is that of the loss's gradient: they are neither scaled nor one replica's part of it."""
    return replicas == 1 and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def _together(gradients: Sequence[tf.Tensor | None], norm: tf.Tensor | float | None) -> list[tf.Tensor | None]:
    """Each replica's part of the sum of all their gradients, clipped to a norm, so that all replicas decide alike."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    # Replicas add up their gradients. Each would clip too early if it clipped its own, so each takes its part of the clipped sum.
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
