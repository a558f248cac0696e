"""The description of networks as tables of a terminal."""

import json
from collections.abc import Iterable

from rich.table import Table

from dfa_tf.display.tables import terminal
from dfa_tf.reporting.description import Description, NetworkDescription

_UNITS = ("", " k", " M", " G", " T")


def amount(number: float) -> str:
    """A number in three or four digits with the unit that suits it, as `"300.8 M"`."""
    power = 0
    while number >= 999.95 and power + 1 < len(_UNITS):
        number, power = number / 1000, power + 1
    return f"{number:.{0 if power == 0 else 2 if number < 10 else 1}f}{_UNITS[power]}"


def shape(sides: Iterable[int]) -> str:
    """Height, width, channels as `"32x32x3"`."""
    return "x".join(map(str, sides))


def stride(sides: tuple[float, float]) -> str:
    """`"4"`, or `"4x2"` where height and width differ."""
    return "x".join(f"{side:g}" for side in (sides if sides[0] != sides[1] else sides[:1]))


def mebibytes(count: int) -> str:
    """Bytes as `"12.3 MiB"`."""
    return f"{count / 2**20:,.1f} MiB"


def print_description(description: Description) -> None:
    """Prints tables of the networks, their groups, how they pair and what training takes; plain where no terminal is."""
    networks = {"teacher": description.teacher} | ({"student": description.student} if description.student else {})
    show = terminal()
    show.print(_sizes(description, networks))
    for who, network in networks.items():
        if network.not_counted:
            names = ", ".join(network.not_counted)
            show.print(f"  The MACs of {network.name} are more: not counted are those of {names}.", highlight=False)
        show.print(_groups(who if description.student else "network", network))
        for entry in network.left_out:
            show.print(f"  left out: {entry.name}: {entry.reason}", highlight=False, markup=False)
    if description.student is not None:
        show.print(_pairs(description))
        for who, network in networks.items():
            for number in description.alone(who):
                text = f"  left alone: group {number} of the {who}, {shape(network.groups[number - 1].shape)}, has no partner of its stride"
                show.print(text, highlight=False)
    show.print(_memory(description))
    show.print("The groups as a configuration names them; name other blocks to pair them otherwise, group i for group i:", highlight=False)
    for who, part in description.config.items():
        show.print(f"  --set '{who}.groups={json.dumps(part['groups'])}'", soft_wrap=True, highlight=False, markup=False)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    return table


def _sizes(description: Description, networks: dict[str, NetworkDescription]) -> Table:
    both = description.student is not None
    table = _table("networks", "", *(networks if both else ["network"]), *(["ratio"] if both else []))
    columns = list(networks.values())

    def row(name: str, texts: list[str], ratio: float | None = None) -> None:
        table.add_row(name, *texts, *([] if not both else ["" if ratio is None else f"{ratio:.2f}"]))

    row("name", [network.name for network in columns])
    row("image", [shape(network.image_shape) for network in columns])
    row("classes", [str(network.num_classes) for network in columns])
    row("parameters", [f"{network.parameters:,}" for network in columns], description.compression.get("parameters"))
    row("weights, float32", [mebibytes(network.bytes) for network in columns])
    row("MACs an image", [amount(network.macs) for network in columns], description.compression.get("macs"))
    for kind in dict.fromkeys(kind for network in columns for kind in network.macs_by_type):
        row(f"  {kind}", [amount(network.macs_by_type.get(kind, 0)) for network in columns])
    return table


def _groups(who: str, network: NetworkDescription) -> Table:
    table = _table(f"layer groups of the {who} {network.name}", "group", "shape", "stride", "parameters", "MACs")
    table.add_column("blocks (candidates)", overflow="fold")
    for number, group in enumerate(network.groups, start=1):
        first, last = group.blocks[0], group.blocks[-1]
        blocks = f"1: {first}" if len(group.blocks) == 1 else f"{len(group.blocks)}: {first} to {last}"
        table.add_row(str(number), shape(group.shape), stride(group.stride), f"{group.parameters:,}", amount(group.macs), blocks)
    table.caption = "parameters and MACs: of all layers behind the group before, the stem's in the first"
    table.add_row("head", "", "", f"{network.head[0]:,}", amount(network.head[1]), "")
    return table


def _pairs(description: Description) -> Table:
    table = _table(
        f"groups pair {description.rule}; a search weighs the candidates, read at their {description.teacher.tap}",
        *("teacher's group", "student's group", "candidates", "connector to teacher", "to student"),
    )
    for pair in description.pairs:
        groups = (f"{pair.teacher}: {shape(pair.to_teacher.target)}", f"{pair.student}: {shape(pair.to_teacher.source)}")
        table.add_row(*groups, str(pair.candidates), f"{pair.to_teacher.parameters:,}", f"{pair.to_student.parameters:,}")
    table.caption = "connectors: their parameters; those to the student are the search's alone"
    return table


def _memory(description: Description) -> Table:
    what = "stage 2 (dfa)" if description.student else "training"
    table = _table(f"memory of {what}, {description.batch_size} images, {description.precision}", "", "estimate")
    words = {
        "weights": "weights",
        "gradients": "gradients",
        "optimizer": "optimizer",
        "activations": "activations kept for the backward pass",
        "features": "features of the teacher",
        "working": "working memory of the largest layer",
    }
    for field, name in words.items():
        table.add_row(name, mebibytes(getattr(description.memory, field)))
    table.caption = "on one device, beside TensorFlow's own and the data set"
    table.add_row("together", mebibytes(description.memory.total), style="bold")
    return table
