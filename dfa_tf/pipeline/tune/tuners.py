"""The tuner: KerasTuner's oracles choose the values of trials.

After a stop an oracle is not restored but asked again from the start: with the same seed and the same results it proposes the same
trials. KerasTuner's own state is not enough: it lacks the random numbers of the Bayesian oracle, and consists of several files, of
which a kill can leave only some. `keras_tuner.Tuner.search` is not used because it takes any exception for a failed trial.
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

_NEVER = 2**31  # consecutive failures after which an oracle would give up
_NAME = "tuner"


class Tuner:
    """Chooses the values of one trial after the other.

    Args:
        config: its `tune`, its seed, and for Hyperband (Li et al. 2018) the epochs of the student, which are the most that a
            trial gets.
        folder: for the files of KerasTuner; empty.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._space, self._objective = config.tune.space, config.tune.objective
        with _quietly():
            self._oracle = _oracle(config)
            BaseTuner(self._oracle, directory=str(folder), project_name=_NAME)  # gives the oracle its folder
        self._oracle.verbose = 0
        self._trial: Any = None

    def ask(self) -> dict[str, JsonValue] | None:
        """The values of the next trial by dotted name, those of Hyperband with `distil.epochs`; None after the last one.

        The result of the trial before must have been given to `tell`.
        """
        with _quietly():
            self._trial = self._oracle.create_trial(_NAME)
        if self._trial.status != "RUNNING":
            return None
        chosen = self._trial.hyperparameters.values
        values = {name: _value(domain, chosen[name]) for name, domain in self._space.items()}
        return values | ({"distil.epochs": chosen["tuner/epochs"]} if "tuner/epochs" in chosen else {})

    def tell(self, objective: float | None) -> None:
        """Takes the objective that the last trial of `ask` reached; None where it failed."""
        with _quietly():
            if objective is not None:
                self._oracle.update_trial(self._trial.trial_id, {self._objective: objective})
            self._trial.status = "FAILED" if objective is None else "COMPLETED"
            self._oracle.end_trial(self._trial)


def count_trials(config: Config) -> int:
    """The largest number of trials.

    Raises:
        UserError: if Hyperband runs out of values before the trials with all epochs.
    """
    if config.tune.tuner != "hyperband":
        return config.tune.trials
    asked: list[dict[str, JsonValue]] = []
    with scratch_folder() as folder:
        tuner = Tuner(config, folder)
        while (values := tuner.ask()) is not None:  # its brackets and its random values do not depend on results
            asked.append(values)
            tuner.tell(0.0)
    if not asked or asked[-1]["distil.epochs"] != config.student_train.epochs:
        raise UserError(
            f"tune.tuner=hyperband needs a space with more values: this one has no more after {len(asked)} trials. Use tune.tuner=random"
        )
    return len(asked)


def _oracle(config: Config) -> keras_tuner.Oracle:
    tune = config.tune
    usual: dict[str, Any] = {
        "objective": keras_tuner.Objective(tune.objective, "max" if tune.objective == "validation_accuracy" else "min"),
        "hyperparameters": _hyperparameters(tune.space),
        "seed": config.seed + 1,  # KerasTuner takes 0 for no seed, and draws one
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
    """Suppresses warnings: KerasTuner's, of names that Python will remove, and those of its Gaussian process about convergence.

    Uses one thread: with several, its small matrices take three times as long.
    """
    with warnings.catch_warnings(), threadpoolctl.threadpool_limits(1):
        warnings.simplefilter("ignore")
        yield
