"""Groups, blocks and taps of pre-activation, post-activation and plain networks; what cannot be read is told."""

import logging
from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers

from dfa_tf.errors import UserError
from dfa_tf.networks.blocks import Block
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.graph import Graph


def maker(model: keras.Model, block: Block, tap: str) -> str:
    """The name of the layer whose output a tap is."""
    return Graph(model).producer(block.taps[tap].tensor).name


def tap_names(model: FeatureModel, tap: str) -> list[list[str]]:
    return [[maker(model.model, block, tap) for block in group.blocks] for group in model.groups]


def norm_names(model: FeatureModel, tap: str) -> list[list[str | None]]:
    return [[getattr(block.taps[tap].norm, "name", None) for block in group.blocks] for group in model.groups]


def plain(*stack: layers.Layer, head: layers.Layer | None = None) -> keras.Sequential:
    """A plain network without sums."""
    return keras.Sequential([layers.Input((8, 8, 1)), *stack, layers.GlobalAveragePooling2D(), head or layers.Dense(3, name="logits")])


# Groups, blocks, taps


def test_a_wide_resnet_has_three_groups_of_its_blocks(build_model: Callable[..., keras.Model]) -> None:
    model = FeatureModel.from_model(build_model("wrn_22_2"))
    assert model.block_names() == [[f"group{group}_block{block}_add" for block in (1, 2, 3)] for group in (1, 2, 3)]
    assert [group.shape for group in model.groups] == [(8, 8, 32), (4, 4, 64), (2, 2, 128)]
    assert (model.image_shape, model.num_classes) == ((8, 8, 1), 10)


def test_pre_activation_blocks_are_read_behind_the_batchnorm_that_follows(teacher: FeatureModel) -> None:
    following = [
        ["group1_block2_1_bn", "group2_block1_1_bn"],
        ["group2_block2_1_bn", "group3_block1_1_bn"],
        ["group3_block2_1_bn", "head_bn"],
    ]
    assert tap_names(teacher, "pre_activation") == following
    assert norm_names(teacher, "pre_activation") == following
    assert tap_names(teacher, "output") == teacher.block_names()
    assert norm_names(teacher, "output") == [[None, None]] * 3
    assert teacher.groups[2].blocks[1].taps["pre_activation"].norm is teacher.model.get_layer("head_bn")


def test_post_activation_blocks_are_read_at_the_sum_and_hand_on_its_relu(post_activation: keras.Model) -> None:
    model = FeatureModel.from_model(post_activation)
    assert model.block_names() == [["wide1_add", "wide2_add"], ["deep1_add"]]
    assert tap_names(model, "pre_activation") == model.block_names()
    assert tap_names(model, "output") == [["wide1_relu", "wide2_relu"], ["deep1_relu"]]
    assert norm_names(model, "pre_activation") == [["wide1_2_bn", "wide2_2_bn"], ["deep1_2_bn"]], "deep1_shortcut_bn is on the shortcut"


def test_without_sums_the_activations_are_candidates() -> None:
    model = plain(
        layers.Conv2D(4, 3, padding="same", name="conv1"),
        layers.BatchNormalization(name="bn1"),
        layers.ReLU(name="relu1"),
        layers.Conv2D(4, 3, padding="same", name="conv2"),
        layers.Activation("relu", name="relu2"),
        layers.MaxPooling2D(name="pool"),
        layers.Conv2D(6, 3, padding="same", activation="relu", name="fused"),
        layers.Activation("linear", name="no_activation"),
    )
    read = FeatureModel.from_model(model)
    assert read.block_names() == [["relu1", "relu2"], ["fused"]]
    assert tap_names(read, "pre_activation") == [["bn1", "conv2"], ["fused"]]
    assert tap_names(read, "output") == [["relu1", "relu2"], ["fused"]]
    assert norm_names(read, "pre_activation") == [["bn1", None], [None]]
    assert [group.shape for group in read.groups] == [(8, 8, 4), (4, 4, 6)]


