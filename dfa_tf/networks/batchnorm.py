"""Three ways for the BatchNorm layers of a network to compute: by TensorFlow's fused kernel, over all replicas, twice differentiable."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from dfa_tf.networks.graph import activation_name


@contextlib.contextmanager
def fused_batchnorm(*layers: keras.layers.Layer) -> Iterator[None]:
    """Inside the context, every BatchNorm of these layers uses the fused kernel.

    Its results are the same up to rounding, moving statistics included: normalised in float32, whatever the precision of the
    tensor. The kernel cannot replace some layers, which are called as they are: of other axes than the channels of `[B, H, W, C]`,
    with a mask, renormalised, subclassed, synchronised over replicas, or within `twice_differentiable`; and in inference a layer that
    no operation follows, in the graph of a model, which TensorFlow can join with it.
    """
    norms = [inner for layer in layers for inner in layer._flatten_layers() if _fits(inner)]
    for norm in norms:
        norm.call = functools.partial(_call, norm, _joins_well(norm))
    try:
        yield
    finally:
        for norm in norms:
            norm.__dict__.pop("call", None)


def _fits(layer: keras.layers.Layer) -> bool:
    known = type(layer) is keras.layers.BatchNormalization  # a subclass may compute something else
    return known and layer.built and not layer.renorm and layer._reduction_axes == [0, 1, 2]


def _joins_well(layer: keras.layers.Layer) -> bool:
    """Whether TensorFlow's kernels know what its graph optimizer makes of a convolution, this layer in inference and what follows.

    It joins them with a tanh or a sigmoid too, for which there is no kernel, and the step then fails.
    """
    names = {(activation_name(node.operation), type(node.operation).__name__.lower()) for node in layer._outbound_nodes}
    return bool(names) and not any(word in ("tanh", "sigmoid") for pair in names for word in pair)


def _call(
    layer: keras.layers.BatchNormalization,
    joins_well: bool,
    inputs: tf.Tensor,
    training: bool | None = None,
    mask: tf.Tensor | None = None,
) -> tf.Tensor:
    learning = bool(training and layer.trainable)
    # Asked here and not before: both may change between the making and the calling of the kernel's context.
    if layer.synchronized or _has_own_moments(layer) or mask is not None or inputs.dtype == tf.float64 or not (learning or joins_well):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    channels = inputs.shape[-1:]
    scale = tf.convert_to_tensor(layer.gamma.value) if layer.scale else tf.ones(channels)
    offset = tf.convert_to_tensor(layer.beta.value) if layer.center else tf.zeros(channels)
    statistics = [tf.zeros([0])] * 2 if learning else [tf.convert_to_tensor(v.value) for v in (layer.moving_mean, layer.moving_variance)]
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=scale, offset=offset, mean=statistics[0], variance=statistics[1], epsilon=layer.epsilon, is_training=learning
    )
    if learning:
        # The kernel gives the variance of a sample, over n - 1; Keras' layer keeps that over n.
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), variance.dtype)
        for moving, value in ((layer.moving_mean, mean), (layer.moving_variance, variance * (count - 1) / count)):
            moving.assign(moving.value * layer.momentum + value * (1.0 - layer.momentum))
    return outputs


def batchnorm_switch(*layers: keras.layers.Layer) -> Callable[[bool], None]:
    """A function that lets every BatchNorm inside take its statistics over all replicas, or, for saving, as its owner made it.

    Keras' attribute `synchronized` of a layer does that. What its owner set it to is remembered here.
    """
    made = [(inner, inner.synchronized) for layer in layers for inner in _norms(layer)]

    def switch(on: bool) -> None:
        for norm, by_owner in made:
            norm.synchronized = on or by_owner

    return switch


@contextlib.contextmanager
def twice_differentiable(*models: keras.Model) -> Iterator[None]:
    """Inside the context, every BatchNorm of these models computes its variance as E[x^2] - E[x]^2.

    Its default, `tf.nn.moments`, holds the mean fixed within the variance: right for a first derivative, wrong for a second one.
    """
    norms = [norm for model in models for norm in _norms(model) if not _has_own_moments(norm)]
    for norm in norms:
        norm._moments = functools.partial(_moments_of_squares, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.__dict__["_moments"]


def _norms(layer: keras.layers.Layer) -> list[keras.layers.BatchNormalization]:
    return [inner for inner in layer._flatten_layers() if isinstance(inner, keras.layers.BatchNormalization)]


def _has_own_moments(layer: keras.layers.BatchNormalization) -> bool:
    """Whether `twice_differentiable` computes the layer's statistics now."""
    return "_moments" in vars(layer)


def _moments_of_squares(layer: keras.layers.BatchNormalization, inputs: tf.Tensor, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance, E[x] and E[x^2] - E[x]^2; with a mask Keras' own, which differentiate the mean too."""
    if mask is not None:
        return type(layer)._moments(layer, inputs, mask)
    # Keras has this form of the variance only as its sum over replicas; on one replica that adds nothing.
    return keras.ops.moments(inputs, axes=layer._reduction_axes, synchronized=True)
