"""Jacobian matching: value and gradient by hand for linear networks, the second derivative, and statistics that stay."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf
from steps import same, step, weights_of

from dfa_tf import plugins
from dfa_tf.config import Config
from dfa_tf.distillation.distil import distil
from dfa_tf.distillation.distiller import Distiller
from dfa_tf.images.splits import Splits
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.training.context import StageContext

NOTHING = Features(tf.zeros([2, 2]), (), None, {})  # the method reads no features


def linear(*jacobians: Sequence[float]) -> FeatureModel:
    """A network of images of two pixels whose logits have these derivatives by them."""
    pixels = keras.layers.Input((1, 2, 1))
    x = keras.layers.Conv2D(1, 1, use_bias=False, kernel_initializer="ones", name="block")(pixels)
    head = keras.layers.Dense(len(jacobians), name="logits")
    model = keras.Model(pixels, head(keras.layers.Flatten()(x)), name="linear")
    head.set_weights([np.array(jacobians, np.float32).T, np.ones(len(jacobians))])
    return FeatureModel.from_model(model, [["block"]])


def batch(labels: object) -> Batch:
    return Batch(tf.constant([[[[1.0], [2.0]]], [[[-3.0], [7.0]]]]), tf.constant(labels), None)


@pytest.fixture
def student() -> FeatureModel:
    return linear([3.0, 4.0], [0.0, 2.0])


@pytest.fixture
def method(student: FeatureModel) -> Method:
    return plugins.build("losses", "jacobian", student, linear([1.0, 0.0], [0.0, 5.0]))


def test_the_value_by_hand_for_the_class_of_each_example(method: Method) -> None:
    terms = method(NOTHING, NOTHING, batch([0, 1]))
    assert list(terms) == ["jacobian"]
    # (3, 4) is (0.6, 0.8) at unit length, against (1, 0); (0, 2) and (0, 5) agree.
    np.testing.assert_allclose(terms["jacobian"], [(0.6 - 1) ** 2 + 0.8**2, 0.0], rtol=1e-5, atol=1e-7)


def test_the_class_of_a_soft_label_is_its_largest(method: Method) -> None:
    terms = method(NOTHING, NOTHING, batch([[0.3, 0.7], [0.9, 0.1]]))
    np.testing.assert_allclose(terms["jacobian"], [0.0, 0.8], rtol=1e-5, atol=1e-7)


def test_the_gradient_by_hand_reaches_the_student_and_not_the_teacher(student: FeatureModel) -> None:
    teacher = linear([1.0, 0.0], [0.0, 5.0])
    method = plugins.build("losses", "jacobian", student, teacher)
    ours, theirs = (network.model.get_layer("logits").kernel for network in (student, teacher))
    with tf.GradientTape() as tape:
        term = method(NOTHING, NOTHING, batch([0, 1]))["jacobian"]
    # Of J = (3, 4), with u = J / 5 and v = (1, 0): -2/5 (v - (u v) u) = -0.4 (1 - 0.36, -0.48). The other class agrees.
    gradient, none = tape.gradient(term, [ours.value, theirs.value])
    np.testing.assert_allclose(gradient, [[-0.256, 0.0], [0.192, 0.0]], atol=1e-6)
    assert none is None
    assert method.trainable_variables == []


def test_the_gradient_goes_through_the_statistics_of_the_batch(tiny: Callable[..., FeatureModel], digits: np.ndarray) -> None:
    student, teacher = tiny(seed=1, activation="tanh"), tiny(6, 2, seed=2, activation="tanh")
    method, data = plugins.build("losses", "jacobian", student, teacher), Batch(tf.constant(digits), tf.range(8), None)

    def value() -> tf.Tensor:
        return tf.reduce_sum(method(NOTHING, NOTHING, data)["jacobian"])

    # Behind it stands another BatchNorm, whose second derivative TensorFlow's moments would get wrong.
    offset = student.model.get_layer("group1_block1_bn").beta
    with tf.GradientTape() as tape:
        total = value()
    gradient, start = tape.gradient(total, offset.value).numpy(), offset.numpy()
    direction, values = gradient / np.linalg.norm(gradient), []
    for distance in (0.02, -0.02):
        offset.assign(start + distance * direction)
        values.append(float(value()))
    assert (values[0] - values[1]) / 0.04 == pytest.approx(np.linalg.norm(gradient), rel=0.01)


def test_statistics_and_settings_of_both_networks_stay(tiny: Callable[..., FeatureModel], digits: np.ndarray) -> None:
    networks = tiny(seed=1), tiny(6, 2, seed=2)
    before = [weights_of(network.model) for network in networks]
    plugins.build("losses", "jacobian", *networks)(NOTHING, NOTHING, Batch(tf.constant(digits), tf.range(8), None))
    assert all(same(weights_of(network.model), weights) for network, weights in zip(networks, before, strict=True))
    layers = [layer for network in networks for layer in network.model.layers]
    assert not any(layer.synchronized for layer in layers if isinstance(layer, keras.layers.BatchNormalization))


def test_the_student_is_seen_in_training_mode_and_the_teacher_as_it_is(tiny: Callable[..., FeatureModel], digits: np.ndarray) -> None:
    student, teacher = tiny(seed=1), tiny(6, 2, seed=2)
    method, data = plugins.build("losses", "jacobian", student, teacher), Batch(tf.constant(digits), tf.range(8), None)

    def value() -> np.ndarray:
        return method(NOTHING, NOTHING, data)["jacobian"].numpy()

    first = value()
    student.model.get_layer("group1_block1_bn").moving_variance.assign(np.full(4, 9.0))
    np.testing.assert_array_equal(value(), first)
    teacher.model.get_layer("group1_block1_bn").moving_variance.assign(np.full(6, 9.0))
    assert not np.allclose(value(), first)


def test_the_weight_is_one_unless_given(tiny: Callable[..., FeatureModel]) -> None:
    student, teacher = tiny(seed=1), tiny(6, 2, seed=2)
    method = plugins.build("losses", "jacobian", student, teacher)
    logs = step(Distiller(student, teacher, {"jacobian": method}, ce_weight=0.0))
    assert logs["total_loss"] == pytest.approx(logs["jacobian"])
    assert 0 < logs["jacobian"] < 4


@pytest.mark.slow
def test_one_and_two_replicas_agree(
    two_replicas: tf.distribute.Strategy, tiny: Callable[..., FeatureModel], splits: Splits, quick: Config
) -> None:
    # One step on all sixty examples.
    config = quick.override(['distil.methods={"jacobian": 1.0}', "distil.ce_weight=0.0", "train.epochs=1", "data.batch_size=60"])
    one, two = (
        distil(tiny(6, 2, seed=1, activation="tanh"), tiny(activation="tanh"), splits, config, context=StageContext(strategy=strategy))
        for strategy in (None, two_replicas)
    )
    assert one.history[0]["jacobian"] == pytest.approx(two.history[0]["jacobian"], rel=1e-5)
    for ours, theirs in zip(one.student.get_weights(), two.student.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