def test_operations_count_as_layers_do() -> None:
    """Sums and ReLUs that are written as functions are nodes of the graph too."""
    pixels = layers.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, padding="same")(pixels)
    for _ in range(2):
        x = x + layers.Conv2D(4, 3, padding="same")(keras.ops.relu(layers.BatchNormalization()(x)))
    x = keras.ops.relu(layers.BatchNormalization(name="last_bn")(x))
    model = FeatureModel.from_model(keras.Model(pixels, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))
    assert [len(group.blocks) for group in model.groups] == [2]
    assert norm_names(model, "pre_activation")[0][1] == "last_bn"


def test_cuts_are_the_tensors_that_all_paths_pass(post_activation: keras.Model) -> None:
    graph = Graph(post_activation)
    names = [graph.producer(tensor).name for tensor in graph.cuts()]
    blocks = [name for block in ("wide1", "wide2", "deep1") for name in (f"{block}_add", f"{block}_relu")]
    assert names[-11:] == ["stem_conv", "stem_bn", "stem_relu", *blocks, "pool", "logits"]


def test_a_tensor_that_is_read_twice_by_one_layer_is_still_a_cut() -> None:
    pixels = layers.Input((8, 8, 1))
    doubled = layers.Conv2D(4, 1, name="conv")(pixels)
    x = layers.Add(name="add")([doubled, doubled])
    graph = Graph(keras.Model(pixels, layers.Dense(3, name="logits")(layers.Flatten(name="flatten")(x))))
    assert [graph.producer(tensor).name for tensor in graph.cuts()][1:] == ["conv", "add", "flatten", "logits"]


def test_candidates_of_another_shape_are_left_out_with_a_record(caplog: pytest.LogCaptureFixture) -> None:
    pixels = x = layers.Input((8, 8, 1))
    for name, channels in (("narrow", 4), ("wide1", 6), ("wide2", 6)):
        x = layers.Conv2D(channels, 3, padding="same")(x)
        x = layers.Add(name=name)([x, layers.Conv2D(channels, 3, padding="same")(x)])
    with caplog.at_level(logging.WARNING, "dfa_tf.networks.groups"):
        model = FeatureModel.from_model(keras.Model(pixels, layers.Dense(3)(layers.Flatten()(x))))
    assert model.block_names() == [["wide1", "wide2"]]
    assert [record.getMessage() for record in caplog.records] == [
        "left out of the group of 8x8, whose last block has 6 channels: narrow (4)"
    ]
    assert model.left_out == (("narrow", "its 4 channels are not the 6 of its group's last block"),)


def test_of_a_dense_block_the_whole_is_the_candidate_and_the_record_is_short(caplog: pytest.LogCaptureFixture) -> None:
    """Six layers of growth 2 behind 4 channels: 6, 8, 10, 12, 14, and 16 at last."""
    pixels = x = layers.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, padding="same")(x)
    for i in range(1, 7):
        y = layers.Conv2D(2, 3, padding="same")(layers.ReLU()(layers.BatchNormalization(name=f"bn{i}")(x)))
        x = layers.Concatenate(name=f"dense{i}")([x, y])
    x = layers.ReLU()(layers.BatchNormalization(name="last_bn")(x))
    with caplog.at_level(logging.WARNING, "dfa_tf.networks.groups"):
        model = FeatureModel.from_model(keras.Model(pixels, layers.Dense(3)(layers.Flatten()(x))))
    assert model.block_names() == [["dense6"]]
    assert norm_names(model, "pre_activation") == [["last_bn"]]
    assert [left.name for left in model.left_out] == ["dense1", "dense2", "dense3", "dense4", "dense5"]
    assert [record.getMessage() for record in caplog.records] == [
        "left out of the group of 8x8, whose last block has 16 channels: dense1 (6), dense2 (8), ..., dense5 (14)"
    ]


