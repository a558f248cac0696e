"""Any classifier as one flat Functional model of logits: nested models are opened, and a final softmax is removed.

The flat model shares the classifier's layers and weights: training one trains the other.
"""

import logging
from typing import Any

import keras

from dfa_tf.errors import UserError
from dfa_tf.networks.graph import Graph, activation_name, functional_of, is_merge

_LOG = logging.getLogger(__name__)
_PROBABILITIES = {"softmax", "sigmoid", "hardsigmoid", "sparsemax"}


def flat_classifier(model: keras.Model) -> keras.Model:
    """The classifier as a Functional model without nested models, with logits as its output.

    Args:
        model: Functional or Sequential, of images `[B, H, W, C]` to logits or probabilities `[B, num_classes]`.

    Returns:
        The model itself if it already has this form. Otherwise a model of the same layers, with the same outputs except for a softmax
        at the end, which is removed (and logged). A nested layer whose name is taken gets the name of its model as a prefix.

    Raises:
        UserError: if it is subclassed, has several inputs or outputs, or returns probabilities in another way.
    """
    _check(model)
    functional = functional_of(model)
    if any(functional_of(operation) for operation in functional.operations):
        model = _opened(model)
    elif functional is not model or not all(isinstance(struct, keras.KerasTensor) for struct in (model.input, model.output)):
        model = keras.Model(functional.inputs[0], functional.outputs[0], name=model.name)
    return _of_logits(model)


def _check(model: keras.Model) -> None:
    graph = Graph(model)
    for what, tensors, rank in (("input", graph.inputs, 4), ("output", graph.outputs, 2)):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        if len(tensors) != 1 or len(tensors[0].shape) != rank:
            raise UserError(
                f"a classifier takes one batch of images [B, H, W, C] and returns logits [B, classes]. Received: {model.name!r}, "
                f"with {what} {shapes}. Make a model with one of each: keras.Model(image, logits)"
            )
        if None in tensors[0].shape[1:]:
            raise UserError(
                f"a classifier needs one size of images. Received: {model.name!r}, with {what} {shapes}. "
                "Call it in a model of that size: pixels = keras.Input((H, W, C)); keras.Model(pixels, model(pixels))"
            )


# Nested models


def _opened(model: keras.Model) -> keras.Model:
    functional = functional_of(model)
    source = functional.inputs[0]
    pixels = keras.Input(batch_shape=source.shape, dtype=source.dtype, name=source._keras_history.operation.name)
    names = {operation.name: operation for operation in functional.operations if functional_of(operation) is None}
    return keras.Model(pixels, _called(model, pixels, names), name=model.name)


def _called(model: keras.Model, inputs: Any, names: dict[str, Any], training: bool | None = None) -> Any:
    """Calls each layer of a model again, including those of nested models, as the model itself would.

    Args:
        model: Functional or Sequential.
        inputs: symbolic, in the model's input structure.
        names: the layers of the new graph by name; those of nested models are added.
        training: the argument of the model's call.
    """
    functional = functional_of(model)

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        own = kwargs.get("training") if training is None else training
        if functional_of(operation) is not None:
            return _called(operation, args[0] if args else kwargs["inputs"], names, own)
        if own is not None and getattr(operation, "_call_has_training_arg", False):
            kwargs["training"] = own
        _name_apart(operation, model.name, names)
        return operation(*args, **kwargs)

    def cast(tensor: keras.KerasTensor, dtype: str) -> keras.KerasTensor:
        if tensor.dtype == dtype:
            return tensor
        result = keras.ops.cast(tensor, dtype)
        _name_apart(result._keras_history.operation, model.name, names)
        return result

    # A model casts its inputs to the dtype that it was built for.
    tensors = [cast(tensor, source.dtype) for tensor, source in zip(keras.tree.flatten(inputs), functional.inputs, strict=True)]
    outputs = functional._run_through_graph(tensors, call_fn=call)
    return outputs[0] if isinstance(outputs, list | tuple) and len(outputs) == 1 else outputs


def _name_apart(operation: Any, prefix: str, names: dict[str, Any]) -> None:
    """Renames a layer if another one of the new graph has its name, as layers of two files may."""
    name = operation.name
    while names.setdefault(name, operation) is not operation:
        name = f"{prefix}_{name}"
    operation.name = name


# Logits


def _of_logits(model: keras.Model) -> keras.Model:
    """The model without the softmax at its end, if it has one."""
    graph = Graph(model)
    node, dtype = graph.node(graph.outputs[0]), graph.outputs[0].dtype
    last, (source, *_) = node.operation, node.input_tensors
    if _gives(last) != "softmax":
        _refuse_probabilities(graph, graph.outputs[0], model.name)
        return model
    if type(last) is keras.layers.Dense:
        logits = _without_activation(last)(source)
    elif getattr(last, "weights", ()):
        raise UserError(
            f"a softmax in the last layer can only be removed from a Dense layer. Received: {model.name!r}, which ends in "
            f"{type(last).__name__} {last.name!r}: build it with activation=None"
        )
    else:
        _refuse_probabilities(graph, source, model.name)
        # A softmax often computes in float32 in a network of another precision.
        logits = source if source.dtype == dtype else keras.layers.Activation("linear", dtype=dtype, name=last.name)(source)
    _LOG.warning("%s: the softmax of its last layer %r is removed, so that it returns logits", model.name, last.name)
    return keras.Model(model.inputs[0], logits, name=model.name)


def _without_activation(layer: keras.layers.Dense) -> keras.layers.Dense:
    """A linear layer with the variables of another one."""
    linear = keras.layers.Dense.from_config({**layer.get_config(), "activation": None})
    for name, value in vars(layer).items():
        if isinstance(value, keras.Variable):
            setattr(linear, name, value)
    linear.built = True
    return linear


def _refuse_probabilities(graph: Graph, tensor: keras.KerasTensor, name: str) -> None:
    """Raises UserError if a tensor holds probabilities: no layer with weights lies between it and the layer that makes them."""
    pending = [tensor]
    while pending:
        node = graph.node(pending.pop())
        operation, kind = node.operation, _gives(node.operation)
        if kind in _PROBABILITIES:
            raise UserError(
                f"a classifier must return logits, or end in a softmax of them. Received: {name!r}, which returns "
                f"probabilities from the {kind} of {operation.name!r}: build it without one, and train it with from_logits=True"
            )
        if not getattr(operation, "weights", ()) and (len(node.input_tensors) == 1 or is_merge(node)):
            pending += node.input_tensors


def _gives(operation: Any) -> str:
    """The activation that an operation is or applies."""
    kind = type(operation).__name__.lower()
    return kind if kind in _PROBABILITIES else activation_name(operation)
