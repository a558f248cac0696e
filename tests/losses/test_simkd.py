"""SimKD: the mean squared difference by hand, the projector, what is trained, and what is served."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from dfa_tf import plugins
from dfa_tf.config import Config
from dfa_tf.distillation.distil import distil
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Splits
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.graph import Graph

Tiny = Callable[..., FeatureModel]
Pair = tuple[FeatureModel, FeatureModel]
BATCH = Batch(tf.zeros([2, 8, 8, 1]), tf.constant([0, 1]), None)


@pytest.fixture
def pair(tiny: Tiny) -> Pair:
    """Last outputs of 4x4 pixels with 8 channels and 12 channels."""
    return tiny(4, 1, seed=1), tiny(6, 2, seed=2)


@pytest.fixture
def wide_resnets(student: FeatureModel, teacher: FeatureModel) -> Pair:
    """Pre-activation networks; the teacher's statistics are not those that a network begins with."""
    random = np.random.default_rng(0)
    for layer in teacher.model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return student, teacher


def build(pair: Pair, **options: object) -> Method:
    return plugins.build("losses", "simkd", *pair, **options)


def of(feature: object) -> Features:
    """Features whose last output is this one; reading anything else fails."""
    return Features(None, (), None, {"output": ((), (None, tf.cast(feature, tf.float32)))})


def constant(method: Method, value: float) -> None:
    """Lets the projector's last BatchNorm give this value everywhere."""
    norm = method.projector.get_layer("projector_bn3")  # type: ignore[attr-defined]
    norm.gamma.assign(tf.zeros_like(norm.gamma))
    norm.beta.assign(tf.fill(norm.beta.shape, value))


def names(method: Method) -> list[str]:
    return [layer.name.removeprefix("projector_") for layer in method.projector.layers[1:]]  # type: ignore[attr-defined]


def read(network: FeatureModel, images: np.ndarray) -> np.ndarray:
    """The output of the last block, in inference."""
    return network.extractor(["output"])(images).at("output")[-1][-1].numpy()


# The loss


def test_the_value_by_hand_is_the_mean_over_pixels_and_channels(pair: Pair) -> None:
    method = build(pair)
    constant(method, 2.0)
    target = np.full((2, 4, 4, 12), 2.0)
    target[0, 0, 0, 0] = 5.0  # one of 192 values is 3 off
    target[1, :, :, :6] = 1.0  # half of the values are 1 off
    terms = method(of(np.random.default_rng(0).normal(size=(2, 4, 4, 8))), of(target), BATCH)
    assert list(terms) == ["simkd"]
    np.testing.assert_allclose(terms["simkd"], [3**2 / 192, 1 / 2], rtol=1e-5)
    assert method.recommended_weight == 1


def test_the_projector_is_a_bottleneck_of_half_the_teacher_s_channels(pair: Pair) -> None:
    method = build(pair)
    assert names(method) == ["conv1", "bn1", "relu1", "conv2", "bn2", "relu2", "conv3", "bn3", "relu3"]
    kernels = [tuple(variable.shape) for variable in method.trainable_variables if variable.path.endswith("kernel")]
    assert kernels == [(1, 1, 8, 6), (3, 3, 6, 6), (1, 1, 6, 12)]
    # Beside the kernels there is scale and offset of the BatchNorms, and no bias.
    assert sum(int(np.prod(variable.shape)) for variable in method.trainable_variables) == 48 + 324 + 72 + 2 * (6 + 6 + 12)
    assert [tuple(v.shape) for v in build(pair, factor=4).trainable_variables if v.path.endswith("kernel")][1] == (3, 3, 3, 3)


def test_the_projector_ends_in_a_relu_only_where_the_teacher_s_output_does(pair: Pair, wide_resnets: Pair, tiny: Tiny) -> None:
    for networks, expected in ((pair, 0.0), (wide_resnets, -1.0), ((tiny(), tiny(6, 1, activation="tanh")), -1.0)):
        method = build(networks)
        constant(method, -1.0)
        projected = method.projector(tf.zeros([1, *networks[0].groups[-1].shape]))
        assert projected.shape[1:] == networks[1].groups[-1].shape
        np.testing.assert_allclose(projected, np.full(projected.shape, expected), atol=1e-6)