def test_the_stem_and_the_head_of_a_residual_network_are_left_out(post_activation: keras.Model) -> None:
    x = layers.Conv2D(9, 1, activation="relu", name="head")(post_activation.get_layer("deep1_relu").output)
    stem = layers.Input((16, 16, 1))
    y = layers.Conv2D(2, 3, padding="same", activation="relu", name="first")(stem)
    y = layers.MaxPooling2D()(layers.ReLU(name="second")(layers.Conv2D(3, 3, padding="same")(y)))
    deep = keras.Model(post_activation.inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    model = FeatureModel.from_model(keras.Model(stem, deep(layers.Conv2D(1, 1)(y))))
    assert model.block_names() == [["wide1_add", "wide2_add"], ["deep1_add"]]
    reasons = {left.name: left.reason for left in model.left_out}
    assert set(reasons) == {"first", "second", "head"}
    assert reasons["second"] == "it belongs to the stem, before the first sum"
    assert reasons["head"] == "it comes after the last block"


def test_what_narrows_behind_the_stem_is_a_block() -> None:
    """As the first block of EfficientNetV2-B0, which has no sum: the stem's 6 channels become 4."""
    pixels = x = layers.Input((8, 8, 1))
    for name, channels in (("stem", 6), ("block", 4)):
        x = layers.ReLU(name=name)(layers.Conv2D(channels, 3, padding="same")(x))
    x = layers.Conv2D(4, 3, strides=2, padding="same")(x)
    x = layers.Add(name="sum")([x, layers.Conv2D(4, 3, padding="same")(x)])
    model = FeatureModel.from_model(keras.Model(pixels, layers.Dense(3)(layers.Flatten()(x))))
    assert model.block_names() == [["block"], ["sum"]]
    assert [left.name for left in model.left_out] == ["stem"]


def test_behind_the_stem_a_run_without_sums_has_its_activations() -> None:
    pixels = x = layers.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, padding="same")(x)
    x = layers.Add(name="sum")([x, layers.Conv2D(4, 3, padding="same")(x)])
    for name in ("plain1", "plain2"):
        x = layers.ReLU(name=name)(layers.Conv2D(6, 3, strides=2 if name == "plain1" else 1, padding="same")(x))
    model = FeatureModel.from_model(keras.Model(pixels, layers.Dense(3)(layers.Flatten()(x))))
    assert model.block_names() == [["sum"], ["plain1", "plain2"]]


def test_padding_of_its_own_does_not_part_a_group() -> None:
    model = FeatureModel.from_model(
        plain(
            layers.Conv2D(4, 3, padding="same", activation="relu", name="conv1"),
            layers.ZeroPadding2D(1),
            layers.Conv2D(4, 3, activation="relu", name="conv2"),
        )
    )
    assert model.block_names() == [["conv1", "conv2"]]


def test_a_depthwise_and_a_pointwise_convolution_are_one_block() -> None:
    stack: list[layers.Layer] = [layers.Conv2D(4, 3, padding="same"), layers.ReLU(name="stem")]
    for i in (1, 2):
        stack += [layers.DepthwiseConv2D(3, padding="same"), layers.BatchNormalization(), layers.ReLU(name=f"depthwise{i}")]
        stack += [layers.Conv2D(4, 1), layers.BatchNormalization(), layers.ReLU(name=f"pointwise{i}")]
    assert FeatureModel.from_model(plain(*stack)).block_names() == [["stem", "pointwise1", "pointwise2"]]


def test_grey_images_put_side_by_side_are_no_block() -> None:
    """The three channels that a network for colours wants."""
    pixels = layers.Input((8, 8, 1))
    x = layers.Concatenate(name="grey")([layers.Rescaling(scale)(pixels) for scale in (1.0, 2.0, 3.0)])
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    model = FeatureModel.from_model(keras.Model(pixels, layers.Dense(3)(layers.Flatten()(x))))
    assert (model.block_names(), model.left_out) == ([["conv"]], ())


