"""The aggregation search on data whose best block is known by construction, and what a search must and must not touch."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from dfa_tf.aggregation.search import SearchResult, search
from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import Config
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Images, Source, Split, Splits
from dfa_tf.networks.features import FeatureModel
from dfa_tf.storage.files import write_csv
from dfa_tf.training.context import StageContext

# Each pixel holds four bits a, b, c, d as 0 or 255; the label is a xor b at every pixel, a, c and d are coins. The teacher's blocks
# are, in values of -1 and 1: a xor b, which tells the label; c xor d, which tells nothing; and a itself, which tells nothing but is all
# that a student of linear layers can match.
INFORMATIVE, NOISE, EASY = "informative", "noise", "easy"
ONE_GROUP = [[NOISE, INFORMATIVE, EASY]]
TWO_GROUPS = [[NOISE, INFORMATIVE, EASY], [INFORMATIVE, EASY, NOISE]]
IMAGES = 128


class Untouchable:
    """Pixels that must not be read."""

    shape = (16, 2, 2, 4)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        raise AssertionError("the test set plays no part in a search")


@pytest.fixture(scope="module")
def bits() -> Splits:
    random = np.random.default_rng(0)
    labels = np.tile(np.array([0, 1], np.int32), IMAGES)
    drawn = random.integers(0, 2, (2 * IMAGES, 2, 2, 4))
    drawn[..., 1] = drawn[..., 0] ^ labels[:, None, None]
    train = Images((255 * drawn).astype(np.uint8), labels)
    test = Images(Untouchable(), labels[:16])
    source = Source(train, test, ["equal", "different"], [127.5] * 4, [127.5] * 4, "pixels of four bits")
    halves = [Split(train, np.arange(start, start + IMAGES)) for start in (0, IMAGES)]
    return Splits(*halves, validation=Split(train, np.arange(0)), test=Split(test, np.arange(16)), source=source)


def knowing(groups: Sequence[Sequence[str]]) -> FeatureModel:
    """A teacher with these blocks, by hand: |u + v| - 1 is the product of two signs u and v."""
    pairs = {INFORMATIVE: 0, NOISE: 2, EASY: 4}  # where the positive and the negative part of what a block is made from stand
    pixels = x = layers.Input((2, 2, 4))
    x = layers.Rescaling(1 / 127.5, -1.0)(x)
    read = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0]], np.float32)  # a + b, c + d, a
    for group, names in enumerate(groups, start=1):
        parts = layers.Conv2D(6, 1, activation="relu", name=f"parts{group}")
        hidden = parts(x)
        parts.set_weights([np.stack([read, -read], axis=1).reshape(6, -1).T[None, None], np.zeros(6, np.float32)])
        blocks = []
        for name in names:
            product = group == 1 and name != EASY
            kernel, at = np.zeros((6, 2), np.float32), pairs[name]
            kernel[at] = 1, -1
            kernel[at + 1] = (1, -1) if product else (-1, 1)
            block = layers.Conv2D(2, 1, name=f"{name}{group}")
            blocks.append(block(hidden))
            block.set_weights([kernel[None, None], np.array([-1, 1] if product else [0, 0], np.float32)])
        x = layers.Concatenate(name=f"all{group}")(blocks)
        # The next group's blocks are made from the first channels of these.
        read = np.stack([np.eye(6, dtype=np.float32)[2 * names.index(name)] for name in pairs])
    logits = layers.Dense(2, name="logits")(layers.GlobalAveragePooling2D()(x))
    named = [[f"{name}{group}" for name in names] for group, names in enumerate(groups, start=1)]
    return FeatureModel.from_model(keras.Model(pixels, logits, name="knowing"), named, tap="output")


def shallow(groups: int, seed: int = 0) -> FeatureModel:
    """A student of linear layers alone."""
    keras.utils.set_random_seed(seed)
    pixels = x = layers.Input((2, 2, 4))
    x = layers.Rescaling(1 / 127.5, -1.0)(x)
    for group in range(1, groups + 1):
        x = layers.Conv2D(4, 1, name=f"block{group}")(x)
    logits = layers.Dense(2, name="logits")(layers.GlobalAveragePooling2D()(x))
    return FeatureModel.from_model(keras.Model(pixels, logits, name="shallow"), [[f"block{i}"] for i in range(1, groups + 1)], tap="output")


def settings(*overrides: str) -> Config:
    return Config().override(
        [
            "data.batch_size=64",
            "search.epochs=40",
            "search.learning_rate=0.05",
            "search.beta_learning_rate=0.1",
            "search.gamma_ts=1",
            *(f"search.{override}" for override in overrides),
        ]
    )


def alphas(result: SearchResult) -> list[dict[str, float]]:
    """The alphas by block, for each group."""
    return [{block.rstrip("12"): alpha for block, alpha in zip(group.blocks, group.alpha, strict=True)} for group in result.weights.groups]


def run(bits: Splits, groups: Sequence[Sequence[str]], *overrides: str) -> SearchResult:
    return search(knowing(groups), shallow(len(groups)), bits, settings(*overrides))


def test_the_blocks_are_what_they_are_said_to_be(bits: Splits) -> None:
    pixels, labels = bits.train.images.pixels[:50].astype(np.float32), bits.train.images.labels[:50]
    signs = pixels / 127.5 - 1
    told = {
        INFORMATIVE: np.broadcast_to((1.0 - 2 * labels)[:, None, None], (50, 2, 2)),
        NOISE: signs[..., 2] * signs[..., 3],
        EASY: signs[..., 0],
    }
    for names, group in zip(TWO_GROUPS, knowing(TWO_GROUPS).extractor()(pixels).groups, strict=True):
        for name, block in zip(names, group, strict=True):
            np.testing.assert_allclose(block[..., 0], told[name])
            np.testing.assert_allclose(block[..., 1], -told[name])


@pytest.fixture(scope="module")
def told() -> list[tuple[int, int, dict[str, float]]]:
    """What the report of `group_wise` is told."""
    return []


@pytest.fixture(scope="module")
def group_wise(bits: Splits, told: list[tuple[int, int, dict[str, float]]]) -> SearchResult:
    """The search of two groups by the teacher-to-student path, one after the other."""
    return search(
        knowing(TWO_GROUPS),
        shallow(2),
        bits,
        settings("objective=ts", "mode=group_wise").override(["seed=5", "data.name=bundled"]),
        config_hash="cafe",
        context=StageContext(report=lambda done, total, numbers: told.append((done, total, numbers))),
    )


def informed(result: SearchResult) -> None:
    for group in alphas(result):
        assert group[INFORMATIVE] > 0.5
        assert group[INFORMATIVE] > 2 * max(group[NOISE], group[EASY])


def test_the_teacher_to_student_path_finds_the_informative_block_of_each_group(group_wise: SearchResult) -> None:
    informed(group_wise)


def test_the_groups_are_also_found_all_at_once(bits: Splits) -> None:
    informed(run(bits, TWO_GROUPS, "objective=ts", "mode=joint"))


def test_the_student_to_teacher_path_prefers_the_easy_block(bits: Splits) -> None:
    (group,) = alphas(run(bits, ONE_GROUP, "objective=st"))
    assert group[EASY] > 0.8


@pytest.fixture(scope="module")
def naive(bits: Splits) -> SearchResult:
    """The search of two groups at once by the student's own loss."""
    return run(bits, TWO_GROUPS, "mode=joint", "objective=student", "standardise=true")


