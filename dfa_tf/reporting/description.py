"""Describes networks, and the distillation of one into the other, from their graphs: nothing is trained."""

from collections.abc import Iterator
from typing import Any

import keras

from dfa_tf.config import TrainConfig
from dfa_tf.networks.connectors import connector
from dfa_tf.networks.cost import call_macs, count_macs, count_parameters, macs_by_type, training_memory, variable_bytes
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.graph import Graph
from dfa_tf.networks.pairing import check_pair, match, stride
from dfa_tf.reporting.description_types import ConnectorDescription, Description, GroupDescription, NetworkDescription, PairDescription


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
