"""The progress of a search, its state in checkpoints, and the rows of its epochs."""

import logging
import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from dfa_tf.aggregation.bridge import Bridge
from dfa_tf.aggregation.weights import GroupWeights
from dfa_tf.config import SearchConfig
from dfa_tf.networks.features import FeatureModel
from dfa_tf.process import interruption, status
from dfa_tf.process.status import ReportStep
from dfa_tf.training.checkpoints import Checkpoints
from dfa_tf.training.divergence import FiniteWatch
from dfa_tf.training.tensorboard import EventLog

_LOG = logging.getLogger(__name__)
Row = dict[str, float | int | str]


class Progress:
    """The progress of a search: all of its state beside the networks.

    Args:
        bridge: holds the networks and beta.
        steps: in an epoch.
        config: of the search.
        checkpoints: of the search; if one exists, the networks get its values and the search resumes after it.

    Attributes:
        epochs: of a pass.
        steps_of_pass: weight updates of a pass.
        done: weight updates of the schedule, over all passes, including those skipped after a collapse.
        updates: weight updates that were made.
        beta_updates: updates of beta that were made.
        trajectory: the rows of the finished epochs.
        sums: the terms of the epoch that has begun.
    """

    def __init__(self, bridge: Bridge, steps: int, config: SearchConfig, checkpoints: Checkpoints | None) -> None:
        self._steps, self._config, self._checkpoints = steps, config, checkpoints
        self.epochs, self.steps_of_pass = config.epochs, config.epochs * steps
        self._networks = [variable for layer in (*bridge.networks, *bridge.aggregations) for variable in layer.variables]
        self._watch: FiniteWatch | None = None
        self._optimizer_variables: Sequence[keras.Variable] = ()
        self.done, self.updates, self.beta_updates = 0, 0, 0
        self.trajectory, self.sums = list[Row](), _Means()
        self._saved = None if checkpoints is None else checkpoints.latest()
        if self._saved is not None:
            self._saved.assign("networks", self._networks)
            notes = self._saved.notes
            self.done, self.updates, self.beta_updates = self._saved.step, notes["updates"], notes["beta_updates"]
            self.trajectory, self.sums = notes["trajectory"], _Means(notes["sums"])

    @property
    def _of_pass(self) -> int:
        return self.done % self.steps_of_pass

    @property
    def passes_done(self) -> int:
        return self.done // self.steps_of_pass

    @property
    def beta_moves(self) -> bool:
        """Whether the next step moves beta: the first epochs of a pass warm up."""
        return self._of_pass >= self._config.warmup_epochs * self._steps

    @property
    def epoch_ended(self) -> bool:
        return self.done % self._steps == 0

    @property
    def epoch(self) -> int:
        """The epoch of the pass that holds the last step, counted from 1."""
        return (self.done - 1) // self._steps % self._config.epochs + 1

    def begin(self, watch: FiniteWatch, optimizer_variables: Sequence[keras.Variable]) -> None:
        """Begins a pass, or resumes within it."""
        self._watch, self._optimizer_variables = watch, optimizer_variables
        if self._saved is not None and self._of_pass:
            self._saved.assign("optimizers", optimizer_variables)
        self._saved = None

    def add(self, half: str, terms: dict[str, tf.Tensor]) -> None:
        """Records the terms of an update: of beta on the search half, of the weights on the training half."""
        self.sums.add(half, terms)
        if half == "search":
            self.beta_updates += 1
        else:
            self.updates += 1
            self.done += 1

    def end_epoch(self, rows: list[Row]) -> None:
        """Records an epoch's rows; after a collapse, skips the rest of the pass if `stop_on_collapse` is set."""
        collapsed = _warn_of_collapse(rows, self.trajectory)
        self.trajectory += rows
        self.sums = _Means()
        if collapsed and self._config.stop_on_collapse and self._of_pass:
            self.done += self.steps_of_pass - self._of_pass

    def save_where_wanted(self) -> None:
        """Saves the state at the configured steps, after each epoch, and when a signal requests a stop."""
        if self._watch is None or self._checkpoints is None or not (self.epoch_ended or self._checkpoints.wanted(self.done)):
            return
        self._watch.check()  # a state that is not finite is not worth saving
        parts = {"networks": self._networks, "optimizers": self._optimizer_variables}
        numbers = {"updates": self.updates, "beta_updates": self.beta_updates}
        self._checkpoints.save(self.done, parts, {**numbers, "trajectory": self.trajectory, "sums": self.sums.values})
        if interruption.requested():
            raise KeyboardInterrupt


