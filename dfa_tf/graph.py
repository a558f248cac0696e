"""Layer groups and blocks read from the graph of a Functional model.

A layer group is a run of layers that share one spatial size. Its candidates are cuts of the graph,
tensors that every path passes through: what residual blocks end in where there are any, or else the
activations.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras

from dfa_tf.errors import UserError, nearest

_LOG = logging.getLogger(__name__)
_MERGES = {"add", "concatenate", "average", "customscalelayer"}  # the last one is the scaled sum of InceptionResNetV2
_ACTIVATIONS = {"relu", "relu6", "leakyrelu", "prelu", "elu", "selu", "silu", "gelu", "hardsilu", "hardswish", "activation"}


@dataclass(frozen=True)
class TapPoint:
    """A tensor that is read, and the BatchNorm that shaped it.

    Attributes:
        tensor: symbolic, `[None, H, W, C]`.
        norm: the BatchNorm that makes it, or that feeds the sum that makes it; None where there is none.
    """

    tensor: keras.KerasTensor
    norm: keras.layers.BatchNormalization | None


@dataclass(frozen=True)
class Block:
    """A candidate: its layer's name and its tap points by name of the tap."""

    name: str
    taps: dict[str, TapPoint]


@dataclass(frozen=True)
class LayerGroup:
    """Blocks of one shape."""

    blocks: tuple[Block, ...]
    height: int
    width: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.height, self.width, self.channels


class LeftOut(NamedTuple):
    """What looked like a candidate and is none, and why."""

    name: str
    reason: str


class Graph:
    """The graph of a Functional model: nodes in topological order, producers and consumers of tensors."""

    def __init__(self, model: keras.Model) -> None:
        functional = getattr(model, "_functional", None) or model
        if not hasattr(functional, "_nodes_by_depth"):
            raise UserError(
                f"layer groups are read from a Functional or Sequential model that is built. Received: "
                f"{type(model).__name__} {model.name!r}. Rebuild it with keras.Model(inputs, outputs)."
            )
        by_depth = functional._nodes_by_depth
        self.nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
        self.inputs = functional.inputs
        self.outputs = functional.outputs
        self._check(model)
        self._producers = {id(tensor): node for node in self.nodes for tensor in node.outputs}
        self._consumers: dict[int, list[Any]] = {}
        self._distance: dict[int, int] = {}
        for node in self.nodes:
            far = 1 + max((self._distance[id(tensor)] for tensor in node.input_tensors), default=0)
            self._distance.update({id(tensor): far for tensor in node.outputs})
            for tensor in node.input_tensors:
                self._consumers.setdefault(id(tensor), []).append(node)

    def _check(self, model: keras.Model) -> None:
        if len(self.inputs) != 1 or len(self.outputs) != 1 or len(self.inputs[0].shape) != 4 or len(self.outputs[0].shape) != 2:
            raise UserError(f"a classifier takes one batch of images [B, H, W, C] and gives logits [B, classes]. Received: {model.name!r}")
        for node in self.nodes:
            if isinstance(node.operation, keras.Model):
                raise UserError(
                    f"layer groups are read from a flat model. Received: {model.name!r} with the model {node.operation.name!r} inside"
                )
        last = self.outputs[0]._keras_history.operation
        if "softmax" in (_activation_name(last), type(last).__name__.lower()):
            raise UserError(
                f"a classifier must give logits. Received: {model.name!r}, which ends in a softmax: build it with activation=None"
            )

    def node(self, tensor: keras.KerasTensor) -> Any:
        """The node that makes a tensor."""
        return self._producers[id(tensor)]

    def producer(self, tensor: keras.KerasTensor) -> Any:
        """The operation that makes a tensor."""
        return self.node(tensor).operation

    def consumers(self, tensor: keras.KerasTensor) -> list[Any]:
        """The nodes that read a tensor."""
        return self._consumers.get(id(tensor), [])

    def distance(self, tensor: keras.KerasTensor) -> int:
        """The number of operations on the longest path to a tensor."""
        return self._distance[id(tensor)]

    def output_of(self, name: str) -> keras.KerasTensor:
        """The output of the layer of this name.

        Raises:
            UserError: if there is none.
        """
        for node in self.nodes:
            if node.operation.name == name:
                return node.outputs[0]
        names = [node.operation.name for node in self.nodes]
        raise UserError(f"the network has no layer of this name. Received: {name!r}. {nearest(name, names)}")

    def ancestors(self, tensor: keras.KerasTensor) -> set[int]:
        """The ids of all tensors that a tensor is made of."""
        found: set[int] = set()
        pending = [tensor]
        while pending:
            sources = [source for source in self.node(pending.pop()).input_tensors if id(source) not in found]
            found.update(id(source) for source in sources)
            pending += sources
        return found

    @property
    def embedding(self) -> keras.KerasTensor | None:
        """The input of the last Dense layer, if all paths pass through it."""
        cuts = {id(tensor) for tensor in self.cuts()}
        for node in reversed(self.nodes):
            if isinstance(node.operation, keras.layers.Dense) and len(node.input_tensors[0].shape) == 2:
                return node.input_tensors[0] if id(node.input_tensors[0]) in cuts else None
        return None

    def cuts(self) -> list[keras.KerasTensor]:
        """The tensors that every path passes through, in order: after each nothing else is live."""
        cuts: list[keras.KerasTensor] = []
        pending: dict[int, int] = {}
        for node in self.nodes:
            for tensor in node.input_tensors:
                pending[id(tensor)] -= 1
                if pending[id(tensor)] == 0:
                    del pending[id(tensor)]
            for tensor in node.outputs:
                pending[id(tensor)] = len(self.consumers(tensor)) or 1
            if len(pending) == 1 and len(node.outputs) == 1:
                cuts.append(node.outputs[0])
        return cuts

    def block(self, name: str, tensor: keras.KerasTensor) -> Block:
        """A candidate at a tensor, with its tap points.

        In a post-activation network the sum enters a ReLU at once, which is what the block hands on. In a
        pre-activation network the block hands on the sum, and the BatchNorm that follows enters the ReLU.
        """
        pre_activation = output = tensor
        if _is_activation(self.producer(tensor)):
            pre_activation = self.node(tensor).input_tensors[0]
        else:
            readers = self.consumers(tensor)
            norms = [node.outputs[0] for node in readers if self._is_norm(node) and self._next_activation(node.outputs[0]) is not None]
            activation = self._next_activation(tensor)
            if len(readers) == 1 and activation is not None:
                output = activation
            elif norms:
                pre_activation = norms[0]
        return Block(name, {"pre_activation": self._tap_point(pre_activation), "output": self._tap_point(output)})

    def ends_block(self, node: Any) -> bool:
        """Whether a node that every path passes through ends a residual block.

        It is a sum, or the BatchNorm of a linear bottleneck that has no shortcut because it changes the shape.
        """
        return _is_merge(node) or (self._is_norm(node) and self._next_activation(node.outputs[0]) is None)

    def _tap_point(self, tensor: keras.KerasTensor) -> TapPoint:
        node = self.node(tensor)
        before = [node] if self._is_norm(node) else [self.node(t) for t in node.input_tensors if _is_merge(node)]
        # The norm of one branch of a concatenation tells nothing of the other channels.
        norms = [node for node in before if self._is_norm(node) and node.outputs[0].shape[-1] == tensor.shape[-1]]
        # Where a shortcut has a BatchNorm too, the main branch is the longer one.
        longest = max(norms, key=lambda node: self.distance(node.outputs[0]), default=None)
        return TapPoint(tensor, None if longest is None else longest.operation)

    @staticmethod
    def _is_norm(node: Any) -> bool:
        return isinstance(node.operation, keras.layers.BatchNormalization)

    def _next_activation(self, tensor: keras.KerasTensor) -> keras.KerasTensor | None:
        return next((node.outputs[0] for node in self.consumers(tensor) if _is_activation(node.operation)), None)