def test_the_projector_normalises_by_the_batch_and_keeps_its_statistics(pair: Pair) -> None:
    method = build(pair)
    feature = np.random.default_rng(0).normal(size=(2, 4, 4, 8)).astype(np.float32)
    convolved = feature @ method.projector.get_layer("projector_conv1").kernel.numpy()[0, 0]
    method(of(feature), of(np.zeros((2, 4, 4, 12))), BATCH)
    np.testing.assert_allclose(method.projector.get_layer("projector_bn1").moving_mean, 0.1 * convolved.mean((0, 1, 2)), rtol=1e-4)


def test_a_teacher_of_a_higher_resolution_is_pooled_to_the_student_s(tiny: Tiny) -> None:
    student = FeatureModel.from_model(tiny(4, 1).model, [["group2_block1"]])
    method = build((student, FeatureModel.from_model(tiny(6, 1).model, [["group1_block1"]])))
    constant(method, 0.5)
    target = np.zeros((2, 8, 8, 6))
    target[0, 0, 0, 0] = 4.0  # the mean of its four pixels is 1
    terms = method(of(np.ones((2, 4, 4, 8))), of(target), BATCH)
    np.testing.assert_allclose(terms["simkd"], [0.25, 0.25], rtol=1e-5)
    target[1] = 0.5
    np.testing.assert_allclose(method(of(np.ones((2, 4, 4, 8))), of(target), BATCH)["simkd"], [0.25, 0], atol=1e-6)


def test_a_student_of_a_higher_resolution_is_pooled_to_the_teacher_s(tiny: Tiny, digits: np.ndarray) -> None:
    student = FeatureModel.from_model(tiny(4, 1).model, [["group1_block1"]])
    teacher = FeatureModel.from_model(tiny(6, 1).model, [["group2_block1"]])
    method = build((student, teacher))
    feature = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    pooled = feature.reshape(2, 4, 2, 4, 2, 4).mean((2, 4))
    inner = keras.Model(method.projector.get_layer("projector_conv1").input, method.projector.output)
    np.testing.assert_allclose(method.projector(feature), inner(pooled), rtol=1e-4, atol=1e-6)
    assert method.deploy(student.model)(digits).shape == (8, 10)


# Training


def test_without_cross_entropy_the_student_s_own_classifier_stays_as_it_is_and_the_served_one_is_evaluated(
    pair: Pair, splits: Splits, quick: Config
) -> None:
    student, teacher = pair
    before = {variable.path: variable.numpy() for variable in student.model.trainable_variables}
    config = quick.override(['distil.methods={"simkd": 2.0, "kd": 0.0}', "train.epochs=1", "train.weight_decay=0.1"])
    result = distil(teacher, student, splits, config)
    row = result.history[0]
    np.testing.assert_allclose(row["total_loss"], 2 * row["simkd"], rtol=1e-5)
    moved = {path for variable in student.model.trainable_variables if (variable.numpy() != before[path := variable.path]).any()}
    assert moved == set(before) - {"logits/kernel", "logits/bias"}
    predicted = result.student(splits.test.images.pixels[splits.test.indices].astype(np.float32)).numpy().argmax(axis=1)
    np.testing.assert_allclose(row["test_accuracy"], (predicted == splits.test.labels).mean(), rtol=1e-5)
    assert result.student.count_params() == 1042


def test_other_methods_keep_their_weights(pair: Pair) -> None:
    (phase,) = build(pair).phases
    assert (phase.fraction, phase.ce_weight, phase.method_weight, phase.other_weight, phase.trains) == (1, 0, 1, 1, "all")


# What is served


def test_the_served_model_has_the_teacher_s_classifier_behind_the_projector(pair: Pair, digits: np.ndarray) -> None:
    student, teacher = pair
    method = build(pair)
    served = method.deploy(student.model)
    feature = method.projector(read(student, digits)).numpy()
    kernel, bias = teacher.model.get_layer("logits").get_weights()
    np.testing.assert_allclose(served(digits), feature.mean((1, 2)) @ kernel + bias, rtol=1e-4, atol=1e-5)
    # Student up to the last output: kernels of 3x3, and four values for each channel of a BatchNorm.
    backbone = (9 * 1 * 4 + 4 * 4) + (9 * 4 * 8 + 4 * 8)
    projector = (8 * 6 + 4 * 6) + (9 * 6 * 6 + 4 * 6) + (6 * 12 + 4 * 12)
    assert served.count_params() == backbone + projector + (12 * 10 + 10)


