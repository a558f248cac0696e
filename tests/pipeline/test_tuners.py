"""What the tuners ask for: values within their bounds, the same for the same answers; brackets of Hyperband by hand."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from dfa_tf.config import Choice, Config, Float, Int, TrainConfig, TuneConfig
from dfa_tf.errors import UserError
from dfa_tf.pipeline.tune.tuners import Tuner, count_trials

Answer = Callable[[Mapping[str, Any]], float | None]
SPACE = {
    "distil.learning_rate": Float(low=1e-3, high=0.1, log=True),
    "data.batch_size": Int(low=4, high=16, step=4),
    "search.epochs": Int(low=1, high=4, log=True),
    "distil.aggregation": Choice(values=["last", [[0.5, 0.5], [1.0]]]),
}

RATES = {"distil.learning_rate": Float(low=1e-3, high=0.1, log=True)}


def configured(tuner: str, space: Mapping[str, Any] = SPACE, *, epochs: int = 9, seed: int = 0, **more: Any) -> Config:
    return Config(seed=seed, train=TrainConfig(epochs=epochs), tune=TuneConfig(tuner=tuner, space=dict(space), **more))


@pytest.fixture
def asked(tmp_path: Path) -> Callable[[Config, Answer], list[dict[str, Any]]]:
    """All values that a tuner asks for, given its answers."""
    number = 0

    def asked(config: Config, answer: Answer) -> list[dict[str, Any]]:
        nonlocal number
        number += 1
        tuner, all_of_them = Tuner(config, tmp_path / str(number)), []
        while (values := tuner.ask()) is not None:
            all_of_them.append(values)
            tuner.tell(answer(values))
        return all_of_them

    return asked


def rate(values: Mapping[str, Any]) -> float:
    """The logarithm of the learning rate, which is to be small or large."""
    return math.log10(values["distil.learning_rate"])


@pytest.mark.parametrize("tuner", ["random", "bayesian", "hyperband"])
def test_values_are_of_the_space_and_fit_the_configuration(tuner: str, asked: Callable[..., Any]) -> None:
    config = configured(tuner, trials=5, initial_trials=4)
    for values in asked(config, rate):
        assert 1e-3 <= values["distil.learning_rate"] <= 0.1
        assert values["data.batch_size"] in (4, 8, 12, 16)
        assert values["search.epochs"] in (1, 2, 3, 4)
        assert values["distil.aggregation"] in ("last", [[0.5, 0.5], [1.0]])
        config.trial(values)


@pytest.mark.parametrize("tuner", ["random", "bayesian", "hyperband"])
def test_the_same_seed_and_answers_ask_for_the_same_trials(tuner: str, asked: Callable[..., Any], capfd: Any) -> None:
    config = configured(tuner, RATES, trials=4, initial_trials=3)
    first = asked(config, rate)
    assert asked(config, rate) == first
    assert asked(configured(tuner, RATES, seed=1, trials=1), rate)[0] != first[0]
    assert capfd.readouterr() == ("", "")


def test_more_trials_begin_with_the_same_ones(asked: Callable[..., Any]) -> None:
    few, many = (asked(configured("bayesian", RATES, trials=trials, initial_trials=2), rate) for trials in (3, 4))
    assert (len(few), many[:3]) == (3, few)


def test_the_bayesian_tuner_comes_near_the_best_value(asked: Callable[..., Any]) -> None:
    space = {"distil.learning_rate": Float(low=1e-4, high=1.0, log=True)}

    def score(values: Mapping[str, Any]) -> float:
        return -((rate(values) + 1.5) ** 2)  # largest, 0, at 10 to the power of -1.5

    scores = [score(values) for values in asked(configured("bayesian", space, trials=7, initial_trials=3), score)]
    assert max(scores[3:]) > -0.01, scores
    losses = asked(configured("bayesian", space, trials=7, initial_trials=3, objective="validation_loss"), lambda values: -score(values))
    assert max(score(values) for values in losses[3:]) > -0.01, "the smallest loss is the best"


def test_the_bayesian_tuner_stays_within_bounds_that_it_is_drawn_to(asked: Callable[..., Any]) -> None:
    config = configured("bayesian", {"search.epochs": Int(low=1, high=40, log=True)}, trials=8, initial_trials=3)
    values = [values["search.epochs"] for values in asked(config, lambda values: values["search.epochs"])]
    assert max(values) == 40, "the upper one is reached"


def test_trials_that_fail_do_not_end_the_search(asked: Callable[..., Any]) -> None:
    assert len(asked(configured("random", trials=7), lambda values: None)) == 7
    config = configured("bayesian", {"distil.learning_rate": Float(low=1e-3, high=0.1)}, trials=5, initial_trials=2)
    assert len(asked(config, lambda values: None if values["distil.learning_rate"] > 0.05 else 0.5)) == 5


def test_a_space_that_is_used_up_ends_the_search(asked: Callable[..., Any]) -> None:
    values = asked(configured("random", {"data.flip": Choice(values=[True, False])}, trials=10), lambda values: 0.5)
    assert sorted(value["data.flip"] for value in values) == [False, True]


def test_hyperband_makes_its_brackets(asked: Callable[..., Any]) -> None:
    """Of nine epochs and factor 3: brackets that begin with 9 trials of 1 epoch, 5 of 3, and 3 of 9; a third goes on each time."""
    config = configured("hyperband")
    values = asked(config, rate)
    assert [value["distil.epochs"] for value in values] == [1] * 9 + [3] * 3 + [9] + [3] * 5 + [9] * 2 + [9] * 3
    assert count_trials(config) == len(values) == 23
    rates = [value["distil.learning_rate"] for value in values]
    assert rates[9:12] == sorted(rates[:9], reverse=True)[:3], "the best three go on"
    assert rates[12] == max(rates[:9])
    assert rates[18:20] == sorted(rates[13:18], reverse=True)[:2]


def test_hyperband_follows_the_epochs_of_the_student(asked: Callable[..., Any]) -> None:
    config = configured("hyperband").override(["distil.epochs=4", "tune.factor=2"])
    assert max(value["distil.epochs"] for value in asked(config, rate)) == 4


def test_hyperband_tells_that_a_space_is_too_small_for_it() -> None:
    space = {"data.flip": Choice(values=[True, False]), "train.nesterov": Choice(values=[True, False])}
    with pytest.raises(UserError, match="this one has no more after 4 trials. Use tune.tuner=random"):
        count_trials(configured("hyperband", space))
    assert count_trials(configured("random", space, trials=3)) == 3
