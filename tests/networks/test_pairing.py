"""Groups pair in order where there are as many, else by stride; what is not plain is logged, and nothing is cut in silence."""

from collections.abc import Callable

import keras
import pytest

from dfa_tf.aggregation.search import search
from dfa_tf.config import Config
from dfa_tf.distillation.distil import distil
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Splits
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.pairing import keep_paired_groups, match, pair_groups, stride


def pyramid(*sides: int, name: str) -> FeatureModel:
    """A plain stack with a group of each of these sides, from 16x16 pixels."""
    pixels = x = keras.layers.Input((16, 16, 1))
    for side in sides:
        x = keras.layers.Conv2D(4, 3, x.shape[1] // side, padding="same", activation="relu", name=f"at{side}")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(pixels, keras.layers.Dense(3)(x), name=name)
    return FeatureModel.from_model(model, [[f"at{side}"] for side in sides])


def names(network: FeatureModel) -> list[list[str]]:
    return network.block_names()


def test_as_many_groups_stay_as_they_are(tiny: Callable[..., FeatureModel], caplog: pytest.LogCaptureFixture) -> None:
    student, teacher = tiny(), tiny(6, 2)
    assert keep_paired_groups(student, teacher) == (student, teacher)
    assert caplog.text == ""
    assert pair_groups(student, teacher) == list(zip(student.groups, teacher.groups, strict=True))


def test_other_numbers_pair_by_stride_and_what_is_left_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    student, teacher = keep_paired_groups(pyramid(16, 4, name="small"), pyramid(16, 8, 4, 2, name="big"))
    assert names(student) == [["at16"], ["at4"]]
    assert names(teacher) == [["at16"], ["at4"]]
    assert "big: the group of 8x8 has no partner" in caplog.text
    assert "big: the group of 2x2 has no partner" in caplog.text
    caplog.clear()
    student, teacher = keep_paired_groups(pyramid(16, 8, 4, name="small"), pyramid(8, 4, name="big"))
    assert names(student) == names(teacher) == [["at8"], ["at4"]]
    assert "small: the group of 16x16 has no partner" in caplog.text


def test_other_resolutions_of_as_many_groups_pair_in_order_and_are_told(caplog: pytest.LogCaptureFixture) -> None:
    student, teacher = keep_paired_groups(pyramid(8, 4, name="small"), pyramid(16, 4, name="big"))
    assert (names(student), names(teacher)) == ([["at8"], ["at4"]], [["at16"], ["at4"]])
    assert "the student's group of 8x8 is resized for the teacher's of 16x16" in caplog.text
    assert "4x4" not in caplog.text


def test_no_common_stride_is_refused() -> None:
    with pytest.raises(UserError, match=r"Received: \['8x8', '4x4'\] in 'small' and \['16x16'\] in 'big'; name as many groups in"):
        keep_paired_groups(pyramid(8, 4, name="small"), pyramid(16, name="big"))


def test_convolutions_without_padding_keep_their_stride(caplog: pytest.LogCaptureFixture) -> None:
    """Groups of 14x14 and 6x6 of 16x16 pixels: 16 / 14 is nearest to a stride of 1, and 16 / 6 to one of 2."""
    pixels = keras.layers.Input((16, 16, 1))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="at14")(pixels)
    x = keras.layers.Conv2D(4, 3, 2, activation="relu", name="at6")(x)
    model = keras.Model(pixels, keras.layers.Dense(3)(keras.layers.Flatten()(x)), name="cropped")
    cropped = FeatureModel.from_model(model, [["at14"], ["at6"]])
    assert [stride(cropped, group) for group in cropped.groups] == [(1, 1), (2, 2)]
    student, teacher = keep_paired_groups(cropped, pyramid(16, 8, 4, name="big"))
    assert (names(student), names(teacher)) == ([["at14"], ["at6"]], [["at16"], ["at8"]])
    assert "the student's group of 6x6 is resized for the teacher's of 8x8" in caplog.text


def test_the_deepest_group_of_a_stride_stands_for_it() -> None:
    wide = pyramid(16, 8, name="small").model
    x = keras.layers.Conv2D(4, 2, name="at7")(wide.get_layer("at8").output)
    model = keras.Model(wide.input, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    student = FeatureModel.from_model(model, [["at16"], ["at8"], ["at7"]])
    assert match(student, pyramid(16, 8, name="big")) == [(0, 0), (2, 1)]


def test_groups_that_are_not_aligned_are_never_cut() -> None:
    with pytest.raises(
        UserError, match="same number of layer groups. Received: 2 in 'small' and 1 in 'big'; dfa_tf.networks.pairing.keep_paired_groups"
    ):
        pair_groups(pyramid(16, 8, name="small"), pyramid(16, name="big"))


def test_networks_of_other_groups_go_through_both_stages(
    tiny: Callable[..., FeatureModel], splits: Splits, quick: Config, caplog: pytest.LogCaptureFixture
) -> None:
    """The teacher has groups of 8x8, 4x4 and 2x2, the student of 8x8 and 4x4."""
    inner = tiny(6, 2, seed=2).model
    x = keras.layers.Conv2D(5, 3, 2, padding="same", name="deep")(inner.get_layer("group2_block2").output)
    logits = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    names = [[f"group{group}_block{block}" for block in (1, 2)] for group in (1, 2)]
    teacher = FeatureModel.from_model(keras.Model(inner.input, logits, name="deeper"), [*names, ["deep"]])
    config = quick.override(["search.epochs=1", "search.mode=joint", "train.epochs=1", "data.batch_size=30"])
    found = search(teacher, tiny(seed=1), splits, config)
    assert [list(group.blocks) for group in found.weights.groups] == names
    assert "deeper: the group of 2x2 has no partner" in caplog.text
    trained = distil(teacher, tiny(seed=1), splits, config, aggregation=found.weights)
    assert {"dfa/group1", "dfa/group2"} <= set(trained.history[0])
    assert "dfa/group3" not in trained.history[0]
