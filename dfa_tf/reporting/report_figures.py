"""The figures of a run for its report, each with an alternative text."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.display import figures
from dfa_tf.display.figures import Curve
from dfa_tf.reporting.record import Record

SECTIONS = ("weights", "curves", "answers")
_PIXELS, _PIXELS_OF_WIDE = 110, 90  # of a screen for an inch, so that the letters of both are large enough
_WIDE = 6.5  # inches


class Drawing(NamedTuple):
    """A figure of the report.

    Attributes:
        name: of its PNG file, without the suffix.
        section: of the report, one of `SECTIONS`.
        title: above it.
        alt: what it shows, in words.
        png: its content.
        width: in screen pixels.
        height: likewise.
        wide: whether it is too wide for a card beside another.
    """

    name: str
    section: str
    title: str
    alt: str
    png: bytes
    width: int
    height: int
    wide: bool


CURVES = {
    "test_accuracy": ("test_accuracy", "accuracy on the test set"),
    "validation_accuracy": ("validation_accuracy", "accuracy on the validation split"),
    "training_accuracy": ("accuracy", "accuracy on varied training images"),
    "test_loss": ("test_loss", "cross-entropy on the test set"),
    "validation_loss": ("validation_loss", "cross-entropy on the validation split"),
    "training_loss": ("total_loss", "whole loss on varied training images"),
}
"""By name of the figure, the field of `metrics.jsonl` and the title."""
NAMES = ("alphas", "alphas_used", "trajectory", *CURVES, "confusion")
"""Of all figures that a report can have."""


def draw(record: Record) -> list[Drawing]:
    """The figures of a run, in the order of the report."""
    return [*_weights(record), *_trajectory(record), *_curves(record), *_confusion(record)]


def _drawing(name: str, section: str, title: str, alt: str, figure: Figure) -> Drawing:
    inches = figure.get_size_inches()
    wide = bool(inches[0] > _WIDE)
    width, height = (round(side * (_PIXELS_OF_WIDE if wide else _PIXELS)) for side in inches)
    return Drawing(name, section, title, alt, figures.png(figure), width, height, wide)


def _weights(record: Record) -> Iterator[Drawing]:
    """The heat map of the search, and that of the student's own weights where they are others."""
    kinds: dict[str, tuple[AggregationWeights | None, str]] = {
        "alphas": (record.searched, "Aggregation weights that the search has found"),
        "alphas_used": (record.used, f"Aggregation weights of the {record.config.method} student"),
    }
    alphas: list[list[tuple[float, ...]]] = []
    for name, (weights, title) in kinds.items():
        if weights is None or (values := [group.alpha for group in weights.groups]) in alphas:
            continue
        alphas.append(values)
        text = "; ".join(f"group {number}: {', '.join(f'{value:.3f}' for value in group)}" for number, group in enumerate(values, 1))
        figure = figures.heat_map(values, title=weights.teacher, blocks=[group.blocks for group in weights.groups])
        yield _drawing(name, "weights", title, f"Alpha by block, from the first to the last: {text}", figure)


def _trajectory(record: Record) -> Iterator[Drawing]:
    if not record.trajectory:
        return
    groups: dict[int, dict[str, Curve]] = {}
    for group, block in dict.fromkeys((row.group, row.block) for row in record.trajectory):
        rows = [row for row in record.trajectory if (row.group, row.block) == (group, block)]
        groups.setdefault(group, {})[block] = [row.epoch for row in rows], [row.alpha for row in rows]
    ordered = [groups[number] for number in sorted(groups)]
    ends = "; ".join(
        f"group {number}: " + ", ".join(f"{block} from {y[0]:.3f} to {y[-1]:.3f}" for block, (_, y) in lines.items())
        for number, lines in enumerate(ordered, start=1)
    )
    title = "Course of the aggregation weights"
    yield _drawing("trajectory", "weights", title, f"Alpha over the epochs of the search. {ends}", figures.trajectory(ordered))


def _curves(record: Record) -> Iterator[Drawing]:
    for name, (field, title) in CURVES.items():
        lines: dict[str, Curve] = {}
        for network in record.networks:
            rows = [row for row in network.history if field in row]
            if rows:
                lines[network.title] = [row.get("epoch", place) for place, row in enumerate(rows, start=1)], [row[field] for row in rows]
        if lines:
            percent = name.endswith("accuracy")
            form = "{:.2%}" if percent else "{:.3g}"
            ends = ", ".join(f"{each} from {form.format(y[0])} to {form.format(y[-1])}" for each, (_, y) in lines.items())
            alt = f"{title[0].upper()}{title[1:]} over the epochs: {ends}"
            yield _drawing(name, "curves", title[0].upper() + title[1:], alt, figures.curves(lines, what=title, percent=percent))


def _confusion(record: Record) -> Iterator[Drawing]:
    name = examined(record)
    if record.predictions is None or name is None:
        return
    counts = record.predictions.confusion(name)
    alt = f"Of {counts.sum()} test images {np.trace(counts)} are on the diagonal, where the predicted class is the true one"
    yield _drawing(
        "confusion", "answers", f"Confusion matrix of {who(name)}", alt, figures.confusion_matrix(counts, record.predictions.class_names)
    )


def examined(record: Record) -> str | None:
    """The network whose answers are shown: the run's student, or else the last student with answers, or else the teacher."""
    answered = [] if record.predictions is None else list(record.predictions.answers)
    return record.config.method if record.config.method in answered else (answered[-1] if answered else None)


def who(name: str) -> str:
    """A network in words, from the name of its answers."""
    return "the teacher" if name == "teacher" else f"the {name} student"