def test_the_naive_objective_collapses_to_the_easy_block(naive: SearchResult) -> None:
    for group in alphas(naive):
        assert group[EASY] > 0.8


def test_the_gammas_move_the_bridge_between_the_two(bits: Splits) -> None:
    groups = [alphas(run(bits, ONE_GROUP, f"gamma_st={gamma}", "gamma_ts=1"))[0] for gamma in (0.1, 1, 10)]
    informative, easy = ([group[block] for group in groups] for block in (INFORMATIVE, EASY))
    assert informative[0] > informative[1] + 0.1 > informative[2] + 0.2
    assert easy[0] < easy[1] - 0.1 < easy[2] - 0.2
    assert informative[0] > 0.5
    assert easy[2] > 0.8


def short(bits: Splits, *overrides: str, seed: int = 0) -> SearchResult:
    config = settings("epochs=3", "beta_init=1", *overrides).override([f"seed={seed}"])
    return search(knowing(ONE_GROUP), shallow(1), bits, config)


@pytest.fixture(scope="module")
def usual(bits: Splits) -> SearchResult:
    """Three epochs of the bridge in one group."""
    return short(bits)


def test_a_seed_repeats_bit_for_bit_and_another_one_differs(usual: SearchResult, bits: Splits) -> None:
    again = short(bits)
    assert again.weights == usual.weights
    assert again.trajectory == usual.trajectory
    other = short(bits, seed=1)
    assert other.weights.groups != usual.weights.groups


def test_both_modes_agree_bit_for_bit_where_there_is_one_group(usual: SearchResult, bits: Splits) -> None:
    joint = short(bits, "mode=joint")
    assert joint.weights == usual.weights
    assert joint.trajectory == usual.trajectory
    assert joint.steps == usual.steps == 3 * 2


