"""Copies of networks, with variables of their own."""

from collections.abc import Callable
from typing import Any

import keras


def copy_of(model: keras.Model, *, weights: bool = True, policy: Callable[[keras.layers.Layer], str] | None = None) -> keras.Model:
    """A copy of a model with variables of its own.

    Args:
        model: Functional and flat.
        weights: copy them, or else initialise them again. Normalization layers keep the statistics they were adapted to either
            way, which `keras.models.clone_model` and `set_weights` would lose.
        policy: gives the name of the dtype policy of a layer's copy; each copy keeps its layer's own where None.
    """

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        changed = {} if policy is None or isinstance(layer, keras.layers.InputLayer) else {"dtype": policy(layer)}
        return type(layer).from_config({**layer.get_config(), **changed})

    copy = keras.models.clone_model(model, clone_function=clone)
    if weights:
        copy.set_weights(model.get_weights())
    for ours, theirs in zip(copy.layers, model.layers, strict=True):
        if isinstance(ours, keras.layers.Normalization):
            ours.set_weights(theirs.get_weights())
            ours.finalize_state()
    return copy


def copy_onto(model: keras.Model, tensor: keras.KerasTensor, *, prefix: str) -> keras.KerasTensor:
    """Puts a copy of a model, with variables of its own, behind a symbolic tensor, in the flat graph that it belongs to.

    Args:
        model: Functional and flat, with one input and one output.
        tensor: takes the place of its input.
        prefix: of the names of the copy's layers, so that they differ from others in that graph.

    Returns:
        The copy's output. Normalization layers keep the statistics they were adapted to.
    """
    outputs: list[keras.KerasTensor] = []

    def renamed(operation: Any) -> Any:
        return type(operation).from_config({**operation.get_config(), "name": f"{prefix}{operation.name}"})

    def call(operation: Any, *args: Any, **kwargs: Any) -> keras.KerasTensor:
        outputs.append(operation(*args, **kwargs))
        return outputs[-1]

    inputs = keras.tree.map_structure(lambda _: tensor, model.input)
    copy = keras.models.clone_model(model, inputs, clone_function=renamed, call_function=call)
    copy.set_weights(model.get_weights())
    for layer in copy.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # what it computes with is made of its weights, and set_weights does not make it
    # Not the output of `copy`, to which Keras gives an input of its own where `tensor` is none: the last call makes the output.
    return outputs[-1]
