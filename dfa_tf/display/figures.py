"""Figures of a run: aggregation weights, curves, a confusion matrix, and what was predicted for images.

They are made without pyplot, which has state for the whole process. The colours suit colour-blind readers.
"""

import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from pydantic import JsonValue

from dfa_tf.config.space import Choice, Domain
from dfa_tf.storage.files import atomic

Curve = tuple[Sequence[float], Sequence[float]]
"""Positions on the x axis, and the values there."""
Trial = tuple[Mapping[str, JsonValue], float | None]
"""Values by dotted name of the field, and the objective that they reached; None where the trial failed."""
WIDTH = 4.6
"""Width in inches of a figure beside another."""
DPI = 160
"""Pixels to the inch: sharp on a phone too."""
MOST_NUMBERED = 20
"""Largest number of classes for which a confusion matrix shows its counts."""
_WIDEST = 26.0  # inches, of the cells of a confusion matrix
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9")  # of Okabe and Ito
_STYLES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1, 1, 1)))
_WRONG = "#d55e00"
_PLAIN: dict[str, Any] = {"parse_math": False}  # names are data: a dollar does not start a formula


def heat_map(alphas: Sequence[Sequence[float]], *, title: str, blocks: Sequence[Sequence[str]] | None = None) -> Figure:
    """Aggregation weights: a row for each group, a column for each block.

    Args:
        alphas: by group, the weight of each block, 0..1.
        title: above the figure.
        blocks: their names, shown in the cells where given.
    """
    columns = max(map(len, alphas))
    values = np.full((len(alphas), columns), np.nan)
    for row, alpha in enumerate(alphas):
        values[row, : len(alpha)] = alpha
    figure = Figure(figsize=(2.2 + 1.1 * columns, 1.4 + 0.8 * len(alphas)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
        value = values[row, column]
        style: dict[str, Any] = {"ha": "center", "color": "black" if value > 0.6 else "white"}
        axes.text(column, row, f"{value:.3f}", va="center" if blocks is None else "bottom", **style)
        if blocks is not None:
            axes.text(column, row + 0.05, _short(blocks[row][column], 18), va="top", fontsize=7, **style, **_PLAIN)
    axes.set_xticks(range(columns), [f"block {column + 1}" for column in range(columns)])
    axes.set_yticks(range(len(alphas)), [f"group {row + 1}" for row in range(len(alphas))])
    axes.set_title(title, fontsize=10, **_PLAIN)
    figure.colorbar(image, ax=axes, label="alpha")
    return figure


def curves(lines: Mapping[str, Curve], *, what: str, percent: bool = False) -> Figure:
    """Lines over the epochs, each with its own colour and style.

    Args:
        lines: by name; their order decides colour and style.
        what: the values are, as the y axis says it.
        percent: whether the values are shares, 0..1, to be shown as percent.
    """
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = _draw(figure.add_subplot(), lines)
    axes.set_xlabel("epoch")
    axes.set_ylabel(_short(what, 50), fontsize=9, **_PLAIN)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    return figure


def trajectory(groups: Sequence[Mapping[str, Curve]]) -> Figure:
    """The course of the aggregation weights: a panel for each group, a line for each block.

    Args:
        groups: by group, alpha over the epochs by the name of the block.
    """
    figure = Figure(figsize=(WIDTH, 0.5 + 2.0 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for number, (axes, lines) in enumerate(zip(panels, groups, strict=True), start=1):
        _draw(axes, lines).set(ylim=(-0.02, 1.02), ylabel=f"alpha, group {number}")
    panels[-1].set_xlabel("epoch of the search")
    return figure


def _draw(axes: Axes, lines: Mapping[str, Curve]) -> Axes:
    for number, (name, (x, y)) in enumerate(lines.items()):
        style: dict[str, Any] = {"color": _COLOURS[number % len(_COLOURS)], "linestyle": _STYLES[number % len(_STYLES)]}
        axes.plot(x, y, **style, linewidth=1.8, marker="o" if len(x) < 3 else None, markersize=4, label=_short(name, 28))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for text in axes.legend(fontsize=9, framealpha=0.8, handlelength=3.2, ncols=1 + len(lines) // 7).get_texts():
        text.set(**_PLAIN)
    return axes


def trials(tried: Sequence[Trial], space: Mapping[str, Domain], *, objective: str, largest: bool) -> Figure:
    """A search over fields: the trials in their order with the best so far, and the objective over each field.

    Args:
        tried: in the order in which they were asked for; one at least did not fail.
        space: their fields by dotted name.
        objective: its name.
        largest: whether the largest objective is the best, and not the smallest.
    """
    panels = 1 + len(space)
    rows, columns = -(-panels // 3), min(panels, 3)
    figure = Figure(figsize=(4.0 * columns, 3.2 * rows), layout="constrained")
    first, *others = (figure.add_subplot(rows, columns, place + 1) for place in range(panels))
    _course(first, [reached for _, reached in tried], largest=largest)
    for axes, (name, domain) in zip(others, space.items(), strict=True):
        _over(axes, domain, [(values[name], reached) for values, reached in tried if reached is not None])
        axes.set_xlabel(_short(name, 40), **_PLAIN)
    for axes in (first, *others):
        axes.set_ylabel(objective)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _course(axes: Axes, reached: Sequence[float | None], *, largest: bool) -> None:
    done = [(number, value) for number, value in enumerate(reached, start=1) if value is not None]
    numbers, values = [number for number, _ in done], [value for _, value in done]
    axes.plot(numbers, values, "o", color=_COLOURS[0], label="trial")
    axes.step(numbers, (np.maximum if largest else np.minimum).accumulate(values), where="post", color=_COLOURS[2], label="best so far")
    failed = [number for number, value in enumerate(reached, start=1) if value is None]
    if failed:
        axes.plot(failed, [0.02] * len(failed), "x", color=_WRONG, label="failed", transform=axes.get_xaxis_transform())
    axes.set(xlabel="trial", xlim=(0.5, len(reached) + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(fontsize=8, framealpha=0.8)


def _over(axes: Axes, domain: Domain, done: Sequence[tuple[JsonValue, float]]) -> None:
    """The objective over the values of one field."""
    places: list[Any] = [value for value, _ in done]
    if isinstance(domain, Choice):
        places = [domain.values.index(place) for place in places]
        names = [value if isinstance(value, str) else json.dumps(value) for value in domain.values]
        axes.set_xticks(range(len(names)), [_short(name, 24) for name in names], fontsize=8, **_PLAIN)
        axes.set_xlim(-0.5, len(names) - 0.5)
    else:
        axes.set_xscale("log" if domain.log else "linear")
        axes.set_xlim(domain.low, domain.high)
    axes.plot(places, [reached for _, reached in done], "o", color=_COLOURS[0], clip_on=False)


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Which classes are taken for which: the colour is the share of the true class, on a scale that shows small shares too.

    Args:
        counts: images by true class (row) and predicted class (column), integers `[K, K]`.
        class_names: K names.
    """
    classes, many = len(class_names), len(class_names) > MOST_NUMBERED
    cell, size = (min(0.1, _WIDEST / classes), 6.5) if many else (max(0.26, 3 / classes), 7.5)
    named = range(0, classes, math.ceil(size / (65 * cell)))  # all of them, if there is room
    names = [_short(class_names[number], 18) for number in named]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes, scale = _square(cell * classes, margin=0.5 + max(map(len, names)) * size / 115)
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    for row, column in () if many else zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.35 else "black"
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=colour, fontsize=size)
    axes.set_xticks(named, names, rotation=90, fontsize=size, **_PLAIN)
    axes.set_yticks(named, names, fontsize=size, **_PLAIN)
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, cax=scale, label="share of the true class", format=PercentFormatter(xmax=1))
    return figure


def _square(side: float, *, margin: float) -> tuple[Figure, Axes, Axes]:
    """A figure with square axes of so many inches, a margin on the left and below, and axes for a colour scale on the right.

    They are placed by hand: a layout that is found by drawing takes many seconds where there are hundreds of labels.
    """
    width, height = margin + side + 1.0, margin + side + 0.15
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
    scale = figure.add_axes(((margin + side + 0.12) / width, margin / height, 0.15 / width, min(side, 3.0) / height))
    return figure, axes, scale


def sample_predictions(images: np.ndarray, labels: Sequence[int], predicted: Sequence[int], class_names: Sequence[str]) -> Figure:
    """Images with what was predicted for them; what is wrong has a thick frame, and says so.

    Args:
        images: raw pixels 0..255, `[N, H, W, C]`.
        labels: their N classes.
        predicted: the N classes on top.
        class_names: by class.
    """
    columns = min(len(images), 6)
    rows = -(-len(images) // max(columns, 1))
    figure = Figure(figsize=(1.5 * max(columns, 1), 1.9 * max(rows, 1)), layout="constrained")
    for place, (image, label, answer) in enumerate(zip(images, labels, predicted, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(pixels_shown(image), cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        wrong = label != answer
        axes.spines[:].set(color=_WRONG if wrong else "#777777", linewidth=3 if wrong else 0.8)
        title = f"{_short(class_names[label], 16)}\n" + (f"taken for {_short(class_names[answer], 14)}" if wrong else "right")
        axes.set_title(title, fontsize=7, color=_WRONG if wrong else "black", **_PLAIN)
    return figure


def pixels_shown(image: np.ndarray) -> np.ndarray:
    """An image as a screen shows it.

    Args:
        image: raw pixels 0..255, `[H, W, C]`.

    Returns:
        Uint8: `[H, W, 3]` of three channels or four, whose last one is left out; else `[H, W]`, the mean of the channels.
    """
    shown = image[..., :3] if image.shape[-1] in (3, 4) else image.mean(axis=-1)
    return np.clip(np.rint(shown), 0, 255).astype(np.uint8)


def _short(name: str, most: int) -> str:
    """A name in one line; of a long one the beginning."""
    line = " ".join(name.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def png(figure: Figure, *, dpi: int = DPI) -> bytes:
    """The figure as a PNG, with so many pixels to the inch.

    Equal figures give equal bytes, but one that is drawn again may be laid out a little otherwise.
    """
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)  # names may be in any script
        FigureCanvasAgg(figure).print_figure(file, dpi=dpi, format="png", metadata={"Software": None})
    return file.getvalue()


def save(figure: Figure, path: Path, *, dpi: int = DPI) -> None:
    """Writes the figure as a PNG, atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(png(figure, dpi=dpi))
