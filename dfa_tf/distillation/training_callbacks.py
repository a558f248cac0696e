"""The callbacks that follow a training: log, evaluation, best epoch, checkpoints, TensorBoard, display."""

from collections.abc import Sequence
from pathlib import Path

import keras

from dfa_tf.config import TrainConfig
from dfa_tf.distillation.callbacks import BestEpoch, KerasNames
from dfa_tf.distillation.distiller import Distiller
from dfa_tf.distillation.resuming import ResumingCallback
from dfa_tf.images.splits import Splits
from dfa_tf.training.callbacks import MetricsLog, ProgressCallback
from dfa_tf.training.context import StageContext
from dfa_tf.training.divergence import FiniteCallback
from dfa_tf.training.evaluation import EvaluationCallback
from dfa_tf.training.tensorboard import EpochEvents


class TrainingCallbacks:
    """The callbacks of a training in their order, and its numbers at the end.

    Args:
        deployed: the served student.
        distiller: the model that is trained.
        splits: the data.
        train: the schedule.
        context: display, checkpoints and events.
        steps: of an epoch.
        directory: of `metrics.jsonl`; None writes none.
        callbacks: of the user.

    Attributes:
        log: the numbers of each epoch.
        done: updates that a checkpoint holds.
        resumes: whether an interrupted training can resume.
    """

    def __init__(
        self,
        deployed: keras.Model,
        distiller: Distiller,
        splits: Splits,
        train: TrainConfig,
        context: StageContext,
        *,
        steps: int,
        directory: Path | None,
        callbacks: Sequence[keras.callbacks.Callback],
    ) -> None:
        self._splits, self._train, self._users = splits, train, callbacks
        self.log = MetricsLog(directory / "metrics.jsonl" if directory else None)
        self._evaluation = EvaluationCallback(deployed, splits, train)
        self._best = BestEpoch(deployed) if train.choose_best else None
        self._resuming = None if context.checkpoints is None else ResumingCallback(context.checkpoints, self.log, steps, self._best)
        self.resumes, self.done = self._resuming is not None, 0 if self._resuming is None else self._resuming.step
        self._events = None if context.events is None else EpochEvents(context.events, self.log)
        # Nothing is written before the report.
        first = None if context.report is None else ProgressCallback(context.report, train.epochs, steps, self.done)
        names = KerasNames(callbacks, distiller, splits)
        ours = [first, FiniteCallback(distiller.watch), self._evaluation, self._best, self.log, self._events, self._resuming, names]
        self._ours = [callback for callback in ours if callback is not None]

    def restore(self, distiller: Distiller) -> None:
        """Restores the state of the checkpoint, if there is one, to a Distiller whose optimizer is built."""
        if self._resuming is not None:
            self._resuming.restore(distiller)

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """The callbacks of one call of `fit`."""
        # Averaging comes first, so that the others see the averaged weights in the student. It is made for each call, because it
        # belongs to one optimizer.
        averaging = [] if self._train.ema is None else [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]
        return [*averaging, *self._ours, *self._users]

    def end(self) -> dict[str, float]:
        """Restores the best epoch's weights if requested. Returns the numbers of the resulting student."""
        self._evaluation.evaluate_into(self.log.rows[-1])
        if self._best is not None:
            self._best.restore()
        final = {} if self._best or self._users else self.log.rows[-1]  # callbacks may restore weights too, as EarlyStopping does
        self._evaluation.evaluate_into(final)
        if self._events is not None:
            self._events.end(self._evaluation.predict, self._splits)
        return final
