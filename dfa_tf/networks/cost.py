"""The cost of a network: parameters, multiply-accumulates of one image and memory of a training step, from the shapes of its graph."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import layers

from dfa_tf.errors import UserError
from dfa_tf.networks.graph import activation_name, functional_of

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Dense)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
# Operations that multiply and add without a kernel whose shape gives the count.
_PRODUCTS = {
    *("matmul", "einsum", "dot", "tensordot", "inner", "vdot", "conv", "convtranspose", "depthwiseconv", "separableconv"),
    *("attention", "additiveattention", "dotproductattention", "lambda"),
}

# Tensors that the gradient of an operation reads, by the name of its class or of its activation.
_READS_INPUT = {"batchnormalization", "layernormalization", "groupnormalization", "multiply", "silu", "swish", "leakyrelu"}
_READS_OUTPUT = {"relu", "relu6", "sigmoid", "tanh", "softmax", "elu", "selu"}
_READS_NOTHING = {
    *("inputlayer", "linear", "add", "subtract", "average", "concatenate", "rescaling", "normalization", "customscalelayer"),
    *("zeropadding2d", "cropping2d", "upsampling2d", "resizing", "averagepooling2d", "globalaveragepooling2d", "permute", "transpose"),
}
_SAME_MEMORY = {"reshape", "flatten", "identity"}
WORKING_TENSORS = 2
"""Temporary tensors of a step, each as large as the largest one: a layer's gradients, and the products that they are computed from."""