def test_beta_learns_from_the_search_half_and_the_weights_from_the_training_half(bits: Splits) -> None:
    reversed_labels = Images(bits.search.images.pixels, 1 - bits.search.images.labels)
    data = Splits(bits.train, Split(reversed_labels, bits.search.indices), bits.validation, bits.test, bits.source)
    result = search(knowing(ONE_GROUP), shallow(1), data, settings("objective=ts", "epochs=8", "beta_learning_rate=0.02"))
    row = result.trajectory[-1]
    # What the weights learn from one half is wrong in the other, and beta turns away from the block that tells it.
    assert row["train/ts"] < np.log(2) < row["search/ts"]
    (group,) = alphas(result)
    assert group[INFORMATIVE] < min(group[NOISE], group[EASY])


def test_the_decay_rates_of_beta_s_optimizer_are_an_option(usual: SearchResult, bits: Splits) -> None:
    assert short(bits, "beta_decays=[0.9, 0.999]").weights.groups != usual.weights.groups


def test_the_warm_up_leaves_beta_as_it_was_drawn(bits: Splits) -> None:
    result = short(bits, "warmup_epochs=2")
    betas = {epoch: [row["beta"] for row in result.trajectory if row["epoch"] == epoch] for epoch in (1, 2, 3)}
    drawn = np.random.default_rng(0).normal(0, 1, 3)
    np.testing.assert_allclose(betas[1], drawn, rtol=1e-6)
    assert betas[1] == betas[2]
    assert all(a != b for a, b in zip(betas[2], betas[3], strict=True))
    assert not any("search/loss" in row for row in result.trajectory if row["epoch"] < 3)
    # The weights learn in the meantime.
    losses = {row["epoch"]: row["train/loss"] for row in result.trajectory}
    assert losses[1] != losses[2]


def test_the_regularisers_pull_where_they_should(usual: SearchResult, bits: Splits) -> None:
    norm, entropy = (short(bits, f"regulariser={kind}", "lambda_=10") for kind in ("squared_norm", "entropy"))
    sizes = [np.linalg.norm(result.weights.groups[0].beta) for result in (norm, usual)]
    assert sizes[0] < 0.7 * sizes[1]
    assert entropy.weights.groups[0].entropy < usual.weights.groups[0].entropy - 0.1
    # What is logged is R itself, and the loss holds lambda times it.
    row = entropy.trajectory[-1]
    np.testing.assert_allclose(row["search/loss"], row["search/st"] + row["search/ts"] + 10 * row["search/regulariser"], rtol=1e-5)
    assert usual.trajectory[-1]["search/regulariser"] == 0


def test_the_teacher_stays_as_it_is_bit_for_bit(splits: Splits, config: Config, tiny: Callable[..., FeatureModel]) -> None:
    results = []
    for batchnorm in ("inference", "training"):
        teacher, student = tiny(6, 2, seed=1), tiny(4, 1)
        before, started = teacher.model.get_weights(), student.model.get_weights()
        results.append(
            search(teacher, student, splits, config.override(["search.epochs=1", "search.mode=joint", f"teacher.batchnorm={batchnorm}"]))
        )
        for weight, was in zip(teacher.model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(weight, was)
        assert any(not np.array_equal(weight, was) for weight, was in zip(student.model.get_weights(), started, strict=True))
    # The switch decides what the teacher tells.
    assert results[0].trajectory[0]["train/st"] != results[1].trajectory[0]["train/st"]


def test_the_trajectory_holds_every_term_as_csv(usual: SearchResult, tmp_path: Path) -> None:
    write_csv(tmp_path / "trajectory.csv", usual.trajectory)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "trajectory.csv").read_text(encoding="utf-8"))))
    terms = ["loss", "st", "ts"]
    columns = ["epoch", "group", "block", "beta", "alpha", "entropy", "collapsed"]
    assert list(rows[0])[:7] == columns
    weights, beta = [*terms, "learning_rate", "gradient_norm"], [*terms, "learning_rate", "regulariser"]
    assert set(rows[0]) == {*columns, *(f"train/{term}" for term in weights), *(f"search/{term}" for term in beta)}
    assert len(rows) == 3 * 3
    for row, kept in zip(rows, usual.trajectory, strict=True):
        assert {name: type(kept[name])(value) for name, value in row.items()} == kept
        assert all(np.isfinite(float(value)) for name, value in row.items() if name != "block")
        for half in ("train", "search"):
            np.testing.assert_allclose(float(row[f"{half}/loss"]), float(row[f"{half}/st"]) + float(row[f"{half}/ts"]), rtol=1e-5)


def test_the_trajectory_tells_the_learning_rates(group_wise: SearchResult) -> None:
    """That of the weights, 0.05, falls along a cosine over the 80 steps of a group; an epoch has two. That of beta stays 0.1."""
    for group in (1, 2):
        rows = {row["epoch"]: row for row in group_wise.trajectory if row["group"] == group}
        for epoch in (1, 21, 40):
            by_hand = np.mean([0.05 * (1 + np.cos(np.pi * step / 80)) / 2 for step in (2 * epoch - 2, 2 * epoch - 1)])
            np.testing.assert_allclose(rows[epoch]["train/learning_rate"], by_hand, rtol=1e-4)
            np.testing.assert_allclose(rows[epoch]["search/learning_rate"], 0.1, rtol=1e-6)


