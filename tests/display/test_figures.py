"""Figures: what their pixels and texts say."""

import io
from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from dfa_tf.display.figures import confusion_matrix, curves, heat_map, pixels_shown, png, sample_predictions, save, trajectory


def drawn(figure: Figure) -> np.ndarray:
    """The pixels of a figure's PNG, 0..1, `[height, width, 3]`."""
    return matplotlib.image.imread(io.BytesIO(png(figure)))[..., :3]


def share(picture: np.ndarray, colour: object) -> float:
    """Of the pixels that have a colour."""
    return float(np.mean(np.all(np.abs(picture - np.array(matplotlib.colors.to_rgb(colour))) < 0.01, axis=-1)))


def texts(figure: Figure) -> list[str]:
    """Everything that is written in a figure."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_a_heat_map_shows_larger_weights_brighter_and_leaves_missing_blocks_blank() -> None:
    picture = drawn(heat_map([(0.1, 0.9), (1.0,)], title="aggregation weights of t"))
    viridis = matplotlib.colormaps["viridis"]
    cells = [share(picture, viridis(value)) for value in (0.1, 0.9, 1.0)]
    assert min(cells) > 0.05, cells
    assert share(picture, viridis(0.5)) < 0.01


def test_a_heat_map_names_blocks_where_asked() -> None:
    written = texts(heat_map([(0.25, 0.75)], title="t", blocks=[("stem_add", "a" * 40)]))
    assert {"0.250", "stem_add", "0.750", "a" * 17 + "…"} <= set(written)


def test_equal_figures_give_equal_bytes() -> None:
    for make in (
        lambda: curves({"teacher": ((1, 2), (0.5, 0.75))}, what="accuracy", percent=True),
        lambda: heat_map([(0.5, 0.5)], title="t"),
        lambda: confusion_matrix(np.eye(3, dtype=int), list("abc")),
    ):
        assert png(make()) == png(make())


def test_a_figure_is_saved_in_one_piece(tmp_path: Path) -> None:
    save(heat_map([(1.0,)], title="t"), tmp_path / "map.png")
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]
    assert (tmp_path / "map.png").read_bytes() == png(heat_map([(1.0,)], title="t"))


def test_lines_differ_in_colour_and_in_style() -> None:
    names = ["teacher", "plain", "dfa", "kd"]
    axes = curves(dict.fromkeys(names, ((1, 2, 3), (0.1, 0.2, 0.3))), what="loss").axes[0]
    lines = axes.get_lines()
    assert [line.get_label() for line in lines] == names
    assert len({line.get_color() for line in lines}) == len({str(line.get_linestyle()) for line in lines}) == 4
    assert all(list(line.get_xdata()) == [1, 2, 3] for line in lines)


def test_a_line_of_one_point_can_be_seen() -> None:
    (line,) = curves({"teacher": ((12,), (0.5,))}, what="accuracy").axes[0].get_lines()
    assert line.get_marker() == "o"


def test_shares_are_shown_as_percent() -> None:
    figure = curves({"teacher": ((1, 2), (0.2, 0.8))}, what="accuracy", percent=True)
    png(figure)
    assert [label for label in texts(figure) if label == "60%"], texts(figure)


def test_the_trajectory_has_a_panel_for_each_group_and_a_line_for_each_block() -> None:
    groups = [{"a": ((1, 2), (0.5, 0.4)), "b": ((1, 2), (0.5, 0.6))}, {"c": ((1, 2), (1.0, 1.0))}]
    panels = trajectory(groups).axes
    assert [[line.get_label() for line in axes.get_lines()] for axes in panels] == [["a", "b"], ["c"]]
    assert [axes.get_ylabel() for axes in panels] == ["alpha, group 1", "alpha, group 2"]


def test_a_confusion_matrix_shows_shares_of_the_true_class_by_row() -> None:
    # Of class 0 three of four are right and one is taken for 1; of class 1 all are right.
    axes = confusion_matrix(np.array([[3, 1], [0, 2]]), ["cat", "dog"]).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.75, 0.25], [0, 1]])
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [((0, 0), "3"), ((1, 0), "1"), ((1, 1), "2")]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")


def test_a_class_without_images_has_an_empty_row() -> None:
    axes = confusion_matrix(np.array([[0, 0], [1, 1]]), ["cat", "dog"]).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array()[0], [0, 0])


@pytest.mark.parametrize("classes", [2, 10, 20, 100])
def test_there_is_room_for_the_name_of_every_class(classes: int) -> None:
    figure = confusion_matrix(np.eye(classes, dtype=int), [f"quite a long name {number}" for number in range(classes)])
    axes = figure.axes[0]
    labels = axes.get_yticklabels()
    points = axes.get_position().height * figure.get_figheight() * 72 / classes
    assert len(labels) == classes
    assert 6.5 <= labels[0].get_fontsize() <= points
    # A letter of this font is at most 0.64 of its size wide on the average; beside the names stands that of the axis.
    assert axes.get_position().x0 * figure.get_figwidth() * 72 > 18 * 0.6 * labels[0].get_fontsize() + 20


def test_of_very_many_classes_some_are_named() -> None:
    axes = confusion_matrix(np.eye(1000, dtype=int), list(map(str, range(1000)))).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()][:3] == ["0", "4", "8"]


def test_wrong_predictions_are_marked() -> None:
    images = np.zeros((2, 4, 4, 1), np.uint8)
    right, wrong = sample_predictions(images, [0, 0], [0, 1], ["cat", "dog"]).axes
    assert (right.get_title(), wrong.get_title()) == ("cat\nright", "cat\ntaken for dog")
    assert wrong.spines["left"].get_linewidth() > right.spines["left"].get_linewidth()


def test_no_images_give_an_empty_figure() -> None:
    assert sample_predictions(np.zeros((0, 4, 4, 3), np.uint8), [], [], ["cat", "dog"]).axes == []


@pytest.mark.parametrize(
    ("channels", "values", "expected"),
    [
        (1, [7.4], 7),
        (2, [10, 20], 15),
        (3, [-3, 128, 300], [0, 128, 255]),
        (4, [1, 2, 3, 255], [1, 2, 3]),
    ],
)
def test_images_of_any_channels_are_shown(channels: int, values: list[float], expected: object) -> None:
    shown = pixels_shown(np.full((2, 2, channels), values, np.float32))
    assert shown.dtype == np.uint8
    assert shown[0, 0].tolist() == expected


def test_names_are_data_and_no_formulas() -> None:
    """Between dollars matplotlib would set a formula, and fail where it is none."""
    names = ["$\\frac{$", "line\nbreak"]
    for figure in (
        confusion_matrix(np.eye(2, dtype=int), names),
        sample_predictions(np.zeros((2, 2, 2, 3)), [0, 1], [1, 1], names),
        curves(dict.fromkeys(names, ((1,), (1.0,))), what=names[0]),
        trajectory([dict.fromkeys(names, ((1,), (1.0,)))]),
        heat_map([(0.5, 0.5)], title=names[0], blocks=[names]),
    ):
        png(figure)
        assert any("$\\frac{$" in text for text in texts(figure))
        assert any("line break" in text for text in texts(figure))


def test_epochs_are_whole_also_where_there_is_one() -> None:
    axes = curves({"teacher": ((2,), (0.5,))}, what="accuracy").axes[0]
    assert [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]] == [2]


def test_names_in_a_script_that_the_font_lacks_are_no_reason_to_warn() -> None:
    assert png(confusion_matrix(np.eye(2, dtype=int), ["\N{CJK UNIFIED IDEOGRAPH-732B}", "dog"]))