def _activation_name(operation: Any) -> str:
    return getattr(getattr(operation, "activation", None), "__name__", "linear")


def _is_activation(operation: Any) -> bool:
    kind = type(operation).__name__.lower()
    return kind in _ACTIVATIONS and (kind != "activation" or _activation_name(operation) not in ("linear", "softmax"))


def _ends_activated(operation: Any) -> bool:
    """Also of layers as `Conv2D(activation="relu")`, whose pre-activation cannot be read."""
    return _is_activation(operation) or _activation_name(operation) not in ("linear", "softmax")


def _is_merge(node: Any) -> bool:
    return type(node.operation).__name__.lower() in _MERGES and len(node.input_tensors) > 1


def find_groups(graph: Graph) -> list[LayerGroup]:
    """The groups of a model: its cuts by spatial size, and in each run the ends of residual blocks, or else the activations.

    Runs without such an end are left out where others have a sum: they are the stem, or its padding.

    Raises:
        UserError: if there is none.
    """
    runs: list[list[keras.KerasTensor]] = []
    for cut in graph.cuts():
        if len(cut.shape) != 4 or None in cut.shape[1:] or cut.shape[1:3] == (1, 1) or cut is graph.inputs[0]:
            continue
        if runs and runs[-1][0].shape[1:3] == cut.shape[1:3]:
            runs[-1].append(cut)
        else:
            runs.append([cut])
    residual = any(_is_merge(graph.node(tensor)) for run in runs for tensor in run)
    wanted = graph.ends_block if residual else lambda node: _ends_activated(node.operation)
    found = [group for run in runs if (group := _keep(graph, run, wanted))]
    if not found:
        raise UserError("no layer group was found in the graph: name them by groups=[[layer, ...], ...]")
    return [_group(graph, [graph.producer(tensor).name for tensor in group], group) for group in found]


def _keep(graph: Graph, run: list[keras.KerasTensor], wanted: Callable[[Any], bool]) -> list[keras.KerasTensor]:
    """The wanted tensors of a run that agree with its last one; what is left out is logged."""
    chosen = [tensor for tensor in run if wanted(graph.node(tensor))]
    kept = [tensor for tensor in chosen if tensor.shape == chosen[-1].shape]
    for tensor in chosen:
        if tensor.shape != chosen[-1].shape:
            _LOG.warning(
                "%s is no candidate: its shape %s differs from %s of its group's last block",
                graph.producer(tensor).name,
                tensor.shape[1:],
                chosen[-1].shape[1:],
            )
    return kept


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