class PassReporter:
    """Reports a pass: each step to `report` and the status line, each epoch to TensorBoard."""

    def __init__(
        self, progress: Progress, report: ReportStep | None, events: EventLog | None, *, number: int, passes: int, total: int
    ) -> None:
        self._progress, self._report, self._total = progress, report, total
        self._where = f"group {number + 1}/{passes}, " if passes > 1 else ""
        self._events = events if events is None or passes == 1 else events.part(f"group{number + 1}")
        self._before = progress.updates
        status.begin(f"{self._where}preparing the first step")

    def step(self) -> None:
        progress = self._progress
        status.begin(f"{self._where}epoch {progress.epoch}/{progress.epochs}")
        if self._report is not None:
            self._report(progress.done, self._total, progress.sums.latest())

    def epoch(self, rows: list[Row], means: dict[str, float]) -> None:
        """Reports an epoch that has ended: its rows, and the means of all terms by half, group and name."""
        steps, self._before = self._progress.updates - self._before, self._progress.updates
        if self._events is not None:
            self._events.search_epoch(rows, self._progress.trajectory, means, steps)


class _Means:
    """Means over an epoch, by half and term.

    Attributes:
        values: of each step so far.
    """

    def __init__(self, values: dict[str, list[float]] | None = None) -> None:
        self.values = values or {}

    def add(self, half: str, terms: dict[str, tf.Tensor]) -> None:
        for name, value in terms.items():
            self.values.setdefault(f"{half}/{name}", []).append(float(value))

    def latest(self) -> dict[str, float]:
        return {f"{half} loss": values[-1] for half in ("train", "search") if (values := self.values.get(f"{half}/loss"))}

    def means(self) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in self.values.items()}


def rows_of(
    bridge: Bridge, teacher: FeatureModel, groups: Sequence[int], epoch: int, means: dict[str, float], *, bound: float
) -> list[Row]:
    """The rows of an epoch: one for each block of the groups that are searched.

    Args:
        bridge: holds beta.
        teacher: the rows are for its blocks.
        groups: indices of the groups that are searched.
        epoch: counted from 1.
        means: of the terms over the epoch, by half, group and name.
        bound: alpha of N blocks has collapsed if its entropy is below this share of ln N.
    """
    rows: list[Row] = []
    for group in groups:
        # A term is its group's (`train/group2/st`) or the whole pass's (`train/loss`); a row holds both.
        prefix = f"group{group + 1}/"
        terms = {name.replace(prefix, ""): value for name, value in means.items() if prefix in name or "/group" not in name}
        weights = group_weights(bridge, teacher, group)
        about = {"entropy": weights.entropy, "collapsed": int(weights.entropy < bound * math.log(len(weights.alpha)))}
        for block, beta, alpha in zip(weights.blocks, weights.beta or (), weights.alpha, strict=True):
            row: Row = {"epoch": epoch, "group": group + 1, "block": block, "beta": beta, "alpha": alpha}
            rows.append({**row, **about, **terms})
    return rows


def _warn_of_collapse(rows: Sequence[Row], before: Sequence[Row]) -> bool:
    """Whether a group has collapsed in these rows of an epoch. Logs a warning if it had not in the rows before."""
    known = {row["group"] for row in before if row["collapsed"]}
    collapsed = {row["group"]: row for row in rows if row["collapsed"]}
    for group, row in collapsed.items():
        if group not in known:
            _LOG.warning(
                "alpha of group %d has collapsed by epoch %d, to an entropy of %.2g nats: nearly all weight is on one block. "
                "A smaller search.beta_learning_rate avoids this; search.stop_on_collapse ends the search when it happens",
                group, row["epoch"], row["entropy"],
            )  # fmt: skip
    return bool(collapsed)


def group_weights(bridge: Bridge, teacher: FeatureModel, group: int) -> GroupWeights:
    """A group's current beta and alpha."""
    layer = bridge.aggregations[group]
    return GroupWeights(
        blocks=tuple(block.name for block in teacher.groups[group].blocks),
        beta=tuple(layer.beta.numpy().tolist()),
        alpha=tuple(layer.alpha.numpy().tolist()),
    )
