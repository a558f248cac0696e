"""What a run directory holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import Config
from dfa_tf.distillation.preparing import needs_search
from dfa_tf.export.parity import STUDENT, Parity
from dfa_tf.reporting.predictions import Predictions
from dfa_tf.reporting.results import Evaluated, Evaluation, StageResult, TrajectoryRow


class Network(NamedTuple):
    """A network of the run.

    Attributes:
        title: the teacher, the plain student, or the student of a method.
        directory: its own in the run directory.
        result: of its stage; None where it is not done, or was done elsewhere.
        evaluated: its row of the evaluation; None where the current file was not evaluated.
        history: the numbers of each epoch; empty where it was not trained here.
        digest: of its file; empty where there is none.
    """

    title: str
    directory: Path
    result: StageResult | None
    evaluated: Evaluated | None
    history: list[dict[str, float]]
    digest: str

    @property
    def method(self) -> str | None:
        """As the evaluation names it: None for the teacher."""
        return None if self.title == "teacher" else self.directory.name


@dataclass(frozen=True)
class Record:
    """The content of a run directory.

    Attributes:
        path: of the run directory, as it was given.
        config: of the last stage that ran.
        networks: those that are done or begun: the teacher, the plain student, the others by name.
        evaluation: None where nothing was evaluated.
        predictions: the answers of the networks on the test set; None where they were not kept.
        searched: the aggregation weights of the search.
        used: the aggregation weights that the run's student was distilled with.
        search: the search's result.
        trajectory: the course of the search.
        parity: of the exported files by format, with the student itself as `dfa_tf.export.parity.STUDENT`; empty where the current
            student was not exported.
    """

    path: Path
    config: Config
    networks: list[Network]
    evaluation: Evaluation | None
    predictions: Predictions | None
    searched: AggregationWeights | None
    used: AggregationWeights | None
    search: StageResult | None
    trajectory: list[TrajectoryRow]
    parity: dict[str, Parity]

    @property
    def name(self) -> str:
        """Of the run directory."""
        return self.path.resolve().name

    @property
    def missing(self) -> list[str]:
        """What is missing, each with the command that makes it."""
        config, trained = self.config, [network for network in self.networks if network.result is not None]
        done = {network.method for network in trained}
        lines = []
        if None not in done:
            lines.append("The teacher is not trained in this directory: bin/train.py trains it.")
        if "plain" not in done:
            lines.append("The plain student is not trained: bin/train.py trains it.")
        if needs_search(config) and self.search is None:
            lines.append("The aggregation weights are not searched: bin/search.py searches them.")
        if config.method not in done | {"plain"}:
            lines.append(f"The {config.method} student is not trained: bin/distil.py trains it.")
        unseen = [network.title for network in trained if network.evaluated is None]
        if unseen:
            lines.append(f"Not evaluated as it is now: {', '.join(unseen)}; bin/evaluate.py does that.")
        elif trained and self.predictions is None:
            lines.append("There are no answers on a test set: bin/evaluate.py keeps them, if there is a test set.")
        if config.method in done and not set(self.parity) - {STUDENT}:
            lines.append(f"The {config.method} student is not exported as it is now: bin/export.py does that.")
        return lines
