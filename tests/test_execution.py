"""Steps that are compiled by XLA, and several steps at once: other ways to the same result."""

from collections.abc import Callable

import numpy as np
import pytest

from dfa_tf.aggregation.search import search
from dfa_tf.config import Config
from dfa_tf.distillation.distil import Distilled, distil
from dfa_tf.images.splits import Splits
from dfa_tf.networks.features import FeatureModel

Tiny = Callable[..., FeatureModel]


@pytest.fixture(scope="module")
def trained(tiny: Tiny, splits: Splits, config: Config):
    """Distils by KD: two epochs of six steps, the same ones each time."""

    def trained(*overrides: str) -> Distilled:
        settings = config.override(['distil.methods={"kd": 1.0}', "train.epochs=2", "train.evaluate_every=2", *overrides])
        return distil(tiny(6, 2, seed=2), tiny(4, 1, seed=1), splits, settings)

    return trained


@pytest.fixture(scope="module")
def usual(trained: Callable[..., Distilled]) -> Distilled:
    return trained()


@pytest.mark.parametrize("override", ["train.steps_per_execution=4", pytest.param("train.jit_compile=true", marks=pytest.mark.slow)])
def test_a_training_ends_where_the_usual_one_does(trained: Callable[..., Distilled], usual: Distilled, override: str) -> None:
    other = trained(override)
    assert other.steps == usual.steps == 12
    for ours, theirs in zip(other.history, usual.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    for ours, theirs in zip(other.student.get_weights(), usual.student.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.slow  # it is the compiling that takes long
def test_a_compiled_search_ends_where_the_usual_one_does(tiny: Tiny, splits: Splits, config: Config) -> None:
    alphas = []
    for compiled in ("false", "true"):
        settings = config.override(
            [f"train.jit_compile={compiled}", "search.mode=joint", "search.epochs=1", "search.beta_learning_rate=0.1"]
        )
        found = search(tiny(6, 2, seed=2), tiny(4, 1, seed=1), splits, settings)
        alphas.append([group.alpha for group in found.weights.groups])
    np.testing.assert_allclose(alphas[0], alphas[1], atol=1e-3)
    assert np.abs(np.array(alphas[0]) - 0.5).max() > 0.01  # it has moved at all
