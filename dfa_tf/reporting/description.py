"""What networks are made of and what distilling one into the other comes to, read from their graphs: nothing is trained."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras

from dfa_tf.config import TrainConfig
from dfa_tf.networks.connectors import connector
from dfa_tf.networks.cost import Memory, call_macs, count_macs, count_parameters, macs_by_type, training_memory, variable_bytes
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.graph import Graph
from dfa_tf.networks.groups import LeftOut
from dfa_tf.networks.pairing import check_pair, match, stride


@dataclasses.dataclass(frozen=True)
class GroupDescription:
    """A layer group. Its costs are those of all layers behind the group before it, of the first one with the stem's.

    Attributes:
        blocks: names of the candidates.
        shape: height, width, channels of each.
        stride: of the image's height and width, to the nearest power of two.
        parameters: trainable and frozen ones, without BatchNorm's statistics.
        macs: multiply-accumulates of one image.
    """

    blocks: tuple[str, ...]
    shape: tuple[int, int, int]
    stride: tuple[float, float]
    parameters: int
    macs: int


@dataclasses.dataclass(frozen=True)
class NetworkDescription:
    """A classifier.

    Attributes:
        name: of its model.
        image_shape: height, width, channels.
        num_classes: number of logits.
        parameters: as of a group, of the whole network.
        macs: of the whole network.
        macs_by_type: by the class of the layers.
        not_counted: layers whose multiply-accumulates are not known and not in the sum.
        bytes: of all weights in float32, BatchNorm's statistics among them; a `.keras` file holds some KiB more.
        tap: where the block outputs are read.
        groups: from the image to the logits.
        head: parameters and MACs of what follows the last group.
        left_out: what looked like a candidate and is none.
    """

    name: str
    image_shape: tuple[int, ...]
    num_classes: int
    parameters: int
    macs: int
    macs_by_type: dict[str, int]
    not_counted: tuple[str, ...]
    bytes: int
    tap: str
    groups: tuple[GroupDescription, ...]
    head: tuple[int, int]
    left_out: tuple[LeftOut, ...]


@dataclasses.dataclass(frozen=True)
class ConnectorDescription:
    """What brings one network's feature to the other's shape.

    Attributes:
        source: height, width, channels of what comes in.
        target: of what goes out.
        parameters: its own.
    """

    source: tuple[int, int, int]
    target: tuple[int, int, int]
    parameters: int


@dataclasses.dataclass(frozen=True)
class PairDescription:
    """A group of the teacher and the student's group that it teaches.

    Attributes:
        teacher: number of the group, from 1.
        student: likewise.
        candidates: the blocks of the teacher's group, which a search weighs.
        to_teacher: connector of search and distillation.
        to_student: connector of the search alone.
    """

    teacher: int
    student: int
    candidates: int
    to_teacher: ConnectorDescription
    to_student: ConnectorDescription


@dataclasses.dataclass(frozen=True)
class Description:
    """A network, or a teacher and its student.

    Attributes:
        teacher: the network, where it is alone.
        student: None where there is none.
        pairs: groups that pair, from the image to the logits.
        rule: how they pair: `"in order"` or `"by stride"`; empty without a student.
        memory: estimate for a training step of stage 2, or of the network alone.
        batch_size: that the memory is for.
        precision: of the networks.
    """

    teacher: NetworkDescription
    student: NetworkDescription | None
    pairs: tuple[PairDescription, ...]
    rule: str
    memory: Memory
    batch_size: int
    precision: str

    @property
    def compression(self) -> dict[str, float]:
        """How many times as much the teacher has: of `parameters`, of `macs`; empty without a student."""
        if self.student is None:
            return {}
        ours, theirs = self.student, self.teacher
        return {"parameters": theirs.parameters / ours.parameters, "macs": theirs.macs / ours.macs}

    def alone(self, who: str) -> list[int]:
        """Numbers, from 1, of the groups of the `"teacher"` or the `"student"` that have no partner."""
        network, paired = getattr(self, who), {getattr(pair, who) for pair in self.pairs}
        return [] if network is None else [number for number in range(1, len(network.groups) + 1) if number not in paired]

    @property
    def config(self) -> dict[str, Any]:
        """The groups that pair, as a configuration names them: in its order group i teaches group i."""
        networks = {"teacher": self.teacher} | ({"student": self.student} if self.student else {})
        kept = {who: [getattr(pair, who) for pair in self.pairs] or range(1, len(networks[who].groups) + 1) for who in networks}
        return {who: {"groups": [list(networks[who].groups[number - 1].blocks) for number in kept[who]]} for who in networks}

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values; what stands under `config` is a part of a configuration."""
        tree = dataclasses.asdict(self)
        for who in ("teacher", "student"):
            if tree[who] is not None:
                tree[who]["head"] = dict(zip(("parameters", "macs"), tree[who]["head"], strict=True))
                tree[who]["left_out"] = [entry._asdict() for entry in getattr(self, who).left_out]
        more = {"memory": {**self.memory._asdict(), "total": self.memory.total}, "compression": self.compression}
        return {**tree, **more, "alone": {who: self.alone(who) for who in ("teacher", "student")}, "config": self.config}


