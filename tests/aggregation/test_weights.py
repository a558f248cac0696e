"""The feature aggregation by hand, its gradient, and the aggregation weights as an artifact."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from dfa_tf.aggregation.weights import Aggregation, AggregationWeights, GroupWeights, aggregate, candidate_weights, entropy, spread
from dfa_tf.errors import UserError
from dfa_tf.networks.features import FeatureModel

GOOD = {
    "schema": 1,
    "teacher": "a_teacher",
    "data": "bundled",
    "seed": 3,
    "config_hash": "0123456789abcdef",
    "groups": [
        {"blocks": ["a", "b"], "beta": [0.0, 1.0], "alpha": [0.25, 0.75], "entropy": 0.5623},
        {"blocks": ["c"], "beta": [0.5], "alpha": [1.0], "entropy": 0.0},
    ],
}


def features(*shape: int, seed: int = 0) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float32)


def teaching(tiny: Callable[..., FeatureModel]) -> FeatureModel:
    return tiny(4, 3, seed=1)


def test_aggregate_is_the_weighted_sum_of_each_example() -> None:
    first = tf.constant([[[[1.0, 2.0]]], [[[3.0, 4.0]]]])
    second = tf.constant([[[[10.0, 20.0]]], [[[30.0, 40.0]]]])
    weights = tf.constant([[1.0, 0.5], [0.0, 2.0]])
    # Example 0: 1 * (1, 2) + 0.5 * (10, 20); example 1: 2 * (30, 40).
    np.testing.assert_array_equal(aggregate([first, second], weights), [[[[6.0, 12.0]]], [[[60.0, 80.0]]]])


def test_aggregate_sums_half_precision_candidates_in_float32() -> None:
    candidates = [tf.cast(features(2, 1, 1, 3, seed=seed), tf.bfloat16) for seed in (0, 1)]
    total = aggregate(candidates, tf.constant([[0.3, 0.7]] * 2))
    assert total.dtype == tf.float32
    by_hand = 0.3 * tf.cast(candidates[0], tf.float32) + 0.7 * tf.cast(candidates[1], tf.float32)
    np.testing.assert_allclose(total, by_hand, rtol=1e-6)


def test_aggregate_refuses_another_number_of_weights() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="must equal 1"):
        aggregate([features(2, 1, 1, 3)], tf.ones([2, 2]))


def test_candidate_weights_repeat_alpha_for_each_example() -> None:
    candidates = [features(3, 2, 2, 1, seed=seed) for seed in (0, 1)]
    weights = candidate_weights(candidates, tf.constant([0.25, 0.75]), standardise=False)
    np.testing.assert_array_equal(weights, [[0.25, 0.75]] * 3)


def test_standardised_weights_divide_by_the_root_mean_square_of_each_example() -> None:
    # Two examples of two elements. Mean squares of candidate 0: (9 + 16) / 2 and 4; of candidate 1: 1 and (0 + 2) / 2.
    first = tf.constant([3.0, 4.0, 2.0, -2.0], shape=(2, 1, 2, 1))
    second = tf.constant([1.0, -1.0, 0.0, np.sqrt(2.0)], shape=(2, 1, 2, 1))
    weights = candidate_weights([first, second], tf.constant([0.5, 0.5]), standardise=True)
    np.testing.assert_allclose(weights, [[0.5 / np.sqrt(12.5), 0.5], [0.25, 0.5]], rtol=1e-6)


def test_a_standardised_aggregation_does_not_see_a_candidate_s_magnitude() -> None:
    first, second = features(2, 3, 3, 2, seed=1), features(2, 3, 3, 2, seed=2)
    layer = Aggregation([0.3, -0.2], standardise=True)
    np.testing.assert_allclose(layer([first, second]), layer([100.0 * first, second]), rtol=1e-4)
    plain = Aggregation([0.3, -0.2])
    assert not np.allclose(plain([first, second]), plain([100.0 * first, second]))


def test_a_candidate_of_zeros_is_standardised_without_a_nan() -> None:
    first = features(2, 3, 3, 2)
    layer = Aggregation([0.0, 0.0], standardise=True)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(layer([first, tf.zeros_like(first)])))
    assert np.isfinite(loss)
    assert np.isfinite(tape.gradient(loss, layer.beta.value)).all()


def test_alpha_is_the_softmax_of_beta() -> None:
    layer = Aggregation([0.0, np.log(3.0)])
    np.testing.assert_allclose(layer.alpha, [0.25, 0.75], rtol=1e-6)
    candidates = [features(2, 2, 2, 1, seed=seed) for seed in (0, 1)]
    np.testing.assert_allclose(layer(candidates), 0.25 * candidates[0] + 0.75 * candidates[1], rtol=1e-5)


@pytest.mark.parametrize("standardise", [False, True])
def test_gradient_to_beta_is_that_of_finite_differences(standardise: bool) -> None:
    candidates = [features(2, 3, 3, 2, seed=seed) for seed in range(3)]
    target = features(2, 3, 3, 2, seed=9)
    start = np.array([0.4, -0.3, 0.1], np.float32)
    layer = Aggregation(start, standardise=standardise)

    def loss() -> tf.Tensor:
        return tf.reduce_sum(tf.square(layer(candidates) - target))

    with tf.GradientTape() as tape:
        value = loss()
    gradient = tape.gradient(value, layer.beta.value)
    differences = []
    for j in range(3):
        ends = []
        for sign in (1, -1):
            layer.beta.assign(start + sign * 1e-2 * np.eye(3, dtype=np.float32)[j])
            ends.append(float(loss()))
        differences.append((ends[0] - ends[1]) / 2e-2)
    np.testing.assert_allclose(gradient, differences, rtol=1e-2)
    assert np.abs(gradient).max() > 0.1


def test_entropy_is_zero_for_one_candidate_and_ln_n_for_equal_ones() -> None:
    np.testing.assert_allclose(entropy(tf.constant([0.0, 1.0, 0.0])), 0.0)
    np.testing.assert_allclose(entropy(tf.fill([5], 0.2)), np.log(5), rtol=1e-6)
    by_hand = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    np.testing.assert_allclose(entropy(tf.constant([0.25, 0.75])), by_hand, rtol=1e-6)


def test_weights_come_back_equal_from_their_file(tmp_path: Path, tiny: Callable[..., FeatureModel]) -> None:
    teacher = teaching(tiny)
    alpha = (0.1, 0.2, 0.7)
    beta = tuple(np.log(alpha).tolist())
    groups = tuple(GroupWeights(blocks=tuple(blocks), beta=beta, alpha=alpha) for blocks in teacher.block_names())
    weights = AggregationWeights(teacher=teacher.model.name, data="bundled", seed=7, config_hash="ab", standardise=True, groups=groups)
    path = tmp_path / "folder" / "alphas.json"
    weights.save(path)
    assert AggregationWeights.load(path, teacher) == weights
    assert [entry.name for entry in path.parent.iterdir()] == ["alphas.json"]


def test_the_file_has_the_fixed_keys(tmp_path: Path, tiny: Callable[..., FeatureModel]) -> None:
    AggregationWeights.by_rule("average", teaching(tiny)).save(tmp_path / "alphas.json")
    content = json.loads((tmp_path / "alphas.json").read_text())
    # `standardise` is the one beside the fixed ones: without it the alphas of a standardised search mean something else.
    assert set(content) == {"schema", "teacher", "data", "seed", "config_hash", "groups", "standardise"}
    assert content["schema"] == 1
    assert content["teacher"] == "tiny_4_3"
    for group in content["groups"]:
        assert set(group) == {"blocks", "beta", "alpha", "entropy"}
        np.testing.assert_allclose(group["entropy"], np.log(3))


def test_a_file_with_the_fixed_keys_alone_is_read(tmp_path: Path) -> None:
    path = tmp_path / "alphas.json"
    path.write_text(json.dumps(GOOD))
    weights = AggregationWeights.load(path)
    assert (weights.teacher, weights.seed, weights.standardise) == ("a_teacher", 3, False)
    assert weights.groups[0].alpha == (0.25, 0.75)
    # The entropy is derived, whatever the file says.
    np.testing.assert_allclose(weights.groups[0].entropy, -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)))


@pytest.mark.parametrize(("rule", "alpha"), [("last", (0.0, 0.0, 1.0)), ("first", (1.0, 0.0, 0.0)), ("average", (1 / 3, 1 / 3, 1 / 3))])
def test_rules_that_are_not_searched(rule: str, alpha: tuple[float, ...], tiny: Callable[..., FeatureModel]) -> None:
    weights = AggregationWeights.by_rule(rule, teaching(tiny))
    assert [group.alpha for group in weights.groups] == [alpha, alpha]
    assert [group.beta for group in weights.groups] == [None, None]
    assert [list(group.blocks) for group in weights.groups] == teaching(tiny).block_names()


def test_random_weights_are_drawn_by_seed(tiny: Callable[..., FeatureModel]) -> None:
    teacher = teaching(tiny)
    weights = AggregationWeights.by_rule("random", teacher, seed=4)
    assert weights == AggregationWeights.by_rule("random", teacher, seed=4)
    assert weights.groups != AggregationWeights.by_rule("random", teacher, seed=5).groups
    assert weights.groups[0].alpha != weights.groups[1].alpha
    for group in weights.groups:
        np.testing.assert_allclose(sum(group.alpha), 1)
        assert min(group.alpha) > 0


def test_an_unknown_rule_is_refused(tiny: Callable[..., FeatureModel]) -> None:
    with pytest.raises(UserError, match=r"last, first, average or random\. Received: 'mean'"):
        AggregationWeights.by_rule("mean", teaching(tiny))


def test_weights_for_another_teacher_are_refused(tmp_path: Path, tiny: Callable[..., FeatureModel]) -> None:
    path = tmp_path / "alphas.json"
    AggregationWeights.by_rule("last", teaching(tiny)).save(path)
    with pytest.raises(UserError, match="weights for 'tiny_4_3'"):
        AggregationWeights.load(path, tiny(4, 2))


BAD_FILES: dict[str, str] = {
    "empty": "",
    "truncated": json.dumps(GOOD)[:150],
    "not an object": "[1, 2]",
    "another schema": json.dumps(GOOD | {"schema": 2}),
    "schema as text": json.dumps(GOOD | {"schema": "1"}),
    "no groups": json.dumps(GOOD | {"groups": []}),
    "unknown key": json.dumps(GOOD | {"alphas": []}),
    "unknown key in a group": json.dumps(GOOD | {"groups": [GOOD["groups"][1] | {"margin": 1.0}]}),
    "missing key": json.dumps({key: value for key, value in GOOD.items() if key != "teacher"}),
    "NaN": json.dumps(GOOD | {"groups": [GOOD["groups"][0] | {"alpha": [float("nan"), 1.0]}]}),
    "infinite beta": json.dumps(GOOD | {"groups": [GOOD["groups"][0] | {"beta": [float("inf"), 1.0]}]}),
    "does not sum to 1": json.dumps(GOOD | {"groups": [GOOD["groups"][0] | {"alpha": [0.25, 0.7]}]}),
    "negative": json.dumps(GOOD | {"groups": [GOOD["groups"][0] | {"alpha": [-0.25, 1.25]}]}),
    "lengths differ": json.dumps(GOOD | {"groups": [GOOD["groups"][0] | {"alpha": [1.0]}]}),
    "beta's length differs": json.dumps(GOOD | {"groups": [GOOD["groups"][0] | {"beta": [1.0]}]}),
    "empty group": json.dumps(GOOD | {"groups": [{"blocks": [], "beta": [], "alpha": []}]}),
    "text for a number": json.dumps(GOOD | {"groups": [GOOD["groups"][1] | {"alpha": ["1.0"]}]}),
    "too big": json.dumps(GOOD) + " " * (1 << 20),
}


@pytest.mark.parametrize("text", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "alphas.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        AggregationWeights.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x00" * 64])
def test_a_file_that_is_no_text_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "alphas.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a file of aggregation weights"):
        AggregationWeights.load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match="must be a readable file"):
            AggregationWeights.load(path)


def test_weights_by_rule_are_standardised_as_the_search_that_they_are_compared_with(teacher: FeatureModel, tmp_path: Path) -> None:
    AggregationWeights.by_rule("last", teacher, standardise=True).save(tmp_path / "alphas.json")
    assert AggregationWeights.load(tmp_path / "alphas.json", teacher).standardise


def test_a_file_written_by_hand_needs_no_logits(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"schema": 1, "teacher": "t", "groups": [{"blocks": ["a", "b"], "alpha": [0.25, 0.75]}]}')
    assert AggregationWeights.load(tmp_path / "mine.json").groups[0].alpha == (0.25, 0.75)


def test_weights_are_given_by_hand_for_each_block(tiny: Callable[..., FeatureModel]) -> None:
    teacher = tiny(4, 2)
    weights = AggregationWeights.given([[0.25, 0.75], [1, 0]], teacher, standardise=True)
    assert [group.alpha for group in weights.groups] == [(0.25, 0.75), (1.0, 0.0)]
    assert [list(group.blocks) for group in weights.groups] == teacher.block_names()
    assert weights.standardise
    weights.check(teacher)


@pytest.mark.parametrize(
    ("alphas", "told"),
    [
        ([[0.5, 0.5]], r"one for each block, [2, 2] by group. Received: [[0.5, 0.5]]"),
        ([[1.0], [0.5, 0.5]], r"one for each block, [2, 2] by group"),
        ([[0.5, 0.6], [0.5, 0.5]], "alpha must be positive and sum to 1. Received: [0.5, 0.6]"),
        ([[1.5, -0.5], [0.5, 0.5]], "alpha must be positive and sum to 1"),
    ],
)
def test_weights_given_by_hand_that_do_not_fit_are_refused(tiny: Callable[..., FeatureModel], alphas: list[list[float]], told: str) -> None:
    with pytest.raises(UserError) as caught:
        AggregationWeights.given(alphas, tiny(4, 2))
    assert told in str(caught.value)


def test_discretised_weights_give_the_largest_everything(tiny: Callable[..., FeatureModel]) -> None:
    soft = AggregationWeights.given([[0.4, 0.6], [0.5, 0.5]], tiny(4, 2), standardise=True)
    hard = soft.discretised()
    assert [group.alpha for group in hard.groups] == [(0.0, 1.0), (1.0, 0.0)]
    assert (hard.teacher, hard.standardise, hard.groups[0].blocks) == (soft.teacher, True, soft.groups[0].blocks)
    assert hard.discretised() == hard


def test_the_spread_over_searches_by_hand(tiny: Callable[..., FeatureModel]) -> None:
    searches = [AggregationWeights.given([[low, 1 - low], [0.5, 0.5]], tiny(4, 2)) for low in (0.2, 0.4, 0.6)]
    rows = spread(searches)
    assert [(row["group"], row["block"]) for row in rows] == [(i, f"group{i}_block{j}") for i in (1, 2) for j in (1, 2)]
    for row, (mean, deviation, least, most) in zip(
        rows, [(0.4, 0.2, 0.2, 0.6), (0.6, 0.2, 0.4, 0.8), (0.5, 0, 0.5, 0.5), (0.5, 0, 0.5, 0.5)], strict=True
    ):
        np.testing.assert_allclose([row[name] for name in ("mean", "std", "min", "max")], [mean, deviation, least, most], atol=1e-12)
    assert [row["std"] for row in spread(searches[:1])] == [0.0] * 4
