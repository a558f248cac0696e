"""Several teachers as one: mean logits, everyone's blocks as candidates, in one flat graph that can be saved and searched."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from dfa_tf.aggregation.search import search
from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import Config
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Splits
from dfa_tf.methods.distances import group_margins
from dfa_tf.networks.ensemble import ensemble
from dfa_tf.networks.features import TAPS, FeatureModel
from dfa_tf.networks.frozen_teacher import frozen
from dfa_tf.networks.precision import precision

Tiny = Callable[..., FeatureModel]


@pytest.fixture
def teachers(tiny: Tiny) -> list[FeatureModel]:
    """Two networks of one width: a block a group and two."""
    return [tiny(4, 1, seed=1), tiny(4, 2, seed=2)]


def test_logits_are_the_mean_of_the_teachers(teachers: list[FeatureModel], digits: np.ndarray) -> None:
    logits = ensemble(teachers).extractor()(digits).logits
    one, other = (teacher.model(digits).numpy() for teacher in teachers)
    assert np.abs(one - other).max() > 0.1
    assert logits.dtype == tf.float32
    np.testing.assert_allclose(logits, (one + other) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tap", TAPS)
def test_candidates_are_those_of_all_teachers_at_either_tap(tap: str, teachers: list[FeatureModel], digits: np.ndarray) -> None:
    together = ensemble(teachers).extractor(TAPS)(digits).at(tap)
    alone = [teacher.extractor(TAPS)(digits).at(tap) for teacher in teachers]
    for group, *apart in zip(together, *alone, strict=True):
        assert len(group) == 1 + 2
        for candidate, expected in zip(group, (*apart[0], *apart[1]), strict=True):
            np.testing.assert_allclose(candidate, expected, rtol=1e-5, atol=1e-6)


def test_blocks_have_their_teacher_s_number_and_their_own_margins(teachers: list[FeatureModel]) -> None:
    together = ensemble(teachers)
    assert together.block_names()[1] == ["teacher1_group2_block1", "teacher2_group2_block1", "teacher2_group2_block2"]
    assert [group.shape for group in together.groups] == [(8, 8, 4), (4, 4, 8)]
    for group, *apart in zip(together.groups, *(teacher.groups for teacher in teachers), strict=True):
        margins = [group_margins(part, "pre_activation") for part in apart]
        np.testing.assert_allclose(group_margins(group, "pre_activation"), np.concatenate(margins), rtol=1e-6)


def test_pre_activation_networks_of_other_depths_are_put_together(build_model: Callable[..., keras.Model], digits: np.ndarray) -> None:
    teachers = [FeatureModel.from_model(build_model(name, seed), tap="output") for name, seed in (("wrn_10_1", 1), ("wrn_16_1", 2))]
    together = ensemble(teachers)
    assert together.tap == "output"
    assert [len(group.blocks) for group in together.groups] == [1 + 2] * 3
    one, other = (teacher.model(digits).numpy() for teacher in teachers)
    np.testing.assert_allclose(together.model(digits), (one + other) / 2, rtol=1e-4, atol=1e-5)
    behind = [block.taps["pre_activation"].norm for block in together.groups[2].blocks]
    assert [norm.name for norm in behind if norm is not None] == ["teacher1_head_bn", "teacher2_group3_block2_1_bn", "teacher2_head_bn"]


def test_the_copies_are_apart_from_the_teachers(teachers: list[FeatureModel], digits: np.ndarray) -> None:
    together = ensemble(teachers)
    before = together.model(digits).numpy()
    assert {variable.path.split("_")[0] for variable in together.model.variables} == {"teacher1", "teacher2"}
    for teacher in teachers:
        assert not any(name.startswith("teacher") for name in (layer.name for layer in teacher.model.layers))
        teacher.model.get_layer("logits").bias.assign_add(np.ones(10))
    np.testing.assert_array_equal(together.model(digits), before)


def test_logits_are_float32_also_of_networks_that_compute_in_bfloat16(digits: np.ndarray) -> None:
    def half() -> keras.Model:
        pixels = layers.Input((8, 8, 1))
        x = layers.ReLU(name="block")(layers.Conv2D(4, 3)(pixels))
        return keras.Model(pixels, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))

    with precision("mixed_bfloat16"):
        teachers = [FeatureModel.from_model(half()) for _ in range(2)]
        logits = ensemble(teachers).model(digits)
    assert teachers[0].model(digits).dtype == tf.bfloat16
    assert logits.dtype == tf.float32
    one, other = (np.asarray(teacher.model(digits), np.float32) for teacher in teachers)
    np.testing.assert_allclose(logits, (one + other) / 2, rtol=1e-6)


def test_what_a_normalization_was_adapted_to_is_kept_and_operations_are_no_obstacle(digits: np.ndarray) -> None:
    def network(scale: float) -> FeatureModel:
        normalization = layers.Normalization()
        normalization.adapt(scale * digits)
        pixels = layers.Input((8, 8, 1))
        x = keras.ops.relu(layers.Conv2D(4, 3, name="conv")(normalization(pixels))) + 1.0
        return FeatureModel.from_model(keras.Model(pixels, layers.Dense(10)(layers.Flatten()(x))), [["conv"]])

    teachers = [network(1.0), network(3.0)]
    one, other = (teacher.model(digits).numpy() for teacher in teachers)
    np.testing.assert_allclose(ensemble(teachers).model(digits), (one + other) / 2, rtol=1e-4, atol=1e-5)


def test_an_ensemble_is_the_same_from_its_file_in_safe_mode(teachers: list[FeatureModel], digits: np.ndarray, tmp_path: Path) -> None:
    together = ensemble(teachers)
    together.model.save(tmp_path / "teacher.keras")
    loaded = keras.models.load_model(tmp_path / "teacher.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(digits), together.model(digits))
    assert {layer.name for layer in loaded.layers} == {layer.name for layer in together.model.layers}


def test_an_ensemble_is_read_from_its_file_by_the_names_of_its_blocks(
    teachers: list[FeatureModel], digits: np.ndarray, tmp_path: Path
) -> None:
    together = ensemble(teachers)
    together.model.save(tmp_path / "teacher.keras")
    read = FeatureModel.from_model(tmp_path / "teacher.keras", together.block_names())
    assert read.block_names() == together.block_names()
    features, expected = read.extractor(["output"])(digits), together.extractor(["output"])(digits)
    for one, other in zip(tf.nest.flatten(features), tf.nest.flatten(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(UserError, match="no layer group was found in the graph: name them by groups"):
        FeatureModel.from_model(tmp_path / "teacher.keras")


def test_an_ensemble_has_no_embedding(teachers: list[FeatureModel]) -> None:
    """No single Dense layer makes its logits."""
    assert teachers[0].extractor().symbolic().embedding is not None
    assert ensemble(teachers).extractor().symbolic().embedding is None


def test_an_ensemble_teaches_by_the_statistics_of_the_batch_too(teachers: list[FeatureModel], digits: np.ndarray) -> None:
    features = frozen(ensemble(teachers), batchnorm="training")(digits)
    one, other = (frozen(teacher, batchnorm="training")(digits).logits for teacher in teachers)
    np.testing.assert_allclose(features.logits, (one + other) / 2, rtol=1e-4, atol=1e-5)


def test_a_frozen_ensemble_sends_no_gradient(teachers: list[FeatureModel], digits: np.ndarray) -> None:
    together = ensemble(teachers)
    with tf.GradientTape() as tape:
        features = frozen(together)(tf.constant(digits))
        total = tf.reduce_sum(features.logits) + tf.reduce_sum(features.groups[0][2])
    gradients = tape.gradient(total, [variable.value for variable in together.model.trainable_variables])
    assert gradients == [None] * len(gradients)


def test_a_search_weighs_the_blocks_of_all_teachers(teachers: list[FeatureModel], tiny: Tiny, splits: Splits, config: Config) -> None:
    together = ensemble(teachers)
    one_step = config.override(["data.batch_size=30", "search.epochs=1", "search.mode=joint"])
    result = search(together, tiny(6, 1), splits, one_step)
    assert result.steps == 1
    result.weights.check(together)
    assert [len(group.alpha) for group in result.weights.groups] == [3, 3]
    last = AggregationWeights.by_rule("last", together)
    assert [group.alpha for group in last.groups] == [(0, 0, 1)] * 2


def classes(tiny: Tiny, count: int) -> FeatureModel:
    model = tiny(4, 1).model
    return FeatureModel.from_model(keras.Model(model.input, layers.Dense(count)(model.layers[-2].output), name=f"of_{count}"))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (lambda tiny: classes(tiny, 7), "must agree in num_classes. Received: 10 of 'tiny_4_1', 7 of 'of_7'"),
        (lambda tiny: FeatureModel.from_model(tiny(4, 1), tap="output"), "agree in tap. Received: pre_activation of 'tiny_4_1', output of"),
        (lambda tiny: tiny(6, 1), r"the shapes of their groups. Received: \[\(8, 8, 4\), \(4, 4, 8\)\] of 'tiny_4_1', \[\(8, 8, 6\), "),
        (
            lambda tiny: FeatureModel.from_model(tiny(4, 2).model, [["group1_block1"]]),
            r"the shapes of their groups. Received: .* \[\(8, 8, 4\)\] of 'tiny_4_2'",
        ),
    ],
    ids=["classes", "tap", "width", "groups"],
)
def test_teachers_that_do_not_agree_are_refused(other: Callable[[Tiny], FeatureModel], told: str, tiny: Tiny) -> None:
    with pytest.raises(UserError, match=told):
        ensemble([tiny(4, 1), other(tiny)])


def test_teachers_of_other_images_are_refused(build_model: Callable[..., keras.Model], student: FeatureModel) -> None:
    pixels = layers.Input((6, 6, 1))
    x = layers.ReLU(name="block")(layers.Conv2D(4, 3)(pixels))
    small = FeatureModel.from_model(keras.Model(pixels, layers.Dense(10)(layers.Flatten()(x)), name="small"))
    with pytest.raises(UserError, match=r"agree in image_shape. Received: \(8, 8, 1\) of 'wrn_10_1', \(6, 6, 1\) of 'small'"):
        ensemble([student, small])


def test_one_teacher_is_no_ensemble(student: FeatureModel) -> None:
    with pytest.raises(UserError, match="an ensemble needs two teachers or more. Received: 1"):
        ensemble([student])