def describe(
    teacher: FeatureModel, student: FeatureModel | None = None, *, batch_size: int = 128, train: TrainConfig | None = None
) -> Description:
    """Describes a network, or a teacher and the student that it is to be distilled into.

    Args:
        teacher: of images of a known size.
        student: of the teacher's images and classes.
        batch_size: images of a training step, on one device.
        train: its momentum and moving average take memory; the defaults where None.

    Raises:
        UserError: if the networks do not fit each other, or no groups pair.
    """
    train = train or TrainConfig()
    trained = student or teacher
    options: dict[str, Any] = {"momentum": train.momentum > 0, "average": train.ema is not None}
    pairs: tuple[PairDescription, ...] = ()
    rule = ""
    if student is not None:
        check_pair(student, teacher)
        pairs = tuple(_pair(student, teacher, *numbers) for numbers in match(student, teacher))
        rule = "in order" if len(student.groups) == len(teacher.groups) else "by stride"
        shapes = [(student.groups[pair.student - 1].shape, teacher.groups[pair.teacher - 1].shape) for pair in pairs]
        tensors = [[block.taps[teacher.tap].tensor for block in teacher.groups[pair.teacher - 1].blocks] for pair in pairs]
        options["connectors"] = [connector(ours, theirs, name=f"connector{i}") for i, (ours, theirs) in enumerate(shapes)]
        options["teacher"] = teacher.model
        options["features"] = [tensor for group in tensors for tensor in (*group, group[-1])]  # the last one for the aggregation
    return Description(
        teacher=describe_network(teacher),
        student=None if student is None else describe_network(student),
        pairs=pairs,
        rule=rule,
        memory=training_memory(trained.model, batch_size, **options),
        batch_size=batch_size,
        precision=train.precision,
    )


def describe_network(network: FeatureModel) -> NetworkDescription:
    """Describes one network, of images of a known size."""
    *groups, head = _costs(network)
    kinds, not_counted = macs_by_type(network.model)
    return NetworkDescription(
        name=network.model.name,
        image_shape=network.image_shape,
        num_classes=network.num_classes,
        parameters=count_parameters(network.model),
        macs=count_macs(network.model),
        macs_by_type=kinds,
        not_counted=tuple(not_counted),
        bytes=variable_bytes(network.model.variables),
        tap=network.tap,
        groups=tuple(
            GroupDescription(tuple(block.name for block in group.blocks), group.shape, stride(network, group), *costs)
            for group, costs in zip(network.groups, groups, strict=True)
        ),
        head=head,
        left_out=tuple(network.left_out),
    )


def _costs(network: FeatureModel) -> Iterator[tuple[int, int]]:
    """Parameters and MACs of each group, and of the head. A layer that is called twice has its parameters where it is called first."""
    graph = Graph(network.model)
    ends = [group.blocks[-1].taps["output"].tensor for group in network.groups]
    before = [graph.ancestors(end) | {id(end)} for end in ends]
    parts: list[list[Any]] = [[] for _ in range(len(ends) + 1)]
    for node in graph.nodes:
        parts[next((i for i, tensors in enumerate(before) if id(node.outputs[0]) in tensors), len(ends))].append(node)
    known: set[int] = set()
    for part in parts:
        layers = {id(node.operation): node.operation for node in part if isinstance(node.operation, keras.layers.Layer)}
        own = [layer for key, layer in layers.items() if key not in known]
        known.update(layers)
        yield sum(map(count_parameters, own)), sum(call_macs(node) or 0 for node in part)


def _pair(student: FeatureModel, teacher: FeatureModel, ours: int, theirs: int) -> PairDescription:
    shapes = student.groups[ours].shape, teacher.groups[theirs].shape
    to_teacher, to_student = (
        ConnectorDescription(source, target, count_parameters(connector(source, target, name="connector")))
        for source, target in (shapes, shapes[::-1])
    )
    return PairDescription(theirs + 1, ours + 1, len(teacher.groups[theirs].blocks), to_teacher, to_student)
