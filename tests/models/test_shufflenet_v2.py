"""ShuffleNet V2: the published sizes of both variants, split and shuffle by hand, and their layer groups."""

from pathlib import Path

import keras
import numpy as np
import pytest

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Splits
from dfa_tf.networks.copying import copy_of
from dfa_tf.networks.features import FeatureModel

TABLES, DFA = "shufflenet_v2", "shufflenet_v2_dfa_0_5"
GROUPS = {TABLES: [(16, 16, 116), (8, 8, 232), (4, 4, 464)], DFA: [(16, 16, 48), (8, 8, 96), (4, 4, 192)]}


@pytest.fixture(scope="module")
def models() -> dict[str, keras.Model]:
    """One of each variant, for ten classes of 32x32x3."""
    keras.utils.set_random_seed(0)
    return {name: plugins.build("models", name, image_shape=(32, 32, 3), num_classes=10) for name in (TABLES, DFA)}


@pytest.fixture(scope="module", params=[TABLES, DFA])
def model(request: pytest.FixtureRequest, models: dict[str, keras.Model]) -> keras.Model:
    return models[request.param]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)


def of_kind(model: keras.Model, kind: type) -> list[keras.layers.Layer]:
    return [layer for layer in model.layers if isinstance(layer, kind)]


def between(model: keras.Model, first: str, last: str) -> keras.Model:
    """The part of a model after one layer, up to and including another."""
    return keras.Model(model.get_layer(first).output, model.get_layer(last).output)


@pytest.mark.parametrize(
    ("name", "num_classes", "count"),
    [
        ("shufflenet_v2", 100, 1_355_528),
        ("shufflenet_v2_dfa_2_0", 10, 5_366_566),
        ("shufflenet_v2_dfa_1_0", 10, 1_268_646),
        ("shufflenet_v2_dfa_0_5", 10, 356_018),
    ],
)
def test_parameters_are_those_published(name: str, num_classes: int, count: int) -> None:
    model = plugins.build("models", name, image_shape=(32, 32, 3), num_classes=num_classes)
    assert model.name == name
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == count


def test_the_names_are_those_of_the_literature_and_of_the_author() -> None:
    names = [name for name in plugins.names("models") if name.startswith("shufflenet_v2")]
    assert names == ["shufflenet_v2", "shufflenet_v2_dfa_0_5", "shufflenet_v2_dfa_1_0", "shufflenet_v2_dfa_2_0"]


def test_the_units_outputs_are_found_as_blocks_and_the_resolutions_as_groups(model: keras.Model) -> None:
    found = FeatureModel.from_model(model)
    assert [group.shape for group in found.groups] == GROUPS[model.name]
    blocks = [(1, 4), (2, 8), (3, 4)]
    assert found.block_names() == [[f"group{group}_block{block}_concat" for block in range(1, last + 1)] for group, last in blocks]


def test_the_tail_of_each_group_gives_the_logits(model: keras.Model, images: np.ndarray) -> None:
    found = FeatureModel.from_model(model)
    features = found.extractor(["output"])(images)
    for i, group in enumerate(features.at("output")):
        np.testing.assert_allclose(found.tail(i)(group[-1]), features.logits, rtol=1e-5, atol=1e-5)


def test_the_author_s_units_are_tapped_before_the_relu_that_opens_the_next(models: dict[str, keras.Model], images: np.ndarray) -> None:
    """The ReLU sees the tapped tensor shuffled: channel j of half k, of 24 channels, moves to position 2j + k."""
    features = FeatureModel.from_model(models[DFA]).extractor()(images)
    opened = keras.Model(models[DFA].input, models[DFA].get_layer("group1_block2_open").output)(images)
    tapped = features.groups[0][0]
    assert np.min(tapped[..., :24]) < 0
    assert np.min(tapped[..., 24:]) < 0
    np.testing.assert_array_equal(opened[..., 0::2], np.maximum(tapped[..., :24], 0))
    np.testing.assert_array_equal(opened[..., 1::2], np.maximum(tapped[..., 24:], 0))


def test_units_of_the_tables_hand_on_what_their_relus_have_cut_off(models: dict[str, keras.Model], images: np.ndarray) -> None:
    for group in FeatureModel.from_model(models[TABLES]).extractor()(images).groups:
        for block in group:
            assert np.min(block) == 0


@pytest.mark.parametrize("group", [1, 2, 3])
def test_the_shuffle_deals_the_channels_of_two_halves_out_in_turn(model: keras.Model, group: int) -> None:
    """Of 116 channels 0 to 57 and 58 to 115 are halves: the result is 0, 58, 1, 59, ..., 57, 115."""
    shuffle = between(model, f"group{group}_block2_concat", f"group{group}_block2_shuffle")
    height, width, channels = GROUPS[model.name][group - 1]
    place = shuffle(np.broadcast_to(np.arange(channels, dtype=np.float32), (1, height, width, channels)))
    half = channels // 2
    assert [int(channel) for channel in place[0, 0, 0, :4]] == [0, half, 1, half + 1]
    assert [int(channel) for channel in place[0, -1, -1, -2:]] == [half - 1, channels - 1]
    assert sorted(np.asarray(place[0, 1, 2])) == list(range(channels))


