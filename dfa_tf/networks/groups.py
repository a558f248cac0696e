"""Layer groups and blocks: found in the graph of a Functional model, or named by its user.

A layer group is a run of layers that share one spatial size. Its candidates are cuts of the graph,
tensors that every path passes through: the ends of its residual blocks if it has any, else its activations.
"""

import itertools
import logging
from collections.abc import Sequence
from typing import NamedTuple

import keras

from dfa_tf.errors import UserError, nearest
from dfa_tf.networks.blocks import LayerGroup, block_at, ends_activated, ends_block
from dfa_tf.networks.graph import Graph, is_merge

_LOG = logging.getLogger(__name__)
_PADDINGS = {"zeropadding2d", "cropping2d", "pad"}


class LeftOut(NamedTuple):
    """A layer that resembles a candidate but is not one.

    Attributes:
        name: of the layer.
        reason: in words.
    """

    name: str
    reason: str


def find_groups(graph: Graph) -> tuple[list[LayerGroup], list[LeftOut]]:
    """The groups of a model: its cuts by spatial size, and in each run the ends of residual blocks, or else the activations.

    If the network has sums, the layers before the first one are its stem and are left out. The candidates of a group have the shape of
    its last one. In a dense block, whose concatenations widen one by one, this leaves only the last one.

    Returns:
        The groups, and the layers that were left out. Blocks left out because of their width are also logged.

    Raises:
        UserError: if no group is found.
    """
    found, left_out = _candidates(graph, _runs(graph))
    groups = []
    for candidates in found:
        if candidates[0].shape[1:3] == (1, 1):
            left_out += [LeftOut(_name(graph, tensor), "it has one pixel, and so no spatial dimensions") for tensor in candidates]
        else:
            groups.append([tensor for tensor in candidates if tensor.shape == candidates[-1].shape])
            left_out += _of_other_width(graph, candidates)
    if not groups:
        closed = [node.operation.name for node in graph.nodes if isinstance(node.operation, keras.Model)]
        why = f". Received: the subclassed model {closed[0]!r} inside, which cannot be opened" if closed else ""
        raise UserError(f"no layer group was found in the graph: name them by groups=[[layer, ...], ...]{why}")
    left_out += _behind(graph, groups[-1][-1])
    return [_group(graph, [_name(graph, tensor) for tensor in group], group) for group in groups], left_out


def _runs(graph: Graph) -> list[list[keras.KerasTensor]]:
    """The cuts with spatial dimensions, in runs of one size, without preprocessing and padding."""
    runs: list[list[keras.KerasTensor]] = []
    for cut in graph.cuts():
        padding = type(graph.producer(cut)).__name__.lower() in _PADDINGS
        if len(cut.shape) != 4 or None in cut.shape[1:] or padding or graph.is_preprocessed(cut):
            continue
        if runs and runs[-1][0].shape[1:3] == cut.shape[1:3]:
            runs[-1].append(cut)
        else:
            runs.append([cut])
    return runs


def _candidates(graph: Graph, runs: list[list[keras.KerasTensor]]) -> tuple[list[list[keras.KerasTensor]], list[LeftOut]]:
    """The ends of blocks in each run that has any, of any width; and the layers of the stem that resemble one."""
    ends = [[tensor for tensor in run if ends_block(graph, graph.node(tensor))] for run in runs]
    residual = any(is_merge(graph.node(tensor)) for run in runs for tensor in run)
    stem = next(i for i, found in enumerate(ends) if found) if residual else 0
    candidates, left_out = [], []
    for i, run in enumerate(runs):
        found = ends[i] if residual and ends[i] else [tensor for tensor in run if ends_activated(graph, tensor)]
        if i < stem:
            # A stem widens. A layer that narrows after it, at the same resolution, is a block, such as the first one of EfficientNetV2-B0.
            blocks = [tensor for before, tensor in itertools.pairwise(found) if tensor.shape[-1] < before.shape[-1]]
            names = [_name(graph, tensor) for tensor in blocks]
            stems = [name for tensor in found if (name := _name(graph, tensor)) not in names]
            left_out += [LeftOut(name, "it belongs to the stem, before the first sum") for name in stems]
            found = blocks
        if found:
            candidates.append(found)
    return candidates, left_out