class Memory(NamedTuple):
    """The memory of a training step by use, in bytes.

    Attributes:
        weights: of all networks and connectors.
        gradients: of the trained variables.
        optimizer: its momentum, and the moving average of the weights if there is one.
        activations: of student and connectors, which the backward pass reads.
        features: block outputs of the teacher, and their aggregations.
        working: temporary tensors of a layer.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    features: int
    working: int

    @property
    def total(self) -> int:
        return sum(self)


def calls(model: keras.Model) -> Iterator[Any]:
    """The nodes of a model's graph in topological order, one for each call of a layer; a nested model is replaced by its nodes.

    Raises:
        UserError: if the model has no graph.
    """
    functional = functional_of(model)
    if functional is None:
        raise UserError(
            f"costs are read from a Functional or Sequential model that is built. Received: {type(model).__name__} {model.name!r}. "
            "Rebuild it with keras.Model(inputs, outputs)."
        )
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if isinstance(node.operation, keras.Model):
                yield from calls(node.operation)
            else:
                yield node


def count_macs(model: keras.Model) -> int:
    """Multiply-accumulates (MACs) of one forward pass of one image.

    As in papers, convolutions and Dense layers count, at padded positions too; biases, normalisation, activations, pooling and resizing
    do not. A MAC is two FLOPs, so there are about twice as many FLOPs.

    Args:
        model: Functional or Sequential, of images of a known size.

    Raises:
        UserError: if the model has no graph, or the size is not known.
    """
    return sum(macs_by_type(model)[0].values())


def macs_by_type(model: keras.Model) -> tuple[dict[str, int], list[str]]:
    """MACs by the kind of layer, as `count_macs` counts them.

    Returns:
        MACs by name of the layer's class, largest first; and the names of the layers whose products are not counted (matrix products,
        attention, user layers): with any of these the sum is too low.
    """
    counts: dict[str, int] = {}
    not_counted = []
    for node in calls(model):
        macs = call_macs(node)
        if macs is None:
            not_counted.append(node.operation.name)
        elif macs:
            kind = type(node.operation).__name__
            counts[kind] = counts.get(kind, 0) + macs
    return dict(sorted(counts.items(), key=lambda item: -item[1])), list(dict.fromkeys(not_counted))


def call_macs(node: Any) -> int | None:
    """MACs of one call of a layer for one image: positions of the kernel times its weights; None if unknown.

    A kernel has only the weights of its own channel group, and dilation adds none, so the kernel's shape accounts for both.
    """
    layer, places = node.operation, node.outputs[0]
    if isinstance(layer, _SEPARABLE):
        kernels = [layer.depthwise_kernel.shape, layer.pointwise_kernel.shape]
        channels = layer.filters
    elif isinstance(layer, _TRANSPOSED):
        kernels, places = [layer.kernel.shape], node.input_tensors[0]  # its kernel is applied at each input position
        channels = layer.kernel.shape[-1]
    elif isinstance(layer, _DEPTHWISE):
        kernels, channels = [layer.kernel.shape], math.prod(layer.kernel.shape[-2:])
    elif isinstance(layer, _CONVOLUTIONS):
        kernels, channels = [layer.kernel.shape], layer.kernel.shape[-1]
    else:
        return None if _may_multiply(layer) else 0
    return _elements(places) // channels * sum(math.prod(kernel) for kernel in kernels)


def _may_multiply(operation: Any) -> bool:
    if type(operation).__name__.lower() in _PRODUCTS:
        return True
    if not isinstance(operation, layers.Layer) or isinstance(operation, layers.PReLU):
        return False
    foreign = not type(operation).__module__.startswith("keras.")
    return foreign or any(len(variable.shape) > 1 for variable in operation.trainable_variables)


def kept_bytes(model: keras.Model) -> int:
    """Bytes of one image's activations that the backward pass of a model reads, each tensor once.

    For common operations, the tensors that the gradient reads are known (a convolution's input, a ReLU's output). For others, inputs
    and outputs count. BatchNorm computes in float32, whatever the precision of the network.
    """
    kept: dict[tuple[int, str], int] = {}
    memory: dict[int, int] = {}  # tensors that share another one's memory in another shape

    def keep(tensor: keras.KerasTensor, dtype: str, kind: str = "") -> None:
        kept[memory.get(id(tensor), id(tensor)), kind or dtype] = _bytes(tensor, dtype)

    for node in calls(model):
        layer, output = node.operation, node.outputs[0]
        kind, activation = type(layer).__name__.lower(), activation_name(layer)
        if kind in _SAME_MEMORY:
            memory[id(output)] = memory.get(id(node.input_tensors[0]), id(node.input_tensors[0]))
            continue
        multiplies = isinstance(layer, _CONVOLUTIONS + _DEPTHWISE + _SEPARABLE + _TRANSPOSED)
        if kind == "activation":
            kind = activation
        elif multiplies and activation != "linear":
            keep(output, output.dtype)
            if activation not in _READS_OUTPUT:
                keep(output, output.dtype, "before its activation")
        known = multiplies or kind in _READS_INPUT | _READS_OUTPUT | _READS_NOTHING
        if multiplies or kind in _READS_INPUT or not known:
            for tensor in node.input_tensors:
                # A tensor of another dtype is copied, and the copy is kept.
                keep(tensor, "float32" if kind == "batchnormalization" else getattr(layer, "compute_dtype", tensor.dtype))
        if kind in _READS_OUTPUT or not known:
            keep(output, output.dtype)
    return sum(kept.values())


def working_bytes(model: keras.Model) -> int:
    """Bytes of the temporary tensors of the largest layer, for one image."""
    return WORKING_TENSORS * max(_bytes(node.outputs[0], "float32") for node in calls(model))


def training_memory(
    student: keras.Model,
    batch_size: int,
    *,
    momentum: bool = True,
    average: bool = False,
    connectors: Sequence[keras.Model] = (),
    teacher: keras.Model | None = None,
    features: Sequence[keras.KerasTensor] = (),
) -> Memory:
    """An estimate of the memory that a step of stage 2 needs at its peak, on one device.

    It does not include the memory of TensorFlow itself (some hundred MiB on a GPU) or of the data set. On a CPU, the measured peaks of
    six pairs of networks were between 0.75 and 0.9 of what a step adds to weights and momentum by this estimate.

    Args:
        student: the network that is trained.
        batch_size: images on the device.
        momentum: whether the optimizer keeps a velocity of each weight.
        average: whether it keeps a moving average of each weight.
        connectors: trained beside the student.
        teacher: runs forward only: a step keeps only its features.
        features: outputs of the teacher that the methods read; symbolic, `[None, H, W, C]`.
    """
    trained = [student, *connectors]
    networks = trained if teacher is None else [*trained, teacher]
    trainable = sum(variable_bytes(model.trainable_variables) for model in trained)
    working = max(map(working_bytes, networks)) + _bytes(student.inputs[0], "float32")
    return Memory(
        weights=sum(variable_bytes(model.variables) for model in networks),
        gradients=trainable,
        optimizer=trainable * (int(momentum) + int(average)),
        activations=batch_size * sum(map(kept_bytes, trained)),
        features=batch_size * sum(_bytes(tensor, tensor.dtype) for tensor in features),
        working=batch_size * working,
    )


def variable_bytes(variables: Sequence[keras.Variable]) -> int:
    """Bytes of variables as stored: in float32 even if a network computes in lower precision."""
    return sum(math.prod(variable.shape) * _size(variable.dtype) for variable in variables)


def _elements(tensor: keras.KerasTensor) -> int:
    if None in tensor.shape[1:]:
        raise UserError(f"costs are counted for images of a known size. Received: a tensor of {tuple(tensor.shape)}")
    return math.prod(tensor.shape[1:])


def _bytes(tensor: keras.KerasTensor, dtype: str) -> int:
    return _elements(tensor) * _size(dtype)


def _size(dtype: str) -> int:
    return int(tf.as_dtype(dtype).size)


def count_parameters(model: keras.Model) -> int:
    """Parameters as papers count them: without the statistics of BatchNorm, with those of frozen layers."""
    return sum(math.prod(variable.shape) for layer in model._flatten_layers() for variable in layer._trainable_variables)
