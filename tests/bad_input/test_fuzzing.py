"""Overrides and files of weights drawn at random: accepted, or refused in one line."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import Config, field_names
from dfa_tf.config.experiments import load
from dfa_tf.errors import UserError

usual = settings(derandomize=True, database=None, deadline=2000, max_examples=200)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
KEYS = st.sampled_from([*field_names(), "data", "train", "search", "distil.methods.kd", "distil.options.dfa.distance"]) | st.text(
    max_size=20
)
VALUES = (
    JSON.map(json.dumps) | st.text(max_size=30) | st.sampled_from(["1e400", "-0", "[" * 3000, "9" * 5000, '"\\ud800"', "\udc80", "NaN"])
)

GROUP = {"blocks": ["a", "b"], "beta": [0.0, 0.0], "alpha": [0.5, 0.5], "entropy": math.log(2)}
GOOD = {"schema": 1, "teacher": "t", "data": "bundled", "seed": 0, "config_hash": "", "standardise": False, "groups": [GROUP, GROUP]}


def check_line(error: UserError) -> None:
    assert "\n" not in str(error)
    assert 0 < len(str(error)) < 1500


@usual
@given(st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=3))
def test_an_override_gives_a_configuration_or_one_line(overrides: list[tuple[str, str]]) -> None:
    try:
        config = load("bundled", [f"{key}={value}" for key, value in overrides])
    except UserError as error:
        check_line(error)
    else:
        assert Config.from_json(config.to_json()) == config, "what is taken is written and read back the same"


@usual
@given(st.text(max_size=40))
def test_an_override_of_any_form_gives_a_configuration_or_one_line(override: str) -> None:
    try:
        load("bundled", [override])
    except UserError as error:
        check_line(error)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzing") / "alphas.json"


def check_weights(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try:
        weights = AggregationWeights.load(file)
    except UserError as error:
        check_line(error)
        return
    for group in weights.groups:
        assert len(group.blocks) == len(group.alpha) > 0
        assert min(group.alpha) >= 0
        assert abs(sum(group.alpha) - 1) < 1e-3


@usual
@given(st.binary(max_size=200))
def test_bytes_are_weights_or_refused_in_one_line(file: Path, content: bytes) -> None:
    check_weights(file, content)


@usual
@given(st.data())
def test_right_weights_with_other_bytes_in_them_are_weights_or_refused_in_one_line(file: Path, data: st.DataObject) -> None:
    content = json.dumps(GOOD).encode()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 20)))
    check_weights(file, content[:start] + data.draw(st.binary(max_size=20)) + content[end:])


@usual
@given(st.data())
def test_right_weights_with_another_value_in_them_are_weights_or_refused_in_one_line(file: Path, data: st.DataObject) -> None:
    value: dict[str, Any] = json.loads(json.dumps(GOOD))
    place: Any = data.draw(st.sampled_from([value, value["groups"][0]]))
    place[data.draw(st.sampled_from([*place, "other"]))] = data.draw(JSON | st.lists(st.floats(), max_size=3))
    check_weights(file, json.dumps(value).encode())
