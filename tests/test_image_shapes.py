"""Images that are neither square nor coloured go all the way: groups, pairing, connectors, search and distillation."""

import keras
import numpy as np
import pytest
from keras import layers

from dfa_tf import plugins
from dfa_tf.aggregation.search import search
from dfa_tf.config import Config
from dfa_tf.distillation.distil import distil
from dfa_tf.images.splits import Images, Source, Splits, split
from dfa_tf.networks.connectors import connector
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.pairing import keep_paired_groups


@pytest.fixture(scope="module")
def wide_config() -> Config:
    """Batches of four images: one step of the search, and one or two of the distillation."""
    schedule = ["data.batch_size=4", "train.epochs=1", "search.epochs=1", "search.mode=joint"]
    return Config().override([*schedule, "data.crop_padding=1", "data.flip=true", 'distil.methods={"dfa": 1.0}'])


@pytest.fixture(scope="module")
def wide(wide_config: Config) -> Splits:
    """Four training, four search and four test images of 8x16x1, two classes."""
    random = np.random.default_rng(0)
    train, test = (Images(random.integers(0, 256, (count, 8, 16, 1), np.uint8), np.tile([0, 1], count // 2)) for count in (8, 4))
    return split(Source(train, test, ["a", "b"], [127.5], [63.75], "noise, 8x16 grey pixels"), wide_config.data, seed=0)


def network(width: int, blocks: int, *, first: int = 1) -> FeatureModel:
    """Blocks of a convolution, BatchNorm and ReLU at 8x16 (or smaller, with a stride `first`) and at half of that."""
    pixels = layers.Input((8, 16, 1))
    x = layers.Rescaling(1 / 255)(pixels)
    for group in (1, 2):
        for block in range(blocks):
            stride = 1 if block else (first if group == 1 else 2)
            x = layers.Conv2D(width * group, 3, strides=stride, padding="same", name=f"conv{group}{block}")(x)
            x = layers.ReLU(name=f"relu{group}{block}")(layers.BatchNormalization()(x))
    return FeatureModel.from_model(keras.Model(pixels, layers.Dense(2)(layers.Flatten()(x)), name=f"width{width}"))


def test_groups_are_of_height_and_width() -> None:
    assert [group.shape for group in network(4, 2).groups] == [(8, 16, 4), (4, 8, 8)]


def test_images_that_only_transposed_would_fit_do_not_pair() -> None:
    """Where the numbers of groups differ they pair by resolution: 4x8 with 4x8."""
    student, teacher = network(4, 1), network(6, 1)
    deeper = FeatureModel.from_model(teacher.model, [["conv10"], ["relu10"], ["relu20"]])
    aligned = keep_paired_groups(student, deeper)
    assert [[group.shape for group in model.groups] for model in aligned] == [[(8, 16, 4), (4, 8, 8)], [(8, 16, 6), (4, 8, 12)]]


def test_a_connector_keeps_height_and_width_apart() -> None:
    assert connector((4, 8, 3), (8, 16, 5), name="up")(np.ones((2, 4, 8, 3), np.float32)).shape == (2, 8, 16, 5)


def test_one_step_of_search_and_one_of_distillation(wide: Splits, wide_config: Config) -> None:
    """The student's groups are half as large as the teacher's: connectors resize, and the last block has 2x4 pixels."""
    teacher = network(6, 2)
    found = search(teacher, network(4, 1, first=2), wide, wide_config)
    assert found.steps == 1
    assert [len(group.alpha) for group in found.weights.groups] == [2, 2]
    student = network(4, 1, first=2)
    before = student.model.get_weights()
    trained = distil(teacher, student, wide, wide_config, aggregation=found.weights)
    assert np.isfinite(trained.history[-1]["total_loss"])
    assert any((one != other).any() for one, other in zip(before, trained.student.get_weights(), strict=True))


@pytest.mark.parametrize("name", ["wrn_10_1", "vgg8", "keras_applications:MobileNetV3Small"])
def test_networks_take_them(name: str) -> None:
    model = FeatureModel.from_model(plugins.build("models", name, image_shape=(32, 64, 1), num_classes=2))
    assert model.image_shape == (32, 64, 1)
    assert all(group.width == 2 * group.height for group in model.groups)
