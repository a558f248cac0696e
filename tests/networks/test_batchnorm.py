"""BatchNorm by the fused kernel: the same as Keras' layer, and left alone where it cannot be."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf.networks.batchnorm import fused_batchnorm, twice_differentiable
from dfa_tf.networks.precision import precision

IMAGES = np.random.default_rng(0).normal(3, 2, (2, 3, 3, 4)).astype(np.float32)


def norm(**options: object) -> keras.layers.BatchNormalization:
    """A layer that has seen one batch, so that none of its weights is 0 or 1."""
    layer = keras.layers.BatchNormalization(momentum=0.75, **options)
    layer.build(IMAGES.shape)
    random = np.random.default_rng(1)
    layer.set_weights([random.uniform(0.5, 2, weight.shape) for weight in layer.get_weights()])
    return layer


def kernels(layer: keras.layers.Layer, training: bool, images: np.ndarray = IMAGES, **options: object) -> int:
    """How many fused kernels a graph has in which the layer is called."""

    @tf.function
    def call() -> tf.Tensor:
        with fused_batchnorm(layer):
            return layer(tf.constant(images), training=training, **options)

    return sum(operation.type == "FusedBatchNormV3" for operation in call.get_concrete_function().graph.get_operations())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"epsilon": 0.5}])
def test_value_gradient_and_statistics_are_those_of_keras(training: bool, options: dict[str, object]) -> None:
    results = []
    for fused in (False, True):
        layer, images = norm(**options), tf.constant(IMAGES)
        with tf.GradientTape() as tape:
            tape.watch(images)
            if fused:
                with fused_batchnorm(layer):
                    outputs = layer(images, training=training)
            else:
                outputs = layer(images, training=training)
            loss = tf.reduce_sum(outputs**3)
        gradients = tape.gradient(loss, [images, *(variable.value for variable in layer.trainable_variables)])
        results.append([outputs, *gradients, *layer.get_weights()])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4)


def test_the_moving_variance_is_that_over_n() -> None:
    layer = keras.layers.BatchNormalization(momentum=0.5)
    layer.build((None, 1, 1, 1))
    with fused_batchnorm(layer):
        layer(np.array([1.0, 3.0], np.float32).reshape(2, 1, 1, 1), training=True)
    # Mean 2 and variance ((1 - 2)^2 + (3 - 2)^2) / 2 = 1, from 0 and 1 half-way there.
    np.testing.assert_allclose([layer.moving_mean.numpy(), layer.moving_variance.numpy()], [[1.0], [1.0]], rtol=1e-6)


def test_the_kernel_is_used_within_and_no_longer_behind() -> None:
    layer = norm()
    assert kernels(layer, training=True) == 1
    assert "call" not in vars(layer)
    assert kernels(layer, training=False) == 0  # what may follow is not known


def test_a_frozen_layer_uses_its_moving_statistics() -> None:
    layer = norm()
    layer.trainable = False
    before, expected = layer.get_weights(), layer(IMAGES, training=False)
    with fused_batchnorm(layer):
        np.testing.assert_allclose(layer(IMAGES, training=True), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Doubled(keras.layers.BatchNormalization):
    """Twice what its base class gives."""

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        return 2 * super().call(inputs, training=training, mask=mask)


@pytest.mark.parametrize("options", [{"axis": 1}, {"renorm": True}, {"synchronized": True}], ids=str)
def test_a_layer_that_the_kernel_cannot_stand_for_is_called_as_it_is(options: dict[str, object]) -> None:
    layer = norm(**options)
    expected = norm(**options)(IMAGES, training=True)
    assert kernels(layer, training=True) == 0
    with fused_batchnorm(fresh := norm(**options)):
        np.testing.assert_array_equal(fresh(IMAGES, training=True), expected)


def test_a_layer_of_rank_two_a_class_of_its_own_and_a_masked_call_are_left_alone() -> None:
    flat = keras.layers.BatchNormalization()
    flat.build((None, 4))
    doubled = Doubled()
    doubled.build(IMAGES.shape)
    assert kernels(flat, True, IMAGES[:, 0, 0]) == 0
    assert kernels(doubled, True) == 0
    assert kernels(norm(), True, mask=tf.ones(IMAGES.shape[:3], bool)) == 0


def test_what_must_be_twice_differentiable_is_left_alone() -> None:
    layer = norm()
    model = keras.Sequential([keras.layers.Input(IMAGES.shape[1:]), layer])
    with twice_differentiable(model):
        assert kernels(layer, training=True) == 0
    assert kernels(layer, training=True) == 1


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_normalised_in_float32(policy: str) -> None:
    with precision(policy):
        layer = norm()
    # The variance of numbers around 100 is lost in bfloat16, whose step is 0.5 there, and their squares overflow in float16 at 300.
    images = tf.cast(100 * IMAGES, layer.compute_dtype)
    expected = norm()(tf.cast(images, tf.float32), training=True)
    with fused_batchnorm(layer):
        outputs = layer(images, training=True)
    assert outputs.dtype == layer.compute_dtype
    np.testing.assert_allclose(tf.cast(outputs, tf.float32), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", ["wrn_10_1", "resnet8", "vgg8", "mobilenet_v2", "shufflenet_v2"])
def test_the_layers_inside_of_networks_are_reached(name: str, build_model: Callable[..., keras.Model], digits: np.ndarray) -> None:
    network = build_model(name)
    norms = sum(isinstance(layer, keras.layers.BatchNormalization) for layer in network.layers)
    assert kernels(network, True, digits) == norms >= 2


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu", "silu", "linear"])
@pytest.mark.parametrize("form", ["layer", "argument of Activation", "operation"])
def test_a_frozen_network_of_any_activation_is_run_in_a_graph(activation: str, form: str) -> None:
    """TensorFlow joins convolution, BatchNorm and activation to one operation, which it cannot run for each of them."""
    pixels = keras.layers.Input(IMAGES.shape[1:])
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(5, 3, padding="same", use_bias=False)(pixels))
    function = keras.activations.get(activation)
    x = function(x) if form == "operation" else keras.layers.Activation(activation if form == "layer" else function)(x)
    model = keras.Model(pixels, keras.layers.Conv2D(2, 1)(x))

    @tf.function
    def forward(images: tf.Tensor) -> tf.Tensor:
        with fused_batchnorm(model):
            return model(images, training=False)

    np.testing.assert_allclose(forward(IMAGES), model(IMAGES, training=False), rtol=1e-4, atol=1e-5)
