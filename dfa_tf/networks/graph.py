"""The graph of a Functional model: its cuts, the producers and consumers of tensors, and a block's tap points."""

from dataclasses import dataclass
from typing import Any

import keras

from dfa_tf.errors import UserError, nearest

_MERGES = {"add", "concatenate", "average", "customscalelayer"}  # the last one is the scaled sum of InceptionResNetV2
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


class Graph:
    """The graph of a Functional model: nodes in topological order, producers and consumers of tensors."""

    def __init__(self, model: keras.Model) -> None:
        functional = functional_of(model)
        if functional is None:
            unbuilt = isinstance(model, keras.Sequential)
            fix = "Begin it with keras.Input((H, W, C))" if unbuilt else "Rebuild it with keras.Model(inputs, outputs)"
            raise UserError(
                f"layer groups are read from a Functional or Sequential model that is built. Received: "
                f"{type(model).__name__} {model.name!r}. {fix}"
            )
        by_depth = functional._nodes_by_depth
        self.nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
        self.inputs = functional.inputs
        self.outputs = functional.outputs
        self._producers = {id(tensor): node for node in self.nodes for tensor in node.outputs}
        self._consumers: dict[int, list[Any]] = {}
        self._distance: dict[int, int] = {}
        learned = [_has_weights(node.operation) for node in self.nodes]
        first = learned.index(True) if any(learned) else len(learned)
        self._preprocessed = {id(tensor) for node in self.nodes[:first] for tensor in node.outputs}
        for node in self.nodes:
            far = 1 + max((self._distance[id(tensor)] for tensor in node.input_tensors), default=0)
            self._distance.update({id(tensor): far for tensor in node.outputs})
            for tensor in node.input_tensors:
                self._consumers.setdefault(id(tensor), []).append(node)

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

    def is_preprocessed(self, tensor: keras.KerasTensor) -> bool:
        """Whether a tensor that every path passes through lies before the first layer that learns."""
        return id(tensor) in self._preprocessed

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
        """The ids of all tensors that a tensor is computed from."""
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

        In a post-activation network the sum enters a ReLU at once, which is the block's output. In a
        pre-activation network the block's output is the sum, and the BatchNorm that follows enters the ReLU.
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
        return is_merge(node) or (self._is_norm(node) and self._next_activation(node.outputs[0]) is None)

    def ends_activated(self, tensor: keras.KerasTensor) -> bool:
        """Whether a tensor is the output of an activation, including that of a layer such as `Conv2D(activation="relu")`.

        An activation after a depthwise convolution does not count: it is inside a separable convolution.
        """
        node = self.node(tensor)
        if not _is_activation(node.operation) and activation_name(node.operation) in ("linear", "softmax"):
            return False
        while _is_activation(node.operation) or self._is_norm(node):
            node = self.node(node.input_tensors[0])
        return not isinstance(node.operation, keras.layers.DepthwiseConv2D)

    def _tap_point(self, tensor: keras.KerasTensor) -> TapPoint:
        node = self.node(tensor)
        if is_merge(node):
            # Where a shortcut has a BatchNorm too, the main branch is the longer one.
            node = self.node(max(node.input_tensors, key=self.distance))
            while _is_noise(node.operation):
                node = self.node(node.input_tensors[0])
        # The norm of one branch of a concatenation does not describe the other channels.
        found = self._is_norm(node) and node.outputs[0].shape[-1] == tensor.shape[-1]
        return TapPoint(tensor, node.operation if found else None)

    @staticmethod
    def _is_norm(node: Any) -> bool:
        return isinstance(node.operation, keras.layers.BatchNormalization)

    def _next_activation(self, tensor: keras.KerasTensor) -> keras.KerasTensor | None:
        return next((node.outputs[0] for node in self.consumers(tensor) if _is_activation(node.operation)), None)


def functional_of(operation: Any) -> Any:
    """The Functional model behind a Functional or a built Sequential model; None for anything else.

    The graph of a model whose class overrides `call` does not describe it.
    """
    if not isinstance(operation, keras.Model) or not type(operation).call.__module__.startswith("keras."):
        return None
    functional = getattr(operation, "_functional", None) or operation
    return functional if hasattr(functional, "_nodes_by_depth") else None


def activation_name(operation: Any) -> str:
    """The name of the activation that a layer applies, in lower case and without `_`; `"linear"` if it applies none."""
    activation = getattr(operation, "activation", None)
    if activation is None:
        return "linear"
    return getattr(activation, "__name__", type(activation).__name__).replace("_", "").lower()  # the activation may be a layer


def is_merge(node: Any) -> bool:
    """Whether a node joins branches."""
    return type(node.operation).__name__.lower() in _MERGES and len(node.input_tensors) > 1


def _has_weights(operation: Any) -> bool:
    # A Normalization layer keeps the statistics that it was adapted to among its weights.
    return bool(getattr(operation, "weights", ())) and not isinstance(operation, keras.layers.Normalization)


def _is_activation(operation: Any) -> bool:
    kind = type(operation).__name__.lower()
    return kind in _ACTIVATIONS and (kind != "activation" or activation_name(operation) not in ("linear", "softmax"))


def _is_noise(operation: Any) -> bool:
    kind = type(operation).__name__.lower()
    return kind in _NOISE or (kind == "activation" and activation_name(operation) == "linear")
