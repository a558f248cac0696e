"""Search spaces in the configuration: written, read back, and checked against their fields."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from dfa_tf.config import STAGES, Choice, Config, Float, Int, TuneConfig
from dfa_tf.errors import UserError

SPACE = {
    "distil.learning_rate": Float(low=1e-3, high=0.1, log=True),
    "search.lambda_": Float(low=0, high=1, step=0.25),
    "search.epochs": Int(low=2, high=16, step=2, log=True),
    "data.batch_size": Int(low=8, high=64),
    "distil.aggregation": Choice(values=["searched", "last", [[0.5, 0.5], [1.0]]]),
    "distil.methods": Choice(values=[{"dfa": None}, {"dfa": 1.0, "kd": 0.5}]),
    "data.flip": Choice(values=[True, False]),
    "train.clip_norm": Choice(values=[None, 1.0]),
}


def told(space: dict[str, Any], *more: str) -> str:
    """The message about a space in an override."""
    with pytest.raises(UserError) as caught:
        Config().override([*more, f"tune.space={json.dumps(space)}"])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def range_of(low: Any, high: Any, kind: str = "float", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "low": low, "high": high, **more}


def choice(*values: Any) -> dict[str, Any]:
    return {"kind": "choice", "values": list(values)}


def test_a_space_is_written_and_read_back_the_same() -> None:
    config = Config(tune=TuneConfig(tuner="random", trials=3, space=SPACE))
    assert Config.from_json(config.to_json()) == config
    assert config.override(["tune.trials=4"]).tune == TuneConfig(tuner="random", trials=4, space=SPACE)


def test_a_space_is_set_on_the_command_line() -> None:
    text = '{"train.learning_rate": {"kind": "float", "low": 0.001, "high": 0.1, "log": true}}'
    assert Config().override([f"tune.space={text}"]).tune.space == {"train.learning_rate": Float(low=1e-3, high=0.1, log=True)}


def test_a_space_is_in_the_hash_of_no_stage() -> None:
    old, new = Config(), Config(tune=TuneConfig(space=SPACE, seeds=2))
    assert old != new
    assert [stage for stage in STAGES if old.stage_hash(stage) != new.stage_hash(stage)] == []


def test_a_trial_has_the_values_and_no_space() -> None:
    config = Config(seed=5, tune=TuneConfig(space=SPACE))
    trial = config.trial({"search.epochs": 4, "distil.aggregation": "last", "distil.methods.kd": 0.5})
    assert trial == Config(seed=5).override(["search.epochs=4", "distil.aggregation=last", "distil.methods.kd=0.5"])


@pytest.mark.parametrize(
    ("space", "parts"),
    [
        ({"train.learning_rat": range_of(0.1, 0.2)}, ["tune.space: unknown field. Received: 'train.learning_rat'", "learning_rate'"]),
        ({"learning_rate": range_of(0.1, 0.2)}, ["unknown field. Received: 'learning_rate'", "'train.learning_rate'"]),
        ({"train.epochs.last": range_of(1, 2, "int")}, ["unknown field. Received: 'train.epochs.last'", "'train.epochs'"]),
        ({"distil.methods.kdd": range_of(0, 1)}, ["tune.space: distil.methods: unknown name in losses. Received: 'kdd'", "'kd'"]),
        ({"train.learning_rate": range_of(0, 0.1)}, ["train.learning_rate: Input should be greater than 0. Received: 0.0"]),
        ({"train.momentum": range_of(0.5, 1)}, ["train.momentum: Input should be less than 1. Received: 1.0"]),
        ({"search.epochs": range_of(1, 4)}, ["search.epochs: Input should be a valid integer. Received: 1.0"]),
        ({"search.mode": choice("joint", "group")}, ["search.mode: Input should be 'group_wise' or 'joint'. Received: 'group'"]),
        ({"distil.aggregation": choice("last", "frist")}, ["Received: 'frist'", "'first'"]),
        ({"search.epochs": range_of(4, 1, "int")}, ["low must be below high. Received: low=4, high=1"]),
        ({"search.epochs": range_of(1.5, 4, "int")}, ["tune.space.search.epochs.int.low", "valid integer", "Received: 1.5"]),
        ({"search.lambda_": range_of(0, 1, log=True)}, ["log=true needs a low above 0. Received: low=0"]),
        ({"search.lambda_": range_of(0, 1, step=0)}, ["step must be above 0, as a difference. Received: 0"]),
        ({"search.lambda_": range_of(1, 8, step=1, log=True)}, ["step must be above 1, as a ratio. Received: 1"]),
        ({"search.lambda_": choice(1.0)}, ["values must be different, and at least two. Received: [1.0]"]),
        ({"distil.methods": choice({"kd": 1, "dfa": 1}, {"dfa": 1, "kd": 1})}, ["values must be different"]),
        ({"search.lambda_": {"low": 0, "high": 1}}, ["tune.space.search.lambda_: ", "'kind'"]),
        ({"search.lambda_": {"kind": "floot", "low": 0, "high": 1}}, ["'int', 'float', 'choice'"]),
        ({"search.lambda_": [0, 1]}, ["tune.space.search.lambda_: "]),
        ({"seed": range_of(0, 5, "int")}, ["space must leave seeds and images alone", "Received: 'seed'"]),
        ({"data.options.folds": choice(1, 2)}, ["space must leave seeds and images alone", "Received: 'data.options.folds'"]),
        (
            {"distil.methods.kd": range_of(0, 1), "distil.methods": choice({"kd": 1}, {})},
            ["must have a field once. Received: 'distil.methods' and 'distil.methods.kd'"],
        ),
        ({"data": choice({}, {"batch_size": 4})}, ["space must leave seeds and images alone", "Received: 'data'"]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_mistaken_space_is_reported(space: dict[str, Any], parts: list[str]) -> None:
    message = told(space)
    assert [part for part in parts if part not in message] == [], message


def test_hyperband_keeps_the_epochs_to_itself() -> None:
    for name in ("train.epochs", "distil.epochs"):
        assert f"decides distil.epochs itself, up to those of the configuration. Received: '{name}'" in told(
            {name: range_of(1, 3, "int")}, "tune.tuner=hyperband"
        )
        assert name in Config().override([f"tune.space={json.dumps({name: range_of(1, 3, 'int')})}"]).tune.space


def test_values_that_do_not_go_with_the_rest_are_left_to_the_trials() -> None:
    base = Config().override(["search.warmup_epochs=2"])
    config = base.override([f"tune.space={json.dumps({'search.epochs': range_of(1, 8, 'int')})}"])
    assert config.tune.space == {"search.epochs": Int(low=1, high=8)}
    with pytest.raises(UserError, match="warmup_epochs must be smaller than epochs=1"):
        config.trial({"search.epochs": 1})


def test_a_space_is_checked_where_it_is_written_in_python() -> None:
    with pytest.raises(ValidationError, match=r"tune.space: unknown field. Received: 'train.epoch'. Did you mean 'train.epochs'"):
        Config(tune=TuneConfig(space={"train.epoch": Int(low=1, high=2)}))
    with pytest.raises(ValidationError, match="numbers must be finite"):
        Choice(values=[1.0, float("nan")])
