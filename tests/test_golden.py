"""Golden trajectories: short searches and a short distillation give the stored numbers, so that a shift common to all runs is seen.

Comparisons of one run with another miss an error that both share. These numbers were stored once, in `tests/golden/`. After a change
that is meant to move them, store them again and say in the commit why they moved:

    DFA_TF_STORE_GOLDEN=1 python -m pytest tests/test_golden.py
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np
import pytest

from dfa_tf.aggregation.search import search
from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import Config
from dfa_tf.distillation.distil import distil
from dfa_tf.images.splits import Splits
from dfa_tf.networks.features import FeatureModel

FOLDER = Path(__file__).parent / "golden"
STORE = "DFA_TF_STORE_GOLDEN"
# Processors add in different orders and have different instructions. In so few steps that moves a number by some 1e-6 of its size
# (measured with and without oneDNN, and with its instructions restricted to SSE4.1). The bound leaves room for other processors, and is
# a tenth of a shift of one percent. The absolute part is for numbers that nearly cancel. An accuracy moves by whole images: 2 of 899.
RELATIVE, ABSOLUTE, IMAGES = 1e-3, 1e-5, 0.0025

Numbers = dict[str, list[float]]
Tiny = Callable[..., FeatureModel]


def numbers_of_search(tiny: Tiny, splits: Splits, config: Config, *overrides: str) -> Numbers:
    """Every column of the trajectory of a short search; each has a row for each epoch, group and block."""
    settings = config.override(
        [
            "search.epochs=2",
            "search.warmup_epochs=0",
            "search.beta_learning_rate=0.1",
            "search.lambda_=0.01",
            "search.regulariser=squared_norm",
            *overrides,
        ]
    )
    rows = search(tiny(6, 2, seed=2), tiny(4, 1, seed=1), splits, settings).trajectory
    return {column: [float(row[column]) for row in rows] for column in rows[0] if column != "block"}


def numbers_of_distillation(tiny: Tiny, splits: Splits, config: Config, *overrides: str) -> Numbers:
    """Every number of each epoch, the final ones, and mean size and norm of each of the student's weights."""
    teacher = tiny(6, 2, seed=2)
    aggregation = AggregationWeights.given([[0.25, 0.75], [0.6, 0.4]], teacher)
    settings = config.override(["train.epochs=3", 'distil.methods={"dfa": 1.0, "kd": 1.0}', "train.learning_rate=0.05", *overrides])
    distilled = distil(teacher, tiny(4, 1, seed=1), splits, settings, aggregation=aggregation)
    history = {f"history/{name}": [row.get(name, 0.0) for row in distilled.history] for name in distilled.history[-1]}
    final = {f"final/{name}": [value] for name, value in distilled.final.items()}
    return {**history, **final, **numbers_of_weights(distilled.student)}


def numbers_of_weights(model: keras.Model) -> Numbers:
    return {
        f"weights/{weight.path.partition('/')[0]}/{weight.name}": [float(np.abs(weight).mean()), float(np.linalg.norm(weight))]
        for weight in model.weights
    }


RUNS: dict[str, Callable[..., Numbers]] = {
    "search_group_wise": lambda *world: numbers_of_search(*world, "search.mode=group_wise"),
    "search_joint": lambda *world: numbers_of_search(*world, "search.mode=joint"),
    "distillation": numbers_of_distillation,
}


def stored(run: str) -> Numbers:
    return json.loads((FOLDER / f"{run}.json").read_text())


def moved(found: Mapping[str, list[float]], expected: Mapping[str, list[float]]) -> list[str]:
    """The names of which a number is not as expected, is missing, or is new."""

    def agree(name: str) -> bool:
        one, other = found.get(name, []), expected.get(name, [])
        absolute = IMAGES if name.endswith("accuracy") else ABSOLUTE
        return len(one) == len(other) > 0 and np.allclose(one, other, rtol=RELATIVE, atol=absolute)

    return sorted(name for name in {*found, *expected} if not agree(name))


@pytest.mark.parametrize("run", RUNS)
def test_a_run_gives_the_stored_numbers(run: str, tiny: Tiny, splits: Splits, config: Config) -> None:
    found = RUNS[run](tiny, splits, config)
    if os.environ.get(STORE):
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps([float(f'{value:.7g}') for value in row])}" for name, row in found.items())
        (FOLDER / f"{run}.json").write_text(f"{{\n{lines}\n}}\n")
        pytest.skip("the numbers were stored")
    assert moved(found, stored(run)) == []


@pytest.mark.parametrize("run", RUNS)
def test_one_percent_is_seen_in_every_number(run: str) -> None:
    expected = stored(run)
    assert moved(expected, expected) == []
    for name, row in expected.items():
        for place, value in enumerate(row):
            if abs(value) > 1e-2 and not name.endswith("accuracy"):
                shifted = [*row[:place], 1.01 * value, *row[place + 1 :]]
                assert moved({**expected, name: shifted}, expected) == [name]


def test_a_learning_rate_one_percent_higher_is_seen(tiny: Tiny, splits: Splits, config: Config) -> None:
    shifted = numbers_of_distillation(tiny, splits, config, "train.learning_rate=0.0505")
    assert {"history/dfa/group1", "final/dfa/group2", "history/kd"} <= set(moved(shifted, stored("distillation")))


def test_the_stored_numbers_are_small_and_finite() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 60_000
    assert all(np.isfinite(row).all() for run in RUNS for row in stored(run).values())
