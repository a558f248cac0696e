"""The description of networks as tables."""

import json
from collections.abc import Iterable

from dfa_tf.display.tables import Table, print_table
from dfa_tf.reporting.description_types import Description, NetworkDescription

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
    """Prints the tables of `tables`."""
    for table in tables(description):
        print_table(table)


def tables(description: Description) -> list[Table]:
    """The sizes of the networks, their groups, how the groups pair, and the memory of a training step."""
    networks = {"teacher": description.teacher} | ({"student": description.student} if description.student else {})
    return [
        _sizes(description, networks),
        *(_groups(who if description.student else "network", network) for who, network in networks.items()),
        *([_pairs(description, networks)] if description.student else []),
        _memory(description),
    ]


def _sizes(description: Description, networks: dict[str, NetworkDescription]) -> Table:
    columns, both, ratio = list(networks.values()), description.student is not None, description.compression
    kinds = dict.fromkeys(kind for network in columns for kind in network.macs_by_type)
    rows = [
        ["name", *(network.name for network in columns)],
        ["image", *(shape(network.image_shape) for network in columns)],
        ["classes", *(str(network.num_classes) for network in columns)],
        ["parameters", *(f"{network.parameters:,}" for network in columns), *([f"{ratio['parameters']:.2f}"] if both else [])],
        ["weights, float32", *(mebibytes(network.bytes) for network in columns)],
        ["MACs an image", *(amount(network.macs) for network in columns), *([f"{ratio['macs']:.2f}"] if both else [])],
        *([f"  {kind}", *(amount(network.macs_by_type.get(kind, 0)) for network in columns)] for kind in kinds),
    ]
    headings = ["", *networks, "ratio"] if both else ["", "network"]
    notes = [
        f"  The MACs of {network.name} are more: not counted are those of {', '.join(network.not_counted)}."
        for network in columns
        if network.not_counted
    ]
    return Table("networks", headings, [row + [""] * (len(headings) - len(row)) for row in rows], notes)


def _groups(who: str, network: NetworkDescription) -> Table:
    rows = []
    for number, group in enumerate(network.groups, start=1):
        first, last = group.blocks[0], group.blocks[-1]
        blocks = f"1: {first}" if len(group.blocks) == 1 else f"{len(group.blocks)}: {first} to {last}"
        rows.append([str(number), shape(group.shape), stride(group.stride), f"{group.parameters:,}", amount(group.macs), blocks])
    rows.append(["head", "", "", f"{network.head[0]:,}", amount(network.head[1]), ""])
    headings = ["group", "shape", "stride", "parameters", "MACs", "blocks (candidates)"]
    notes = [
        "counted: all layers after the previous group; the first group includes the stem",
        *(f"  left out: {entry.name}: {entry.reason}" for entry in network.left_out),
    ]
    return Table(f"layer groups of the {who} {network.name}", headings, rows, notes, text=headings[-1:])


def _pairs(description: Description, networks: dict[str, NetworkDescription]) -> Table:
    rows = [
        [
            f"{pair.teacher}: {shape(pair.to_teacher.target)}",
            f"{pair.student}: {shape(pair.to_teacher.source)}",
            str(pair.candidates),
            f"{pair.to_teacher.parameters:,}",
            f"{pair.to_student.parameters:,}",
        ]
        for pair in description.pairs
    ]
    alone = [
        f"  left alone: group {number} of the {who}, {shape(network.groups[number - 1].shape)}, has no partner of its stride"
        for who, network in networks.items()
        for number in description.alone(who)
    ]
    title = f"groups pair {description.rule}; a search weighs the candidates, read at their {description.teacher.tap}"
    headings = ["teacher's group", "student's group", "candidates", "connector to teacher", "to student"]
    return Table(title, headings, rows, ["connectors: their parameters; only the search has those to the student", *alone])


_MEMORY = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations kept for the backward pass",
    "features": "features of the teacher",
    "working": "working memory of the largest layer",
    "total": "together",
}


def _memory(description: Description) -> Table:
    what = "stage 2 (dfa)" if description.student else "training"
    rows = [[name, mebibytes(getattr(description.memory, field))] for field, name in _MEMORY.items()]
    notes = [
        "on one device, without what TensorFlow itself and the data set need",
        "The groups for a configuration; name other blocks to pair group i with group i:",
        *(f"  --set '{who}.groups={json.dumps(part['groups'])}'" for who, part in description.config.items()),
    ]
    return Table(f"memory of {what}, {description.batch_size} images, {description.precision}", ["", "estimate"], rows, notes)
