"""How BatchNorm inside networks computes: by TensorFlow's fused kernel, over all replicas, or twice differentiable."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from dfa_tf.networks.graph import activation_name


@contextlib.contextmanager
def fused_batchnorm(*layers: keras.layers.Layer) -> Iterator[None]:
    """Lets every BatchNorm inside of these layers, where they are called within, use the fused kernel.

    What it computes is the same up to rounding, its moving statistics too: normalised in float32, whatever the precision of the
    tensor. A layer that the kernel cannot stand for is called as it is: one of other axes than the channels of `[B, H, W, C]`,
    with a mask, renormalised, of a class of its own, or synchronised over replicas; and in inference one that is not followed, in the
    graph of a model, by what TensorFlow can join it with.
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
    known = type(layer) is keras.layers.BatchNormalization  # a class of its own may compute something else
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
    # Asked here and not before: what is twice differentiable says so by `synchronized` too.
    if layer.synchronized or mask is not None or inputs.dtype == tf.float64 or not (learning or joins_well):
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
    """Lets every BatchNorm inside, but those that are made so, take its statistics over all replicas; or, for saving, no longer."""
    inner = [each for layer in layers for each in layer._flatten_layers()]
    norms = [each for each in inner if isinstance(each, keras.layers.BatchNormalization) and not each.synchronized]

    def switch(on: bool) -> None:
        for norm in norms:
            norm.synchronized = on

    return switch


@contextlib.contextmanager
def twice_differentiable(*models: keras.Model) -> Iterator[None]:
    """Lets every BatchNorm inside of these models take its variance as E[x^2] - E[x]^2, where they are called within.

    Otherwise `tf.nn.moments` takes it, which holds the mean fixed within the variance: right for a first derivative and
    wrong for a second one.
    """
    layers = [layer for model in models for layer in model._flatten_layers()]
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized]
    for norm in norms:
        norm.synchronized = True
    try:
        yield
    finally:
        for norm in norms:
            norm.synchronized = False
