"""The blocks of a network, read from its graph: where a block ends, and its tap points."""

from dataclasses import dataclass
from typing import Any

import keras

from dfa_tf.networks.graph import Graph, activation_name, is_merge

_ACTIVATIONS = {"relu", "relu6", "leakyrelu", "prelu", "elu", "celu", "selu", "silu", "gelu", "mish", "tanh", "hardsilu", "activation"}
_NOISE = {"dropout", "spatialdropout2d", "gaussiandropout", "gaussiannoise", "stochasticdepth", "identity"}  # no effect in inference


@dataclass(frozen=True)
class TapPoint:
    """A tensor that can be read, and the BatchNorm that shaped it.

    Attributes:
        tensor: symbolic, `[None, H, W, C]`.
        norm: the BatchNorm that makes it, or that feeds the sum that makes it; None without one.
    """

    tensor: keras.KerasTensor
    norm: keras.layers.BatchNormalization | None


@dataclass(frozen=True)
class Block:
    """A candidate: its layer's name, and its tap points by name of the tap."""

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


def block_at(graph: Graph, name: str, tensor: keras.KerasTensor) -> Block:
    """A candidate at a tensor, with its tap points.

    In a post-activation network the sum enters a ReLU at once, which is the block's output. In a
    pre-activation network the block's output is the sum, and the BatchNorm that follows enters the ReLU.
    """
    pre_activation = output = tensor
    if _is_activation(graph.producer(tensor)):
        pre_activation = graph.node(tensor).input_tensors[0]
    else:
        readers = graph.consumers(tensor)
        norms = [node.outputs[0] for node in readers if _is_norm(node) and _next_activation(graph, node.outputs[0]) is not None]
        activation = _next_activation(graph, tensor)
        if len(readers) == 1 and activation is not None:
            output = activation
        elif norms:
            pre_activation = norms[0]
    return Block(name, {"pre_activation": _tap_point(graph, pre_activation), "output": _tap_point(graph, output)})


def ends_block(graph: Graph, node: Any) -> bool:
    """Whether a node that every path passes through ends a residual block.

    It is a sum, or the BatchNorm of a linear bottleneck that has no shortcut because it changes the shape.
    """
    return is_merge(node) or (_is_norm(node) and _next_activation(graph, node.outputs[0]) is None)


def ends_activated(graph: Graph, tensor: keras.KerasTensor) -> bool:
    """Whether a tensor is the output of an activation, including that of a layer such as `Conv2D(activation="relu")`.

    An activation after a depthwise convolution does not count: it is inside a separable convolution.
    """
    node = graph.node(tensor)
    if not _is_activation(node.operation) and activation_name(node.operation) in ("linear", "softmax"):
        return False
    while _is_activation(node.operation) or _is_norm(node):
        node = graph.node(node.input_tensors[0])
    return not isinstance(node.operation, keras.layers.DepthwiseConv2D)


def _tap_point(graph: Graph, tensor: keras.KerasTensor) -> TapPoint:
    node = graph.node(tensor)
    if is_merge(node):
        # Where a shortcut has a BatchNorm too, the main branch is the longer one.
        node = graph.node(max(node.input_tensors, key=graph.distance))
        while _is_noise(node.operation):
            node = graph.node(node.input_tensors[0])
    # The norm of one branch of a concatenation does not describe the other channels.
    found = _is_norm(node) and node.outputs[0].shape[-1] == tensor.shape[-1]
    return TapPoint(tensor, node.operation if found else None)


def _is_norm(node: Any) -> bool:
    return isinstance(node.operation, keras.layers.BatchNormalization)


def _next_activation(graph: Graph, tensor: keras.KerasTensor) -> keras.KerasTensor | None:
    return next((node.outputs[0] for node in graph.consumers(tensor) if _is_activation(node.operation)), None)


def _is_activation(operation: Any) -> bool:
    kind = type(operation).__name__.lower()
    return kind in _ACTIVATIONS and (kind != "activation" or activation_name(operation) not in ("linear", "softmax"))


def _is_noise(operation: Any) -> bool:
    kind = type(operation).__name__.lower()
    return kind in _NOISE or (kind == "activation" and activation_name(operation) == "linear")
