"""Terms that are no longer finite: the first such step, term and learning rate stay on the device until they are read."""

import math
import re
from collections.abc import Mapping

import keras
import tensorflow as tf

from dfa_tf.errors import DivergenceError

STEPS_BETWEEN_CHECKS = 50
_GROUP = re.compile(r"group(\d+)")


class FiniteWatch:
    """Remembers the first term that is NaN or infinite.

    Nothing is read back before `check`, so that a step need not wait for the device. Made in the scope of the strategy
    under which `note` is called.

    Args:
        advice: what the user can do, the end of the message.
    """

    def __init__(self, advice: str) -> None:
        self._advice = advice
        self._names: list[str] = []
        # Replicas record the same, because they add up their terms first: each keeps a copy, and the first one is read.
        kept = {
            "trainable": False,
            "synchronization": tf.VariableSynchronization.ON_READ,
            "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
        }
        self._place = tf.Variable([-1, -1], dtype=tf.int64, name="first_step_and_term", **kept)
        self._numbers = tf.Variable([0.0, 0.0], dtype=tf.float32, name="value_and_learning_rate", **kept)

    def note(self, terms: Mapping[str, tf.Tensor], step: tf.Tensor, learning_rate: tf.Tensor | float) -> dict[str, tf.Tensor]:
        """Checks the terms of a step; called within the step's tf.function, before the optimizer counts it.

        Args:
            terms: scalars by name; a name may include a group, such as `"margin/group2"`. If several are not finite, the first one is
                named.
            step: updates before this one.
            learning_rate: of this step.

        Returns:
            The terms, float32, each the mean over the replicas.
        """
        start = len(self._names)
        self._names += terms
        values = tf.stack([tf.cast(value, tf.float32) for value in terms.values()])
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            values = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, values)
        wrong = tf.logical_not(tf.math.is_finite(values))
        index = tf.argmax(wrong)
        is_first = tf.logical_and(tf.reduce_any(wrong), self._place[0] < 0)
        place = tf.stack([tf.cast(step, tf.int64) + 1, index + start])
        numbers = tf.stack([values[index], tf.cast(learning_rate, tf.float32)])
        self._place.assign(tf.where(is_first, place, self._place))
        self._numbers.assign(tf.where(is_first, numbers, self._numbers))
        return dict(zip(terms, tf.unstack(values), strict=True))

    def check(self) -> None:
        """Raises DivergenceError, naming term, group, step and learning rate, if a term was not finite."""
        step, index = self._place.numpy().tolist()
        if step < 0:
            return
        value, rate = self._numbers.numpy().tolist()
        raise DivergenceError(
            f"the training diverged: {_in_words(self._names[index])} is {value} at step {step}, where the learning rate is {rate:.3g}. "
            f"{self._advice}"
        )


def _in_words(name: str) -> str:
    """`"margin/group2"` as `"margin of group 2"`."""
    parts = name.split("/")
    groups = [match[1] for part in parts if (match := _GROUP.fullmatch(part))]
    term = "/".join(part for part in parts if not _GROUP.fullmatch(part))
    return f"{term} of group {groups[0]}" if groups else term


class FiniteCallback(keras.callbacks.Callback):
    """Ends `fit` soon after a term is no longer finite.

    Args:
        watch: records the terms of the steps; checked at the end of each epoch, and every `STEPS_BETWEEN_CHECKS` steps.
    """

    def __init__(self, watch: FiniteWatch) -> None:
        super().__init__()
        self._watch = watch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if (batch + 1) % STEPS_BETWEEN_CHECKS < self.model.steps_per_execution:
            self._watch.check()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._watch.check()


def check_finite(numbers: Mapping[str, float], advice: str) -> None:
    """Raises DivergenceError, naming the first of the numbers that is NaN or infinite."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise DivergenceError(f"the training diverged: {name} is {value} {advice}")
