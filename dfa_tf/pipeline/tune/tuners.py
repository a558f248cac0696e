"""What chooses the values of trials: the oracles of KerasTuner, asked and told.

An oracle is not read back after a stop, but asked anew: with one seed and the same answers it asks for the same trials. KerasTuner's
own state would not do, for it lacks the random numbers of the Bayesian oracle, and is written in several files that a kill can part.
Nor is `keras_tuner.Tuner.search` used, which takes any exception for a failed trial.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras_tuner
import threadpoolctl
from keras_tuner.engine.base_tuner import BaseTuner
from pydantic import JsonValue

from dfa_tf.config import Config
from dfa_tf.config.space import Choice, Domain
from dfa_tf.errors import UserError
from dfa_tf.storage.scratch import scratch_folder

_NEVER = 2**31  # failures in a row after which an oracle would give up
_NAME = "tuner"


class Tuner:
    """Chooses the values of one trial after the other.

    Args:
        config: its `tune`, its seed, and for Hyperband (Li et al. 2018) the epochs of the student, which are the most that a
            trial gets.
        folder: for the files of KerasTuner, of which there are none in it.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._space, self._objective = config.tune.space, config.tune.objective
        with _quietly():
            self._oracle = _oracle(config)
            BaseTuner(self._oracle, directory=str(folder), project_name=_NAME)  # tells the oracle where its files are
        self._oracle.verbose = 0
        self._trial: Any = None

    def ask(self) -> dict[str, JsonValue] | None:
        """The values of the next trial by dotted name, those of Hyperband with `distil.epochs`; None where there is none.

        The trial before must have been told of.
        """
        with _quietly():
            self._trial = self._oracle.create_trial(_NAME)
        if self._trial.status != "RUNNING":
            return None
        chosen = self._trial.hyperparameters.values
        values = {name: _value(domain, chosen[name]) for name, domain in self._space.items()}
        return values | ({"distil.epochs": chosen["tuner/epochs"]} if "tuner/epochs" in chosen else {})

    def tell(self, objective: float | None) -> None:
        """Takes what the trial that was asked for came to; None where it failed."""
        with _quietly():
            if objective is not None:
                self._oracle.update_trial(self._trial.trial_id, {self._objective: objective})
            self._trial.status = "FAILED" if objective is None else "COMPLETED"
            self._oracle.end_trial(self._trial)


def count_trials(config: Config) -> int:
    """How many trials there will be at most.

    Raises:
        UserError: if Hyperband would run out of values before it comes to the trials of all epochs.
    """
    if config.tune.tuner != "hyperband":
        return config.tune.trials
    asked: list[dict[str, JsonValue]] = []
    with scratch_folder() as folder:
        tuner = Tuner(config, folder)
        while (values := tuner.ask()) is not None:  # its brackets and its random values do not depend on what it is told
            asked.append(values)
            tuner.tell(0.0)
    if not asked or asked[-1]["distil.epochs"] != config.student_train.epochs:
        raise UserError(
            f"tune.tuner=hyperband needs a space with more values: those of this one are used up after {len(asked)} trials. "
            "Use tune.tuner=random"
        )
    return len(asked)


def _oracle(config: Config) -> keras_tuner.Oracle:
    tune = config.tune
    usual: dict[str, Any] = {
        "objective": keras_tuner.Objective(tune.objective, "max" if tune.objective == "validation_accuracy" else "min"),
        "hyperparameters": _hyperparameters(tune.space),
        "seed": config.seed + 1,  # 0 would be taken for none, and a seed be drawn
        "max_consecutive_failed_trials": _NEVER,
    }
    if tune.tuner == "hyperband":
        return keras_tuner.oracles.HyperbandOracle(max_epochs=config.student_train.epochs, factor=tune.factor, **usual)
    if tune.tuner == "bayesian":
        return keras_tuner.oracles.BayesianOptimizationOracle(max_trials=tune.trials, num_initial_points=tune.initial_trials, **usual)
    return keras_tuner.oracles.RandomSearchOracle(max_trials=tune.trials, **usual)


def _hyperparameters(space: dict[str, Domain]) -> keras_tuner.HyperParameters:
    made = keras_tuner.HyperParameters()
    for name, domain in space.items():
        if isinstance(domain, Choice):
            made.Choice(name, [json.dumps(value) for value in domain.values])  # of one type, as it must be
        else:
            kind = made.Int if domain.kind == "int" else made.Float
            kind(name, domain.low, domain.high, step=domain.step, sampling="log" if domain.log else "linear")
    return made


def _value(domain: Domain, chosen: Any) -> JsonValue:
    """The value of a field; within its bounds, which KerasTuner can exceed: by rounding, and by 1 in a logarithmic range of integers."""
    if isinstance(domain, Choice):
        value: JsonValue = json.loads(chosen)
        return value
    return min(max(chosen, domain.low), domain.high)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps back the warnings of KerasTuner, of names that Python will drop, and of its Gaussian process, that it is not sure.

    In one thread: for its small matrices several take three times as long.
    """
    with warnings.catch_warnings(), threadpoolctl.threadpool_limits(1):
        warnings.simplefilter("ignore")
        yield
