"""One forward pass gives every block's output; tails share weights; a teacher that is frozen stays what it is."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from dfa_tf.errors import UserError
from dfa_tf.networks.copying import copy_of
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.frozen_teacher import frozen
from dfa_tf.networks.keras_file import load_model
from dfa_tf.training.evaluation import predictor


def values(model: keras.Model) -> list[np.ndarray]:
    """The weights of a model, copied."""
    return [np.array(variable) for variable in model.variables]


def output_of(model: keras.Model, layer: str, images: np.ndarray) -> np.ndarray:
    """What a layer gives, by a model of its own."""
    return np.asarray(keras.Model(model.input, model.get_layer(layer).output)(images, training=False))


def assert_equal_lists(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def trained(teacher: FeatureModel) -> FeatureModel:
    """A teacher whose BatchNorm statistics are not those of any batch, as after training."""
    random = np.random.default_rng(0)
    for layer in teacher.model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(random.normal(0, 0.3, layer.moving_mean.shape))
            layer.moving_variance.assign(random.uniform(0.5, 2, layer.moving_mean.shape))
    return teacher


# Extractor


def test_the_extractor_gives_what_models_of_their_own_give(trained: FeatureModel, digits: np.ndarray) -> None:
    features = trained.extractor(["output"])(digits)
    model = trained.model
    np.testing.assert_allclose(features.logits, model(digits), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features.embedding, output_of(model, "head_pool", digits), rtol=1e-5, atol=1e-6)
    behind = [["group1_block2_1_bn", "group2_block1_1_bn"], ["group2_block2_1_bn", "group3_block1_1_bn"], ["group3_block2_1_bn", "head_bn"]]
    for tap, names in (("pre_activation", behind), ("output", trained.block_names())):
        for group, of_group in zip(features.at(tap), names, strict=True):
            for feature, name in zip(group, of_group, strict=True):
                np.testing.assert_allclose(feature, output_of(model, name, digits), rtol=1e-5, atol=1e-6)


def test_groups_are_those_at_the_models_own_tap(trained: FeatureModel, digits: np.ndarray) -> None:
    features = trained.extractor(["output"])(digits)
    assert set(features.taps) == {"pre_activation", "output"}
    assert features.groups is features.at("pre_activation")
    other = FeatureModel.from_model(trained, tap="output")
    assert (other.model, other.groups, other.tap) == (trained.model, trained.groups, "output")
    own = other.extractor()(digits)
    assert set(own.taps) == {"output"}
    np.testing.assert_allclose(own.groups[1][0], features.at("output")[1][0], rtol=1e-5, atol=1e-6)
    assert (own.groups[1][0].numpy() != features.groups[1][0].numpy()).any()


def test_one_forward_pass_gives_both_taps(trained: FeatureModel) -> None:
    extractor = trained.extractor(["pre_activation", "output"])
    graph = tf.function(extractor).get_concrete_function(tf.TensorSpec((None, 8, 8, 1))).graph
    convolutions = [operation for operation in graph.get_operations() if operation.type == "Conv2D"]
    assert len(convolutions) == sum(isinstance(layer, layers.Conv2D) for layer in trained.model.layers)


def test_the_extractor_trains_the_model_itself(student: FeatureModel, digits: np.ndarray) -> None:
    extractor = student.extractor()
    assert [id(weight) for weight in extractor.model.trainable_weights] == [id(weight) for weight in student.model.trainable_weights]
    before = values(student.model)
    extractor(digits, training=True)
    changed = {variable.name for variable, old in zip(student.model.variables, before, strict=True) if not np.array_equal(variable, old)}
    assert changed == {"moving_mean", "moving_variance"}


def test_symbolic_features_have_the_shapes_and_types_of_real_ones(teacher: FeatureModel, digits: np.ndarray) -> None:
    extractor = teacher.extractor(["output"])
    symbolic, real = extractor.symbolic(), extractor(digits)
    assert isinstance(symbolic, Features)
    for one, other in zip(tf.nest.flatten(symbolic), tf.nest.flatten(real), strict=True):
        assert (one.shape[0], one.shape[1:], one.dtype) == (None, tuple(other.shape[1:]), other.dtype.name)
    assert frozen(teacher).extractor.symbolic().logits.shape == (None, 10)


def test_a_model_that_ends_without_a_dense_layer_has_no_embedding(digits: np.ndarray) -> None:
    model = keras.Sequential(
        [layers.Input((8, 8, 1)), layers.Conv2D(4, 3), layers.ReLU(), layers.Conv2D(3, 1), layers.GlobalAveragePooling2D()]
    )
    for features in (FeatureModel.from_model(model).extractor()(digits), frozen(FeatureModel.from_model(model))(digits)):
        assert features.embedding is None
        np.testing.assert_allclose(features.logits, model(digits), rtol=1e-5, atol=1e-6)


def test_an_unknown_tap_is_told(teacher: FeatureModel) -> None:
    for model in (teacher, teacher.model):
        with pytest.raises(UserError, match=r"a tap is one of .* Received: 'ouput'. Did you mean 'output'\?"):
            FeatureModel.from_model(model, tap="ouput")


def test_a_feature_model_is_read_anew_by_other_groups_and_keeps_its_tap(teacher: FeatureModel) -> None:
    other = FeatureModel.from_model(FeatureModel.from_model(teacher, tap="output"), [["group1_block1_add"]])
    assert (other.model, other.tap, other.block_names()) == (teacher.model, "output", [["group1_block1_add"]])


def test_what_was_left_out_stays_known_at_another_tap_and_is_nothing_where_blocks_are_named() -> None:
    stack = [layers.Conv2D(channels, 3, padding="same", activation="relu", name=f"conv{channels}") for channels in (4, 6)]
    model = FeatureModel.from_model(keras.Sequential([layers.Input((8, 8, 1)), *stack, layers.Flatten(), layers.Dense(3)]))
    assert [left.name for left in model.left_out] == ["conv4"]
    assert FeatureModel.from_model(model, tap="output").left_out == model.left_out
    assert FeatureModel.from_model(model, [["conv6"]]).left_out == ()


# Tails


def test_a_tail_of_a_pre_activation_network_finishes_the_forward_pass(trained: FeatureModel, digits: np.ndarray) -> None:
    handed_on = trained.extractor(["output"])(digits).at("output")
    for group in range(3):
        tail = trained.tail(group)
        assert tail.input.shape == (None, *trained.groups[group].shape)
        np.testing.assert_allclose(tail(handed_on[group][-1]), trained.model(digits), rtol=1e-5, atol=1e-6)


def test_a_tail_of_a_post_activation_network_starts_behind_the_relu(post_activation: keras.Model, digits: np.ndarray) -> None:
    model = FeatureModel.from_model(post_activation)
    features = model.extractor(["output"])(digits)
    for group in range(2):
        np.testing.assert_allclose(model.tail(group)(features.at("output")[group][-1]), post_activation(digits), rtol=1e-5, atol=1e-6)
        assert (model.tail(group)(features.groups[group][-1]) != post_activation(digits).numpy()).numpy().any()


def test_tails_share_the_models_weights(teacher: FeatureModel, digits: np.ndarray) -> None:
    tails = [teacher.tail(group) for group in range(3)]
    ids = {id(variable) for variable in teacher.model.variables}
    shared = [{id(variable) for variable in tail.variables} for tail in tails]
    assert ids > shared[0] > shared[1] > shared[2]
    assert {variable.path for variable in tails[2].trainable_variables} == {"head_bn/gamma", "head_bn/beta", "logits/kernel", "logits/bias"}
    feature = np.ones((1, *teacher.groups[2].shape), np.float32)
    before = np.asarray(tails[2](feature))
    teacher.model.get_layer("logits").bias.assign_add(np.arange(10))
    np.testing.assert_allclose(tails[2](feature) - before, [np.arange(10)], rtol=1e-5, atol=1e-5)


def test_a_skip_that_crosses_the_cut_is_told(teacher: FeatureModel) -> None:
    crossed = FeatureModel.from_model(teacher.model, [["group1_block1_add"], ["group2_block2_conv1"]])
    crossed.tail(0)
    with pytest.raises(UserError, match="a group must end where the graph can be cut: all paths pass through 'group2_block2_conv1'"):
        crossed.tail(1)


def test_a_sequential_model_is_seen_as_a_functional_one_is(digits: np.ndarray) -> None:
    pair = [layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization(), layers.ReLU(name="first")]
    rest = [layers.MaxPooling2D(), layers.Conv2D(6, 3, activation="relu", name="second"), layers.Flatten(name="flat"), layers.Dense(3)]
    sequential = keras.Sequential([layers.Input((8, 8, 1)), *pair, *rest])
    model = FeatureModel.from_model(sequential)
    assert (model.block_names(), model.image_shape, model.num_classes) == ([["first"], ["second"]], (8, 8, 1), 3)
    features = model.extractor(["output"])(digits)
    np.testing.assert_allclose(features.logits, sequential(digits), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(predictor(sequential)(digits), sequential(digits), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features.embedding, np.reshape(features.at("output")[1][0], (8, -1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.tail(0)(features.at("output")[0][0]), features.logits, rtol=1e-5, atol=1e-6)
    assert frozen(model, batchnorm="training")(digits).logits.shape == (8, 3)


# Files


def test_a_model_may_be_given_by_its_file(trained: FeatureModel, digits: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "teacher.keras"
    trained.model.save(path)
    for given in (path, str(path)):
        loaded = FeatureModel.from_model(given, tap="output")
        assert (loaded.block_names(), loaded.tap) == (trained.block_names(), "output")
        np.testing.assert_array_equal(loaded.model(digits), trained.model(digits))


@pytest.mark.parametrize("name", ["missing.keras", "broken.keras", "folder.keras", "notes.txt"])
def test_what_is_no_keras_file_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "broken.keras").write_text("no archive", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("no model", encoding="utf-8")
    (tmp_path / "folder.keras").mkdir()
    with pytest.raises(UserError, match=r"a model must be a \.keras file\. Received: ") as caught:
        FeatureModel.from_model(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_with_code_inside_is_refused(tmp_path: Path) -> None:
    """Safe mode: a Lambda layer holds the code of whoever wrote the file."""
    pixels = layers.Input((8, 8, 1))
    keras.Model(pixels, layers.Dense(3)(layers.Flatten()(layers.Lambda(lambda x: x * 2)(pixels)))).save(tmp_path / "lambda.keras")
    with pytest.raises(UserError, match=r"a model must be a \.keras file that Keras loads"):
        load_model(tmp_path / "lambda.keras")


# Frozen teachers


def test_a_frozen_teacher_in_inference_is_the_model(trained: FeatureModel, digits: np.ndarray) -> None:
    before = values(trained.model)
    features = frozen(trained, ["output"])(digits)
    np.testing.assert_allclose(features.logits, trained.model(digits, training=False), rtol=1e-5, atol=1e-6)
    assert set(features.taps) == {"pre_activation", "output"}
    assert_equal_lists(values(trained.model), before)


def test_a_frozen_teacher_in_training_uses_the_batch_and_changes_nothing(trained: FeatureModel, digits: np.ndarray) -> None:
    before = values(trained.model)
    teaches = frozen(trained, ["output"], batchnorm="training")
    inside = teaches.extractor.model
    copied = values(inside)
    features = teaches(digits)
    assert_equal_lists(values(inside), copied)
    assert_equal_lists(values(trained.model), before)
    assert {id(variable) for variable in inside.variables}.isdisjoint(id(variable) for variable in trained.model.variables)

    means, variances = tf.nn.moments(features.groups[0][0], (0, 1, 2))  # at this tap: behind a BatchNorm with gamma 1, beta 0
    np.testing.assert_allclose(means, 0, atol=1e-5)
    np.testing.assert_allclose(variances, 1, atol=1e-3)
    expected = trained.extractor(["output"])(digits, training=True)
    for one, other in zip(tf.nest.flatten(features), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert (abs(features.logits - trained.model(digits)).numpy() > 1e-3).any()


@pytest.mark.parametrize("batchnorm", ["inference", "training"])
def test_a_frozen_teacher_sends_no_gradient(trained: FeatureModel, digits: np.ndarray, batchnorm: str) -> None:
    teaches = frozen(trained, batchnorm=batchnorm)
    images = tf.constant(digits)
    with tf.GradientTape() as tape:
        tape.watch([images, *(variable.value for variable in teaches.extractor.model.trainable_variables)])
        features = teaches(images)
        total = tf.add_n([tf.reduce_sum(tensor) for tensor in tf.nest.flatten(features)])
    assert tape.gradient(total, images) is None
    assert trained.model.trainable


def test_training_statistics_do_not_switch_dropout_on(digits: np.ndarray) -> None:
    body = [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.SpatialDropout2D(0.5)]
    model = keras.Sequential([layers.Input((8, 8, 1)), *body, layers.Flatten(), layers.Dropout(0.5), layers.Dense(3)])
    teaches = frozen(FeatureModel.from_model(model), batchnorm="training")
    before, inside = values(model), values(teaches.extractor.model)
    np.testing.assert_array_equal(teaches(digits).logits, teaches(digits).logits)
    assert_equal_lists(values(model), before)
    assert_equal_lists(values(teaches.extractor.model), inside)
    assert {layer.rate for layer in model.layers if isinstance(layer, layers.Dropout)} == {0.5}


def test_training_statistics_are_used_also_of_a_model_that_is_not_trainable(trained: FeatureModel, digits: np.ndarray) -> None:
    expected = frozen(trained, batchnorm="training")(digits).logits
    trained.model.trainable = False
    np.testing.assert_allclose(frozen(trained, batchnorm="training")(digits).logits, expected, rtol=1e-5, atol=1e-6)
    assert not any(layer.trainable for layer in trained.model.layers)


def test_a_frozen_teacher_keeps_its_taps_and_hand_named_groups(trained: FeatureModel, digits: np.ndarray) -> None:
    model = FeatureModel.from_model(trained.model, [["group2_block1_add"]], tap="output")
    for batchnorm in ("inference", "training"):
        features = frozen(model, ["pre_activation"], batchnorm)(digits)
        assert [[tuple(feature.shape) for feature in group] for group in features.groups] == [[(8, 4, 4, 32)]]
        assert set(features.taps) == {"output", "pre_activation"}


# Copies


@pytest.mark.parametrize("weights", [True, False])
def test_a_copy_keeps_what_a_normalization_was_adapted_to(weights: bool, digits: np.ndarray) -> None:
    normalization = layers.Normalization()
    normalization.adapt(digits)
    pixels = layers.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, kernel_initializer="random_normal", name="conv")(normalization(pixels))
    model = keras.Model(pixels, layers.Dense(3)(layers.Flatten()(layers.ReLU()(x))))
    copy = copy_of(model, weights=weights)
    np.testing.assert_allclose(copy.layers[1](digits), normalization(digits), rtol=1e-6)
    assert np.array_equal(copy.get_layer("conv").kernel, model.get_layer("conv").kernel) == weights
    if weights:
        np.testing.assert_allclose(copy(digits), model(digits), rtol=1e-5)
        np.testing.assert_allclose(frozen(FeatureModel.from_model(model), batchnorm="training")(digits).logits, model(digits), rtol=1e-5)


def test_features_need_no_taps_to_be_made() -> None:
    features = Features("logits", (), None)
    with pytest.raises(UserError, match="Received: 'output'; a method names its taps"):
        features.at("output")


def test_a_copy_has_the_same_blocks_at_the_same_tap(tiny: Callable[..., FeatureModel], digits: np.ndarray) -> None:
    network = FeatureModel.from_model(tiny(4, 2), [["group1_block2"], ["group2_block1"]], "output")
    copy = network.with_model(copy_of(network.model))
    assert (copy.block_names(), copy.tap) == (network.block_names(), "output")
    for ours, theirs in zip(copy.extractor()(digits).groups, network.extractor()(digits).groups, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert copy.model.weights[0] is not network.model.weights[0]


def test_outputs_have_readable_names_and_a_tensor_of_two_names_comes_once(tiny: Callable[..., FeatureModel]) -> None:
    extractor = tiny(4, 2).extractor(["output"], ["group1_block2"])
    blocks = [f"group{group}/block{block}" for group in (1, 2) for block in (1, 2)]
    names = ["logits", "embedding", *(f"pre_activation/{block}" for block in blocks), *(f"output/{block}" for block in blocks)]
    assert list(extractor.outputs) == names
    assert extractor.outputs_of(["layer/group1_block2"]) == {"output/group1/block2"}
    assert extractor.names_read(["last_blocks"], ["output"]) == {"output/group1/block2", "output/group2/block2"}
    assert extractor.names_read(["group2/last_block", "logits"]) == {"logits", "pre_activation/group2/block2"}
    assert extractor.names_read([], (), ["group1_block2"]) == {"layer/group1_block2"}


def test_a_layer_that_is_not_declared_is_refused(tiny: Callable[..., FeatureModel], digits: np.ndarray) -> None:
    extractor = tiny(4, 2).extractor([], ["group1_block1", "group1_block2"])
    features = extractor.declared(extractor(digits), extractor.names_read([], (), ["group1_block1"]), "mine")
    np.testing.assert_array_equal(features.layers["group1_block1"], extractor(digits).layers["group1_block1"])
    with pytest.raises(UserError, match="mine must declare .* Received: teacher.layers\\['group1_block2'\\]"):
        features.layers["group1_block2"]
