"""Files of aggregation weights that are none, or are for another teacher."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mistakes import Mistake, text

from dfa_tf.storage.reading import JSON_LIMIT

BLOCKS = [["group1_block1", "group1_block2"], ["group2_block1", "group2_block2"]]
GROUPS: list[dict[str, Any]] = [{"blocks": blocks, "beta": [0.0, 0.0], "alpha": [0.5, 0.5]} for blocks in BLOCKS]
GOOD: dict[str, Any] = {"schema": 1, "teacher": "small", "data": "bundled", "seed": 0, "config_hash": "", "groups": GROUPS}


def alphas(told: str, content: str | bytes) -> Mistake:
    """A file as distil.aggregation."""
    return Mistake("--set distil.aggregation=INPUT/a.json", told, "distil", text("a.json", content))


def changed(told: str, **changes: Any) -> Mistake:
    """A right file with another value for some keys; None leaves the key out."""
    return alphas(told, json.dumps({key: value for key, value in {**GOOD, **changes}.items() if value is not None}))


def group(told: str, **changes: Any) -> Mistake:
    """A right file whose first group has another value for some keys."""
    return changed(told, groups=[{**GROUPS[0], **changes}, GROUPS[1]])


NONE = "a.json is not a file of aggregation weights: "
JSON = f"{NONE}Invalid JSON: "
OTHER = "aggregation weights must be for the teacher's blocks [['group1_block1', 'group1_block2'], ['group2_block1', "
GIVEN = "given weights must have one for each block, [2, 2] by group. Received: "
MISTAKES = [
    Mistake("--set distil.aggregation=INPUT/none.json", "distil.aggregation must be a file of aggregation weights. Received: ", "distil"),
    Mistake("--set distil.aggregation=INPUT/d.json", "must be a file of aggregation weights", "distil", lambda f: (f / "d.json").mkdir()),
    Mistake(f"--set distil.aggregation={'a' * 5000}.json", "must be a file of aggregation weights. Received: 'aaa", "distil"),
    Mistake("", "search/alphas.json is not there, or not done: run bin/search.py with the same --config and --workdir first", "distil"),
    alphas(f"{JSON}EOF while parsing a value", ""),
    alphas(f"{JSON}EOF while parsing", json.dumps(GOOD)[:-40]),
    alphas(f"{JSON}expected", "alpha = 0.5"),
    alphas(f"{JSON}expected value", b"\x80\x04\x95pickle"),
    alphas(f"{JSON}expected value", b"PK\x03\x04" + bytes(50)),
    alphas(f"{JSON}invalid unicode code point", json.dumps(GOOD).encode().replace(b"small", b"sm\xffll")),
    alphas(f"{JSON}recursion limit exceeded", "[" * 100_000),
    alphas(f"{JSON}recursion limit exceeded", '{"groups":' * 10_000),
    alphas(f"aggregation weights must have at most {JSON_LIMIT} bytes. Received: ... which has more", bytes(100_000_000)),
    alphas(f"{NONE}Input should be an object", "[]"),
    alphas(f"{NONE}Input should be an object", "null"),
    alphas(f"{NONE}schema Input should be 1", json.dumps(GOOD | {"schema": 2})),
    alphas(f"{NONE}schema Input should be 1", json.dumps(GOOD | {"schema": "1"})),
    changed(f"{NONE}Groups Extra inputs are not permitted", Groups=GROUPS),
    changed(f"{NONE}teacher Field required", teacher=None),
    changed(f"{NONE}teacher Input should be a valid string. Received: 5", teacher=5),
    changed(f"{NONE}seed Input should be a valid integer. Received: 'one'", seed="one"),
    changed(f"{NONE}groups Field required", groups=None),
    changed(f"{NONE}groups Tuple should have at least 1 item", groups=[]),
    changed(f"{NONE}groups Input should be a valid", groups={"1": GROUPS[0]}),
    changed(f"{NONE}groups.0 Input should be an object. Received: 'first'", groups=["first"]),
    group(f"{NONE}groups.0.alpha.0 Input should be a finite number. Received: nan", alpha=[float("nan"), 0.5]),
    group(f"{NONE}groups.0.alpha.1 Input should be a finite number. Received: inf", alpha=[0.5, float("inf")]),
    group(f"{NONE}groups.0.beta.0 Input should be a finite number. Received: nan", beta=[float("nan"), 0.5]),
    group(f"{NONE}groups.0.alpha.0 Input should be a valid number. Received: '0.5'", alpha=["0.5", 0.5]),
    group(f"{NONE}groups.0.alpha.0 Input should be a valid number. Received: True", alpha=[True, False]),
    group(f"{NONE}groups.0 alpha must be positive and sum to 1. Received: [0.5, 0.7]", alpha=[0.5, 0.7]),
    group(f"{NONE}groups.0 alpha must be positive and sum to 1. Received: [1.5, -0.5]", alpha=[1.5, -0.5]),
    group(f"{NONE}groups.0 alpha must be positive and sum to 1. Received: [0.0, 0.0]", alpha=[0, 0]),
    group(f"{NONE}groups.0 alpha must be positive and sum to 1. Received: [1e+308, 1e+308]", alpha=[1e308, 1e308]),
    group(f"{NONE}groups.0 blocks, beta and alpha must be of one length", alpha=[1.0]),
    group(f"{NONE}groups.0 blocks, beta and alpha must be of one length", beta=[1.0]),
    group(f"{NONE}groups.0 blocks, beta and alpha must be of one length", blocks=[], beta=[], alpha=[]),
    group(f"{NONE}groups.0 alpha must be positive and sum to 1. Received: [0.0, 0.0, ", blocks=["b"] * 9999, beta=None, alpha=[0.0] * 9999),
    group(f"{NONE}groups.0.gamma Extra inputs are not permitted", gamma=1),
    group(f"{OTHER} ... Received: weights for 'small' with [['group1_block1', 'other']", blocks=["group1_block1", "other"]),
    group(f"{OTHER} ... Received: weights for 'small' with [['group1_block2', 'group1_block1']", blocks=BLOCKS[0][::-1]),
    changed(f"{OTHER} ... Received: weights for 'resnet' with [['group1_block1', 'group1_block2']]", groups=GROUPS[:1], teacher="resnet"),
    changed(f"{OTHER} ... Received: weights for 'small' with", groups=[*GROUPS, GROUPS[1]]),
    changed(f"{OTHER} ... Received: weights for 'aaa", groups=GROUPS[:1], teacher="a" * 9999),
    Mistake("--set distil.aggregation=[[0.5,0.5]]", f"{GIVEN}[[0.5, 0.5]]", "distil"),
    Mistake("--set distil.aggregation=[]", f"{GIVEN}[]", "distil"),
    Mistake("--set distil.aggregation=[[],[]]", f"{GIVEN}[[], []]", "distil"),
    Mistake("--set distil.aggregation=[[0.5,0.6],[1,0]]", "given weights: alpha must be positive and sum to 1", "distil"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=[f"{number} {mistake.told[:70]}" for number, mistake in enumerate(MISTAKES)])
def test_a_file_of_weights_that_is_damaged_is_refused(mistake: Mistake, refused: Callable[[Mistake], None]) -> None:
    refused(mistake)


def test_the_file_that_the_mistakes_are_made_from_is_right(world: Path, tmp_path: Path) -> None:
    from dfa_tf.aggregation.weights import AggregationWeights  # noqa: PLC0415
    from dfa_tf.networks.features import FeatureModel  # noqa: PLC0415

    (tmp_path / "a.json").write_text(json.dumps(GOOD), encoding="utf-8")
    weights = AggregationWeights.load(tmp_path / "a.json", FeatureModel.from_model(world / "teacher.keras"))
    assert [group.alpha for group in weights.groups] == [(0.5, 0.5), (0.5, 0.5)]