def test_the_trajectory_has_a_row_for_each_epoch_group_and_block_and_ends_with_the_weights(group_wise: SearchResult) -> None:
    rows = group_wise.trajectory
    expected = [(epoch, i, f"{name}{i}") for i, names in enumerate(TWO_GROUPS, start=1) for epoch in range(1, 41) for name in names]
    assert [(row["epoch"], row["group"], row["block"]) for row in rows] == expected
    for i, group in enumerate(group_wise.weights.groups, start=1):
        last = [row for row in rows if row["group"] == i and row["epoch"] == 40]
        assert tuple(row["alpha"] for row in last) == group.alpha
        assert tuple(row["beta"] for row in last) == group.beta
        np.testing.assert_allclose([row["entropy"] for row in last], group.entropy)
        np.testing.assert_allclose(np.exp(group.beta) / np.exp(group.beta).sum(), group.alpha, rtol=1e-5)


def test_joint_rows_hold_each_group_s_own_terms(naive: SearchResult) -> None:
    expected = [(epoch, i, f"{name}{i}") for epoch in range(1, 41) for i, names in enumerate(TWO_GROUPS, start=1) for name in names]
    assert [(row["epoch"], row["group"], row["block"]) for row in naive.trajectory] == expected
    first, second = naive.trajectory[0], naive.trajectory[3]
    terms = {"train/loss", "train/ce", "train/fd", "search/loss", "search/fd", "search/regulariser"}
    terms |= {"train/learning_rate", "train/gradient_norm", "search/learning_rate"}
    assert {name for name in first if "/" in name} == terms
    assert first["train/fd"] != second["train/fd"]
    np.testing.assert_allclose(first["train/loss"], first["train/ce"] + first["train/fd"] + second["train/fd"], rtol=1e-5)
    np.testing.assert_allclose(first["search/loss"], first["search/fd"] + second["search/fd"], rtol=1e-5)


def test_the_weights_say_where_they_come_from(group_wise: SearchResult, naive: SearchResult, tmp_path: Path) -> None:
    weights = group_wise.weights
    assert (weights.teacher, weights.data, weights.seed, weights.config_hash) == ("knowing", "bundled", 5, "cafe")
    assert (weights.standardise, naive.weights.standardise) == (False, True)
    weights.save(tmp_path / "alphas.json")
    assert AggregationWeights.load(tmp_path / "alphas.json", knowing(TWO_GROUPS)) == weights


def test_every_step_is_reported(group_wise: SearchResult, told: list[tuple[int, int, dict[str, float]]]) -> None:
    # Two groups, forty epochs, two batches of the training half.
    assert group_wise.steps == 160
    assert [(done, total) for done, total, _ in told] == [(i, 160) for i in range(1, 161)]
    for half in ("train", "search"):
        last = [numbers[f"{half} loss"] for _, _, numbers in told[-2:]]
        np.testing.assert_allclose(np.mean(last), group_wise.trajectory[-1][f"{half}/loss"], rtol=1e-5)


def test_what_a_path_does_not_reach_stays_as_it_is_weight_decay_or_not(bits: Splits) -> None:
    student = shallow(1)
    before = [variable.numpy() for variable in student.model.trainable_variables]
    search(knowing(ONE_GROUP), student, bits, settings("epochs=1", "weight_decay=0.1", "objective=ts"))
    after = student.model.trainable_variables
    moved = {variable.path.split("/")[-2] for variable, was in zip(after, before, strict=True) if not np.array_equal(variable, was)}
    assert moved == {"logits"}


def test_a_search_that_diverges_says_so(bits: Splits) -> None:
    with pytest.raises(UserError, match=r"diverged: \S+( of group 1)? is (nan|inf) at step \d+, .* Lower search.learning_rate"):
        short(bits, "learning_rate=100", "weight_decay=1e6", "epochs=10")


def test_networks_that_do_not_fit_are_refused(bits: Splits, splits: Splits, config: Config, tiny: Callable[..., FeatureModel]) -> None:
    with pytest.raises(UserError, match=r"must fit the data's num_classes 10. Received: 2 of 'knowing'"):
        search(knowing(ONE_GROUP), shallow(1), splits, config)
    with pytest.raises(UserError, match=r"must fit the data's num_classes 2. Received: 10 of 'tiny_4_1'"):
        search(knowing(ONE_GROUP), tiny(), bits, settings())
    with pytest.raises(UserError, match=f"data.batch_size must not exceed the {IMAGES} images"):
        search(knowing(ONE_GROUP), shallow(1), bits, settings().override(["data.batch_size=1000"]))
