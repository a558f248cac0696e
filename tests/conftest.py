"""Shared by all tests: one TensorFlow with two logical CPU devices, determinism, and small networks and data."""

from dfa_tf import startup

startup.load_tensorflow()

import keras  # noqa: E402
import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402

from dfa_tf import plugins  # noqa: E402
from dfa_tf.config import Config  # noqa: E402
from dfa_tf.features import FeatureModel  # noqa: E402
from dfa_tf.splits import Splits, split  # noqa: E402

tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
tf.config.experimental.enable_op_determinism()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def config() -> Config:
    """A configuration of the least size: 60 training images, batches of 10."""
    return Config().override(
        ["data.batch_size=10", "data.train_limit_per_class=6", "teacher.name=wrn_16_1", "student.name=wrn_10_1", "train.epochs=1"]
    )


@pytest.fixture(scope="session")
def splits(config: Config) -> Splits:
    """The bundled digits: 30 training and 30 search images, 8x8x1, ten classes."""
    return split(plugins.build("data", "bundled"), config.data, seed=0)


@pytest.fixture
def build_model(splits: Splits):
    """Builds a seeded network for the bundled data by its public name."""

    def build(name: str, seed: int = 0) -> keras.Model:
        keras.utils.set_random_seed(seed)
        return plugins.build("models", name, image_shape=splits.image_shape, num_classes=splits.num_classes, **splits.normalisation)

    return build


@pytest.fixture
def teacher(build_model) -> FeatureModel:
    """An untrained wrn_16_1: three groups of two blocks."""
    return FeatureModel.from_model(build_model("wrn_16_1", seed=1))


@pytest.fixture
def student(build_model) -> FeatureModel:
    """An untrained wrn_10_1: three groups of one block."""
    return FeatureModel.from_model(build_model("wrn_10_1"))