def test_a_group_of_one_pixel_is_left_out() -> None:
    stack = [layers.Conv2D(4, 3, strides=2, activation="relu", name=f"conv{side}") for side in (3, 1)]
    model = FeatureModel.from_model(plain(*stack))
    assert model.block_names() == [["conv3"]]
    assert model.left_out == (("conv1", "it has one pixel, and so no spatial dimensions"),)


def test_a_batchnorm_is_found_behind_dropout_and_not_on_the_shortcut() -> None:
    pixels = layers.Input((8, 8, 1))
    shortcut = layers.BatchNormalization(name="shortcut_bn")(layers.Conv2D(4, 1)(pixels))
    main = layers.Dropout(0.2)(layers.BatchNormalization(name="main_bn")(layers.Conv2D(4, 3, padding="same")(pixels)))
    x = layers.Add(name="block1")([main, shortcut])
    x = layers.Add(name="block2")([layers.Conv2D(4, 3, padding="same")(layers.Conv2D(4, 1)(x)), layers.BatchNormalization()(x)])
    model = FeatureModel.from_model(keras.Model(pixels, layers.Dense(3)(layers.Flatten()(layers.ReLU()(x)))))
    assert norm_names(model, "pre_activation") == [["main_bn", None]]


# Groups named by hand


def test_groups_may_be_named_by_hand(build_model: Callable[..., keras.Model]) -> None:
    groups = [["group1_block1_conv1", "group1_block1_add"], ["group3_block2_add"]]
    model = FeatureModel.from_model(build_model("wrn_16_1"), groups)
    assert model.block_names() == groups
    assert [group.shape for group in model.groups] == [(8, 8, 16), (2, 2, 64)]
    assert tap_names(model, "pre_activation") == [["group1_block1_2_bn", "group1_block2_1_bn"], ["head_bn"]]


def test_groups_found_and_named_by_hand_are_the_same(teacher: FeatureModel, post_activation: keras.Model) -> None:
    for model in (teacher, FeatureModel.from_model(post_activation)):
        named = FeatureModel.from_model(model.model, model.block_names())
        assert named.groups == model.groups


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ([["group1_block1_ad"]], r"groups must name layers of the model. Received: 'group1_block1_ad'. Did you mean 'group1_block1_add'"),
        ([["group1_block1_add"], []], r"every group needs a layer. Received: groups=\[\['group1_block1_add'\], \[\]\]"),
        ([], r"every group needs a layer. Received: groups=\[\]"),
        (
            [["group1_block1_add", "group2_block1_add"]],
            r"one known shape \[H, W, C\]. Received: .*'group2_block1_add'.* with .*4, 4, 32.*8, 8, 16",
        ),
        ([["head_pool"]], r"one known shape \[H, W, C\]. Received: \['head_pool'\]"),
        ([["group2_block1_add"], ["group1_block1_add"]], r"once, from shallow to deep. Received: groups=\[\['group2_block1_add'\], "),
        ([["group1_block1_add", "group1_block1_add"]], r"groups must name each layer once"),
    ],
)
def test_a_wrong_group_is_told(student: FeatureModel, groups: list[list[str]], told: str) -> None:
    with pytest.raises(UserError, match=told):
        FeatureModel.from_model(student.model, groups)


def branches() -> keras.Model:
    """Two branches of unlike depth over one image: one, and two, three, four."""
    pixels = layers.Input((8, 8, 1))
    one = layers.Conv2D(4, 1, name="one")(pixels)
    x = layers.Conv2D(4, 1, name="two")(pixels)
    for name in ("three", "four"):
        x = layers.Conv2D(4, 1, name=name)(x)
    ends = [layers.Dense(3, name=f"dense{i}")(layers.Flatten()(end)) for i, end in enumerate((one, x))]
    return keras.Model(pixels, layers.Average(name="mean")(ends))


