"""Layer groups and blocks: found in the graph of a Functional model, or named by its user.

A layer group is a run of layers that share one spatial size. Its candidates are cuts of the graph,
tensors that every path passes through: what residual blocks end in where the group has any, or else the
activations.
"""

import itertools
import logging
from collections.abc import Sequence
from typing import NamedTuple

import keras

from dfa_tf.errors import UserError, nearest
from dfa_tf.networks.graph import Graph, LayerGroup, is_merge

_LOG = logging.getLogger(__name__)
_PADDINGS = {"zeropadding2d", "cropping2d", "pad"}


class LeftOut(NamedTuple):
    """A layer that looked like a candidate and is none.

    Attributes:
        name: of its layer.
        reason: in words.
    """

    name: str
    reason: str


def find_groups(graph: Graph) -> tuple[list[LayerGroup], list[LeftOut]]:
    """The groups of a model: its cuts by spatial size, and in each run the ends of residual blocks, or else the activations.

    Where the network has sums, what lies before the first of them is its stem, and is left out. The candidates of a group
    have the shape of its last one: of a dense block, whose concatenations widen one by one, that is the last alone.

    Returns:
        The groups, and what was left out. Blocks that are left out for their width are logged too.

    Raises:
        UserError: if there is none.
    """
    found, left_out = _candidates(graph, _runs(graph))
    groups = []
    for candidates in found:
        if candidates[0].shape[1:3] == (1, 1):
            left_out += [LeftOut(_name(graph, tensor), "it has one pixel, and so no place in the image") for tensor in candidates]
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
    """The cuts that are images, in runs of one spatial size; without what prepares the images, and without padding."""
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
    """The ends of blocks in each run that has any, whatever their width; and what of the stem looks like one."""
    ends = [[tensor for tensor in run if graph.ends_block(graph.node(tensor))] for run in runs]
    residual = any(is_merge(graph.node(tensor)) for run in runs for tensor in run)
    stem = next(i for i, found in enumerate(ends) if found) if residual else 0
    candidates, left_out = [], []
    for i, run in enumerate(runs):
        found = ends[i] if residual and ends[i] else [tensor for tensor in run if graph.ends_activated(tensor)]
        if i < stem:
            # A stem widens. What narrows behind it at its resolution is a block: the first one of EfficientNetV2-B0.
            blocks = [tensor for before, tensor in itertools.pairwise(found) if tensor.shape[-1] < before.shape[-1]]
            names = [_name(graph, tensor) for tensor in blocks]
            stems = [name for tensor in found if (name := _name(graph, tensor)) not in names]
            left_out += [LeftOut(name, "it belongs to the stem, before the first sum") for name in stems]
            found = blocks
        if found:
            candidates.append(found)
    return candidates, left_out


def _of_other_width(graph: Graph, candidates: list[keras.KerasTensor]) -> list[LeftOut]:
    """The candidates of a run that do not agree with its last one."""
    height, width, channels = candidates[-1].shape[1:]
    others = [tensor for tensor in candidates if tensor.shape[-1] != channels]
    if others:
        names = [f"{_name(graph, tensor)} ({tensor.shape[-1]})" for tensor in others]
        shown = names if len(names) <= 4 else [*names[:2], "...", names[-1]]
        _LOG.warning("left out of the group of %dx%d, whose last block has %d channels: %s", height, width, channels, ", ".join(shown))
    return [LeftOut(_name(graph, one), f"its {one.shape[-1]} channels are not the {channels} of its group's last block") for one in others]


def _behind(graph: Graph, last: keras.KerasTensor) -> list[LeftOut]:
    """The activations behind the last block, as that of a convolution in the head."""
    within = graph.ancestors(last)
    tensors = [tensor for tensor in graph.cuts() if id(tensor) not in within and len(tensor.shape) == 4 and graph.ends_activated(tensor)]
    others = [tensor for tensor in tensors if tensor.shape[-1] != last.shape[-1]]
    return [LeftOut(_name(graph, tensor), "it lies behind the last block") for tensor in others if tensor.shape[1:3] == last.shape[1:3]]


def _name(graph: Graph, tensor: keras.KerasTensor) -> str:
    return graph.producer(tensor).name


def name_groups(graph: Graph, groups: Sequence[Sequence[str]]) -> list[LayerGroup]:
    """The groups whose blocks' layers the user names.

    Args:
        graph: of the model.
        groups: names of layers by group, from shallow to deep: none may be made of one that is named after it.

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
    # Parallel branches, as of the networks of an ensemble, have no order among each other.
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
    return LayerGroup(tuple(graph.block(name, tensor) for name, tensor in zip(names, tensors, strict=True)), height, width, channels)