def _of_other_width(graph: Graph, candidates: list[keras.KerasTensor]) -> list[LeftOut]:
    """The candidates of a run that differ in width from its last one."""
    height, width, channels = candidates[-1].shape[1:]
    others = [tensor for tensor in candidates if tensor.shape[-1] != channels]
    if others:
        names = [f"{_name(graph, tensor)} ({tensor.shape[-1]})" for tensor in others]
        shown = names if len(names) <= 4 else [*names[:2], "...", names[-1]]
        _LOG.warning("left out of the group of %dx%d, whose last block has %d channels: %s", height, width, channels, ", ".join(shown))
    return [LeftOut(_name(graph, one), f"its {one.shape[-1]} channels are not the {channels} of its group's last block") for one in others]


def _behind(graph: Graph, last: keras.KerasTensor) -> list[LeftOut]:
    """The activations after the last block, such as that of a convolution in the head."""
    within = graph.ancestors(last)
    tensors = [tensor for tensor in graph.cuts() if id(tensor) not in within and len(tensor.shape) == 4 and ends_activated(graph, tensor)]
    others = [tensor for tensor in tensors if tensor.shape[-1] != last.shape[-1]]
    return [LeftOut(_name(graph, tensor), "it comes after the last block") for tensor in others if tensor.shape[1:3] == last.shape[1:3]]


def _name(graph: Graph, tensor: keras.KerasTensor) -> str:
    return graph.producer(tensor).name


def name_groups(graph: Graph, groups: Sequence[Sequence[str]]) -> list[LayerGroup]:
    """The groups that the user gives by the names of their blocks' layers.

    Args:
        graph: of the model.
        groups: names of layers by group, from shallow to deep: no layer may be computed from one that is named after it.

    Raises:
        UserError: if a name is unknown or out of order, or the blocks of a group differ in shape.
    """
    outputs = {node.operation.name: node.outputs[0] for node in graph.nodes}
    for name in (name for group in groups for name in group):
        if name not in outputs:
            raise UserError(f"groups must name layers of the model. Received: {name!r}. {nearest(name, outputs)}")
    if not groups or not all(groups):
        raise UserError(f"every group needs a layer. Received: groups={[list(group) for group in groups]}")
    names = [name for group in groups for name in group]
    # Parallel branches, such as the networks of an ensemble, have no order.
    before = [graph.ancestors(outputs[name]) for name in names]
    backwards = any(id(outputs[later]) in before[i] for i in range(len(names)) for later in names[i + 1 :])
    if len(set(names)) < len(names) or backwards:
        raise UserError(f"groups must name each layer once, from shallow to deep. Received: groups={[list(group) for group in groups]}")
    return [_group(graph, list(group), [outputs[name] for name in group]) for group in groups]


def _group(graph: Graph, names: list[str], tensors: list[keras.KerasTensor]) -> LayerGroup:
    calls = [node.operation.name for node in graph.nodes]
    for name in names:
        if calls.count(name) > 1:
            raise UserError(f"each block needs a layer of its own. Received: {name!r}, which the model calls {calls.count(name)} times")
    shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
    if len(shapes) > 1 or len(tensors[0].shape) != 4 or None in tensors[0].shape[1:]:
        raise UserError(f"the blocks of a group must have one known shape [H, W, C]. Received: {names} with {sorted(map(str, shapes))}")
    height, width, channels = tensors[0].shape[1:]
    return LayerGroup(tuple(block_at(graph, name, tensor) for name, tensor in zip(names, tensors, strict=True)), height, width, channels)
