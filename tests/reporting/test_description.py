"""What is said of networks, by hand: their groups and sizes, how they pair, and how it is shown."""

import json
from collections.abc import Callable
from pathlib import Path

import keras
import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from dfa_tf.config import Config, TrainConfig
from dfa_tf.errors import UserError
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.groups import LeftOut
from dfa_tf.reporting.description import describe, describe_network
from dfa_tf.reporting.description_picture import draw
from dfa_tf.reporting.description_tables import amount, print_description, shape, stride
from dfa_tf.reporting.description_types import ConnectorDescription, Description


@pytest.fixture
def pair(tiny: Callable[..., FeatureModel]) -> Description:
    """Groups of 8x8 and 4x4: a teacher of two blocks of 6 and 12 channels, a student of one block of 4 and 8."""
    return describe(tiny(6, 2), tiny(4, 1), batch_size=10)


@pytest.fixture
def uneven(tiny: Callable[..., FeatureModel]) -> Description:
    """The student has the group of 4x4 alone."""
    return describe(tiny(6, 2), FeatureModel.from_model(tiny(4, 1).model, [["group2_block1"]]))


# What is found


def test_groups_and_head_by_hand(pair: Description) -> None:
    """Of the student: convolutions of 1 to 4 and of 4 to 8 channels, each with scale and offset of BatchNorm; Dense of 8 to 10."""
    student = pair.student
    assert student is not None
    first, second = student.groups
    assert (first.blocks, first.shape, first.stride) == (("group1_block1",), (8, 8, 4), (1, 1))
    assert (second.blocks, second.shape, second.stride) == (("group2_block1",), (4, 4, 8), (2, 2))
    assert (first.parameters, first.macs) == (9 * 4 + 8, 64 * 9 * 4)
    assert (second.parameters, second.macs) == (9 * 4 * 8 + 16, 16 * 9 * 4 * 8)
    assert student.head == (8 * 10 + 10, 8 * 10)
    assert (student.parameters, student.macs) == (44 + 304 + 90, 2304 + 4608 + 80)
    assert student.macs_by_type == {"Conv2D": 2304 + 4608, "Dense": 80}
    assert student.bytes == 4 * (438 + 2 * (4 + 8)), "with mean and variance of BatchNorm"
    assert (student.name, student.image_shape, student.num_classes, student.tap) == ("tiny_4_1", (8, 8, 1), 10, "pre_activation")


def test_a_layer_that_is_called_twice_has_its_parameters_once_and_its_macs_twice() -> None:
    x = image = keras.layers.Input((4, 4, 2))
    shared = keras.layers.Conv2D(2, 1, use_bias=False)
    for name in ("one", "two"):
        x = keras.layers.ReLU(name=name)(shared(x))
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    one, two = describe_network(FeatureModel.from_model(model, [["one"], ["two"]])).groups
    assert (one.parameters, two.parameters) == (4, 0)
    assert (one.macs, two.macs) == (16 * 4, 16 * 4)


def test_pairs_connectors_and_ratios_by_hand(pair: Description) -> None:
    assert (pair.rule, pair.alone("teacher"), pair.alone("student")) == ("in order", [], [])
    first, second = pair.pairs
    assert (first.teacher, first.student, first.candidates) == (1, 1, 2)
    # 1x1 convolutions without bias, and BatchNorm's scale and offset.
    assert first.to_teacher == ConnectorDescription((8, 8, 4), (8, 8, 6), 4 * 6 + 2 * 6)
    assert first.to_student == ConnectorDescription((8, 8, 6), (8, 8, 4), 6 * 4 + 2 * 4)
    assert second.to_teacher == ConnectorDescription((4, 4, 8), (4, 4, 12), 8 * 12 + 2 * 12)
    teacher = (9 * 6 + 12) + (9 * 36 + 12) + (9 * 6 * 12 + 24) + (9 * 144 + 24) + 130
    assert pair.compression["parameters"] == teacher / 438
    assert pair.compression["macs"] == (64 * 9 * (6 + 36) + 16 * 9 * (72 + 144) + 120) / (2304 + 4608 + 80)


def test_groups_without_a_partner_are_told(uneven: Description) -> None:
    assert (uneven.rule, uneven.alone("teacher"), uneven.alone("student")) == ("by stride", [1], [])
    assert [(pair.teacher, pair.student) for pair in uneven.pairs] == [(2, 1)]


def test_memory_holds_the_teachers_candidates_and_their_aggregation(pair: Description, uneven: Description) -> None:
    assert pair.memory.features == 10 * 4 * 3 * (64 * 6 + 16 * 12)
    assert uneven.memory.features == 128 * 4 * 3 * 16 * 12
    connectors = 4 * 6 + 12 + 8 * 12 + 24
    assert pair.memory.gradients == 4 * (438 + connectors)


def test_a_network_alone_is_the_one_that_is_trained(tiny: Callable[..., FeatureModel]) -> None:
    network = tiny()
    alone = describe(network, batch_size=10, train=TrainConfig(ema=0.9))
    assert (alone.student, alone.pairs, alone.rule, alone.compression) == (None, (), "", {})
    assert (alone.memory.gradients, alone.memory.optimizer, alone.memory.features) == (4 * 438, 2 * 4 * 438, 0)
    assert (alone.alone("teacher"), alone.alone("student")) == ([1, 2], [])
    assert alone.config == {"teacher": {"groups": [["group1_block1"], ["group2_block1"]]}}


