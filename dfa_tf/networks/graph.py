"""The graph of a Functional model: its cuts, and the producers and consumers of tensors."""

from typing import Any

import keras

from dfa_tf.errors import UserError, nearest

_MERGES = {"add", "concatenate", "average", "customscalelayer"}  # the last one is the scaled sum of InceptionResNetV2


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