def test_blocks_of_parallel_branches_have_no_order() -> None:
    for groups in ([["three", "one"], ["four"]], [["two", "three"], ["four", "one"]], [["one"], ["two"]]):
        assert FeatureModel.from_model(branches(), groups).block_names() == groups
    for groups in ([["one", "three"], ["two"]], [["four", "one", "two"]]):
        with pytest.raises(UserError, match="once, from shallow to deep"):
            FeatureModel.from_model(branches(), groups)


def test_an_embedding_is_what_all_paths_pass_through(teacher: FeatureModel) -> None:
    graph = Graph(teacher.model)
    assert graph.producer(graph.embedding).name == "head_pool"
    assert Graph(branches()).embedding is None


def test_a_layer_that_is_called_more_than_once_cannot_be_a_block() -> None:
    relu = layers.ReLU(name="shared")
    with pytest.raises(UserError, match=r"each block needs a layer of its own\. Received: 'shared', which the model calls 2 times"):
        FeatureModel.from_model(plain(layers.Conv2D(4, 3), relu, layers.Conv2D(4, 3, name="conv"), relu))


def test_a_network_without_groups_is_told_how_to_name_them() -> None:
    with pytest.raises(UserError, match=r"no layer group was found in the graph: name them by groups=\[\[layer, ...\], ...\]"):
        FeatureModel.from_model(plain(layers.Conv2D(4, 3)))


# What cannot be read


class Subclassed(keras.Model):
    """A model without a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.head = layers.Dense(3)

    def call(self, images: np.ndarray) -> object:
        return self.head(keras.ops.mean(images, (1, 2)))


def with_outputs(*outputs: int, image_shape: tuple[int, ...] = (8, 8, 1)) -> keras.Model:
    pixels = layers.Input(image_shape)
    return keras.Model(pixels, [layers.Dense(units)(layers.Flatten()(pixels)) for units in outputs])


def closed_inside() -> keras.Model:
    pixels = layers.Input((8, 8, 1))
    subclassed = Subclassed()
    subclassed.name = "mine"
    return keras.Model(pixels, subclassed(pixels))


def two_inputs() -> keras.Model:
    pixels, other = layers.Input((8, 8, 1)), layers.Input((2,))
    return keras.Model([pixels, other], layers.Dense(3)(layers.Concatenate()([layers.Flatten()(pixels), other])), name="two")


def any_size() -> keras.Model:
    pixels = layers.Input((None, None, 1))
    return keras.Model(pixels, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(pixels))))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (Subclassed, r"Received: Subclassed .* Rebuild it with keras.Model\(inputs, outputs\)"),
        (closed_inside, "no layer group was found .* the subclassed model 'mine' inside, which cannot be opened"),
        (
            lambda: keras.Sequential([layers.Conv2D(4, 3)]),
            r"is built. Received: Sequential .* Begin it with keras.Input\(\(H, W, C\)\)",
        ),
        (lambda: with_outputs(3, 3), r"with output \(None, 3\), \(None, 3\). Make a model with one of each: keras.Model\(image, logits\)"),
        (two_inputs, r"'two', with input \(None, 8, 8, 1\), \(None, 2\). Make a model with one of each"),
        (lambda: with_outputs(3, image_shape=(8,)), r"one batch of images \[B, H, W, C\] .* with input \(None, 8\)"),
        (any_size, r"one size of images. Received: .* \(None, None, None, 1\). Call it in a model of that size: pixels = keras.Input"),
    ],
    ids=["subclassed", "subclassed inside", "not built", "two outputs", "two inputs", "no images", "no size"],
)
def test_a_model_that_cannot_be_read_is_told_with_what_to_do(make: Callable[[], keras.Model], told: str) -> None:
    with pytest.raises(UserError, match=told):
        FeatureModel.from_model(make())