def test_networks_that_do_not_fit_each_other_are_refused(tiny: Callable[..., FeatureModel]) -> None:
    x = keras.layers.Input((8, 8, 1))
    y = keras.layers.ReLU(name="block")(keras.layers.Conv2D(2, 1)(x))
    y = keras.layers.Dense(3)(keras.layers.Flatten()(y))
    other = FeatureModel.from_model(keras.Model(x, y, name="other"), [["block"]])
    with pytest.raises(UserError, match="agree in num_classes. Received: 3 of 'other', 10 of 'tiny_4_1'"):
        describe(tiny(), other)


# As JSON


def test_the_json_holds_everything_and_a_part_of_a_configuration(uneven: Description) -> None:
    tree = json.loads(json.dumps(uneven.to_json()))
    groups = [["group2_block1", "group2_block2"]], [["group2_block1"]]
    assert tree["config"] == {"teacher": {"groups": groups[0]}, "student": {"groups": groups[1]}}
    config = Config.from_json(json.dumps(tree["config"]))
    assert (config.teacher.groups, config.student.groups) == ((("group2_block1", "group2_block2"),), (("group2_block1",),))
    assert tree["alone"] == {"teacher": [1], "student": []}
    assert tree["memory"]["total"] == uneven.memory.total
    assert tree["teacher"]["head"] == {"parameters": 130, "macs": 120}
    assert tree["compression"] == uneven.compression


def test_what_was_left_out_is_told_with_its_reason(tiny: Callable[..., FeatureModel], capsys: pytest.CaptureFixture[str]) -> None:
    network = tiny()
    network.left_out = (LeftOut("stem_relu", "it belongs to the [stem]"),)
    description = describe(network)
    assert description.to_json()["teacher"]["left_out"] == [{"name": "stem_relu", "reason": "it belongs to the [stem]"}]
    print_description(description)
    assert "left out: stem_relu: it belongs to the [stem]" in capsys.readouterr().out


# As tables and a picture


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1000, "1.00 k"), (300_774_272, "300.8 M"), (999_960, "1.00 M"), (3.858e9, "3.86 G")]
)
def test_amounts_have_three_or_four_digits(number: float, text: str) -> None:
    assert amount(number) == text


def test_shapes_and_strides_as_words() -> None:
    assert (shape((32, 16, 3)), stride((4, 4)), stride((4, 2))) == ("32x16x3", "4", "4x2")


def test_the_tables_hold_what_was_found(uneven: Description, capsys: pytest.CaptureFixture[str]) -> None:
    print_description(uneven)
    shown = capsys.readouterr().out
    for text in (
        "tiny_6_2", "2,524", "438", "5.76", "6.99 k",  # parameters, their ratio (2524 / 438), and MACs
        "2: group1_block1 to group1_block2", "1: group2_block1", "pair by stride", "2: 4x4x12", "1: 4x4x8",
        "group 1 of the teacher, 8x8x6, has no partner of its stride",
        """--set 'teacher.groups=[["group2_block1", "group2_block2"]]'""", """--set 'student.groups=[["group2_block1"]]'""",
    ):  # fmt: skip
        assert text in shown, text


def test_what_is_not_counted_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    x = image = keras.layers.Input((4, 4, 2))
    x = keras.layers.ReLU(name="block")(keras.layers.Conv2D(2, 1)(x))
    x = keras.layers.EinsumDense("bhwc,cd->bhwd", output_shape=(4, 4, 3), name="mixer")(x)
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(x)), name="mixed")
    print_description(describe(FeatureModel.from_model(model, [["block"]])))
    assert "The MACs of mixed are more: not counted are those of mixer." in capsys.readouterr().out


def test_eighty_columns_are_enough(pair: Description, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich takes any output for a terminal
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    print_description(pair)
    shown = capsys.readouterr().out
    assert "…" not in shown, "something is cut"
    assert max(len(line) for line in shown.splitlines() if "--set" not in line) <= 80


def colours(path: Path) -> Callable[[str], float]:
    """The share of a picture's pixels that have a colour."""
    picture = matplotlib.image.imread(path)[..., :3]
    return lambda colour: float(np.mean(np.all(np.abs(picture - np.array(matplotlib.colors.to_rgb(colour))) < 0.01, axis=-1)))


def test_the_picture_shows_both_networks_and_a_line_for_each_pair(pair: Description, uneven: Description, tmp_path: Path) -> None:
    draw(pair, tmp_path / "pair.png")
    draw(uneven, tmp_path / "uneven.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pair.png", "uneven.png"]
    both, fewer = colours(tmp_path / "pair.png"), colours(tmp_path / "uneven.png")
    blue, green, grey, red = "#cfe3f7", "#d9f0d3", "#ececec", "#b0413e"
    assert min(both(blue), both(green)) > 0.1
    assert both(grey) < 0.001, "but for the edges of letters"
    assert fewer(grey) > 0.05, "the group that is left alone is pale"
    assert both(red) > 1.3 * fewer(red) > 0, "two lines, and one"


def test_the_picture_of_one_network_has_no_lines(tiny: Callable[..., FeatureModel], tmp_path: Path) -> None:
    draw(describe(tiny(4, 12)), tmp_path / "one.png")
    share = colours(tmp_path / "one.png")
    assert share("#cfe3f7") > 0.3
    assert share("#b0413e") == 0
    # 2 groups of 12 blocks are drawn in 8 lines each: with all of them it would be a third higher.
    assert matplotlib.image.imread(tmp_path / "one.png").shape[0] < 800