def test_pixels_stay_where_they_are_in_the_shuffle(model: keras.Model) -> None:
    channels = GROUPS[model.name][2][2]
    pixel = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    shuffle = between(model, "group3_block2_concat", "group3_block2_shuffle")
    np.testing.assert_array_equal(shuffle(np.repeat(pixel, channels, axis=-1)), np.repeat(pixel, channels, axis=-1))


def test_a_unit_hands_the_first_half_of_its_channels_on_and_convolves_the_second(model: keras.Model) -> None:
    unit = keras.Model(
        model.get_layer("group1_block1_shuffle").output,
        [model.get_layer("group1_block2_concat").output, model.get_layer("group1_block2_right1_conv").input],
    )
    channels = GROUPS[model.name][0][2]
    seen = np.random.default_rng(0).normal(size=(2, 16, 16, channels)).astype(np.float32)
    result, convolved = unit(seen)
    entered = np.maximum(seen, 0) if model.name == DFA else seen
    np.testing.assert_array_equal(result[..., : channels // 2], entered[..., : channels // 2])
    np.testing.assert_array_equal(convolved, entered[..., channels // 2 :])


def test_the_stem_keeps_the_resolution_and_first_units_halve_it(model: keras.Model) -> None:
    assert model.get_layer("stem_bn").output.shape == (None, 32, 32, 24)
    assert model.get_layer("stem_conv").kernel.shape[:2] == ((3, 3) if model.name == DFA else (1, 1))
    strided = {layer.name for layer in model.layers if getattr(layer, "strides", None) == (2, 2)}
    assert strided == {f"group{group}_block1_{branch}_conv" for group in (1, 2, 3) for branch in ("left1", "right2")}


def test_strided_convolutions_are_padded_alike_on_all_sides(model: keras.Model) -> None:
    """An impulse in the kernel's middle then reads pixels 0, 2, 4, ...; padding="same" would read 1, 3, 5, ..."""
    for branch in ("left1", "right2"):
        convolution = model.get_layer(f"group2_block1_{branch}_conv")
        impulse = np.zeros(convolution.kernel.shape, np.float32)
        impulse[1, 1] = 1
        convolution.set_weights([impulse, *convolution.get_weights()[1:]])
        padded = model.get_layer(f"group2_block1_{branch}_conv_pad")
        seen = np.random.default_rng(0).uniform(size=(2, *padded.input.shape[1:])).astype(np.float32)
        np.testing.assert_array_equal(keras.Model(padded.input, convolution.output)(seen), seen[:, ::2, ::2])


def test_the_middle_of_a_down_sampling_unit_is_the_author_s_input_or_the_tables_output(models: dict[str, keras.Model]) -> None:
    assert models[DFA].get_layer("group1_block1_right1_conv").kernel.shape == (1, 1, 24, 24)
    assert models[TABLES].get_layer("group1_block1_right1_conv").kernel.shape == (1, 1, 24, 58)


def test_the_author_s_convolutions_have_a_bias_and_those_of_the_tables_none(models: dict[str, keras.Model]) -> None:
    for name, bias in ((TABLES, False), (DFA, True)):
        convolutions = of_kind(models[name], (keras.layers.Conv2D, keras.layers.DepthwiseConv2D))  # type: ignore[arg-type]
        assert len(convolutions) == 2 + 3 * 5 + 13 * 3  # stem and head, three units that sample down, thirteen that do not
        assert {layer.use_bias for layer in convolutions} == {bias}


def test_relus_stand_where_the_variant_has_them(models: dict[str, keras.Model]) -> None:
    """Variant of the literature: stem, head, two in the middle and at the end of branches of 13 units, three of the 3 down-sampling
    units. Variant of the author: at the start and in the middle of each unit, before and after the head."""
    assert len(of_kind(models[TABLES], keras.layers.ReLU)) == 2 + 3 * 3 + 13 * 2
    assert len(of_kind(models[DFA], keras.layers.ReLU)) == 2 + 16 * 2
    assert isinstance(models[DFA].get_layer("head_relu"), keras.layers.ReLU)
    assert models[DFA].get_layer("head_pool").input is models[DFA].get_layer("head_relu").output


def test_a_model_survives_its_file_in_safe_mode_and_a_copy(model: keras.Model, images: np.ndarray, tmp_path: Path) -> None:
    """Both serialise and restore the operation that splits channels, which is not a layer."""
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(images), model(images))
    np.testing.assert_array_equal(copy_of(model)(images), model(images))


def test_a_width_that_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match=r"the width of shufflenet_v2 must be one of 0.5, 1.0, 2.0. Received: 1.5"):
        plugins.builder("models", DFA)(image_shape=(32, 32, 3), num_classes=10, width=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [TABLES, DFA])
def test_it_learns_digits(name: str, splits: Splits) -> None:
    """Chance is ln 10 = 2.3."""
    data = splits.train + splits.search
    pixels = np.asarray(data.images.pixels[data.indices], np.float32).repeat(4, axis=1).repeat(4, axis=2).repeat(3, axis=3)
    model = plugins.build("models", name, image_shape=(32, 32, 3), num_classes=10)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = model.fit(pixels, data.labels, batch_size=len(data), epochs=30, verbose=0).history["loss"]
    assert losses[0] > 1.5
    assert losses[-1] < 0.5
