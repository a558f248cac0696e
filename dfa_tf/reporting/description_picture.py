"""The description of networks as a picture: their groups side by side, and which teaches which."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from dfa_tf.display.figures import save
from dfa_tf.reporting.description_tables import amount, shape, stride
from dfa_tf.reporting.description_types import Description, GroupDescription, NetworkDescription

_LINE, _GAP, _WIDTH, _BETWEEN = 0.2, 0.28, 4.2, 1.6  # inches: a line of text, between boxes, of a box, between the columns
_MOST_BLOCKS = 8
_COLOURS = {"teacher": "#cfe3f7", "student": "#d9f0d3"}
_PALE = "#ececec"

Places = dict[int, tuple[float, float]]
"""By number of a group, the upper and the lower edge of its box, in inches from the top."""


def draw(description: Description, path: Path) -> None:
    """Writes a PNG: a column for each network, a box for each group with its blocks, a line for each pair.

    Args:
        description: of one network or of two.
        path: of the PNG, written atomically.
    """
    networks = {"teacher": description.teacher} | ({"student": description.student} if description.student else {})
    places = _layout(description, networks)
    height = max(lower for column in places.values() for _, lower in column.values()) + _GAP
    width = len(networks) * _WIDTH + (len(networks) - 1) * _BETWEEN + 2 * _GAP
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for column, (who, network) in enumerate(networks.items()):
        left = _GAP + column * (_WIDTH + _BETWEEN)
        _heading(axes, left, who if description.student else "network", network)
        for number, (upper, lower) in places[who].items():
            paired = description.student is None or number not in description.alone(who)
            colour = _COLOURS[who] if paired else _PALE
            axes.add_patch(FancyBboxPatch((left, upper), _WIDTH, lower - upper, "round,pad=0.03", facecolor=colour, edgecolor="#555555"))
            _text(axes, left, upper, _lines(number, network.groups[number - 1], paired))
    for pair in description.pairs:
        ends = [places[who][getattr(pair, who)][0] + _LINE for who in ("teacher", "student")]
        start = _GAP + _WIDTH
        axes.plot([start + 0.03, start + _BETWEEN - 0.03], ends, color="#b0413e", linewidth=2)
        label = f"{pair.candidates} candidate{'s' if pair.candidates > 1 else ''}"
        axes.text(start + _BETWEEN / 2, sum(ends) / 2 - 0.06, label, ha="center", va="bottom", fontsize=9)
    save(figure, path, dpi=120)


def _layout(description: Description, networks: dict[str, NetworkDescription]) -> dict[str, Places]:
    """Boxes from the top to the bottom; those that pair side by side, in the order of each column."""
    places: dict[str, Places] = {who: {} for who in networks}
    free = dict.fromkeys(networks, 4.6 * _LINE)

    def place(who: str, number: int) -> None:
        upper = free[who]
        lower = upper + _LINE * (len(_lines(number, networks[who].groups[number - 1], True)) + 0.4)
        places[who][number] = upper, lower
        free[who] = lower + _GAP

    def place_until(who: str, last: int) -> None:
        for number in range(len(places[who]) + 1, last + 1):
            place(who, number)

    for pair in description.pairs:
        for who in networks:
            place_until(who, getattr(pair, who) - 1)
        free = dict.fromkeys(networks, max(free.values()))
        for who in networks:
            place_until(who, getattr(pair, who))
    for who, network in networks.items():
        place_until(who, len(network.groups))
    return places


def _lines(number: int, group: GroupDescription, paired: bool) -> list[str]:
    blocks = list(group.blocks)
    if len(blocks) > _MOST_BLOCKS:
        left_out = len(blocks) - _MOST_BLOCKS + 1
        blocks = [*blocks[: _MOST_BLOCKS - 2], f"... {left_out} more ...", blocks[-1]]
    heading = f"group {number}: {shape(group.shape)}, stride {stride(group.stride)}"
    costs = f"{amount(group.parameters)} parameters, {amount(group.macs)} MACs"
    return [heading, costs if paired else f"{costs}; no partner", *(f"   {block}" for block in blocks)]


def _heading(axes: Axes, left: float, who: str, network: NetworkDescription) -> None:
    axes.text(left, 1.4 * _LINE, f"{who} {network.name}", fontsize=12, weight="bold", va="center")
    size = f"{amount(network.parameters)} parameters, {amount(network.macs)} MACs"
    axes.text(left, 2.6 * _LINE, f"{shape(network.image_shape)} to {network.num_classes} classes, {size}", fontsize=9, va="center")


def _text(axes: Axes, left: float, upper: float, lines: list[str]) -> None:
    for i, line in enumerate(lines):
        weight = "bold" if i == 0 else "normal"
        axes.text(left + 0.08, upper + (i + 0.7) * _LINE, line, fontsize=9, weight=weight, va="center")