def test_a_classifier_with_batchnorm_and_relu_is_copied_as_a_whole(wide_resnets: Pair, digits: np.ndarray) -> None:
    student, teacher = wide_resnets
    served = build(wide_resnets).deploy(student.model)
    outputs = {node.operation.name: node.outputs[0] for node in Graph(served).nodes}
    behind = keras.Model(outputs["projector_bn3"], served.output)
    feature = read(teacher, digits)
    assert (feature < 0).any()
    np.testing.assert_allclose(behind(feature), teacher.model(digits), rtol=1e-4, atol=1e-5)
    assert served.name == "wrn_10_1_simkd"
    assert [layer.name for layer in served.layers][-4:] == ["teacher_head_bn", "teacher_head_relu", "teacher_head_pool", "teacher_logits"]


def test_the_served_classifier_is_a_frozen_copy_and_the_rest_is_the_student_itself(pair: Pair, digits: np.ndarray) -> None:
    student, teacher = pair
    method = build(pair)
    served = method.deploy(student.model)
    shared = {id(variable) for variable in (*student.model.variables, *method.variables)}
    copied = [variable for variable in served.variables if id(variable) not in shared]
    assert [variable.path for variable in copied] == ["teacher_logits/kernel", "teacher_logits/bias"]
    assert not {id(variable) for variable in copied} & {id(variable) for variable in served.trainable_variables}
    before = served(digits).numpy()
    teacher.model.get_layer("logits").bias.assign_add(np.ones(10))
    np.testing.assert_array_equal(served(digits), before)
    student.model.get_layer("group2_block1_bn").beta.assign_add(np.ones(8))
    assert (served(digits).numpy() != before).any()


def test_the_served_model_is_flat_and_loads_in_safe_mode(wide_resnets: Pair, digits: np.ndarray, tmp_path: Path) -> None:
    served = build(wide_resnets).deploy(wide_resnets[0].model)
    Graph(served)  # refuses models inside of a model
    served.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(digits), served(digits), rtol=1e-5, atol=1e-6)
    assert loaded.count_params() == served.count_params()
    assert not loaded.get_layer("teacher_logits").trainable


def test_layers_of_the_same_name_in_both_networks_do_not_clash(digits: np.ndarray) -> None:
    def network(convolution: str, head: str) -> FeatureModel:
        pixels = layers.Input((8, 8, 1))
        x = layers.ReLU(name=f"{convolution}_relu")(layers.Conv2D(4, 3, name=convolution)(pixels))
        model = keras.Model(pixels, layers.Dense(10, name=head)(layers.GlobalAveragePooling2D(name=f"{head}_pool")(x)))
        return FeatureModel.from_model(model, [[f"{convolution}_relu"]])

    student, teacher = network("one", "two"), network("two", "one")
    assert build((student, teacher)).deploy(student.model)(digits).shape == (8, 10)


def test_a_classifier_that_cannot_take_the_lower_resolution_is_refused(tiny: Tiny) -> None:
    pixels = layers.Input((8, 8, 1))
    x = layers.ReLU(name="block")(layers.Conv2D(4, 3, padding="same")(pixels))
    teacher = FeatureModel.from_model(keras.Model(pixels, layers.Dense(10)(layers.Flatten()(x)), name="flattening"), [["block"]])
    student = FeatureModel.from_model(tiny().model, [["group2_block1"]])
    with pytest.raises(UserError, match="takes the lower resolution of the two networks. Received: 'flattening', for 4x4 pixels"):
        build((student, teacher)).deploy(student.model)


@pytest.mark.parametrize("factor", [0, 13, 1.5])
def test_a_factor_that_leaves_no_channels_is_refused(factor: float, pair: Pair) -> None:
    with pytest.raises(UserError, match=rf"factor of simkd is an integer, 1..12. Received: {factor}"):
        build(pair, factor=factor)
