"""Shared by all tests: one TensorFlow with two logical CPU devices, determinism, and small networks and data."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable

from dfa_tf.process import startup

startup.load_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402

from dfa_tf import plugins  # noqa: E402
from dfa_tf.config import Config  # noqa: E402
from dfa_tf.images.splits import Splits, split  # noqa: E402
from dfa_tf.networks.features import FeatureModel  # noqa: E402
from dfa_tf.training import strategies  # noqa: E402

tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
tf.config.experimental.enable_op_determinism()
if "PYTEST_XDIST_WORKER" in os.environ:
    tf.config.threading.set_intra_op_parallelism_threads(1)  # as many processes as cores: threads would wait for one another
# Tracing makes many objects, so that Python's garbage collector scans TensorFlow and Keras again and again: a fifth of the time.
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 20, 100)


THOROUGH = (
    *("aggregation/test_bridge.py", "aggregation/test_search.py"),
    *(f"bad_input/test_bad_{name}.py" for name in ("alphas", "data", "in_processes")),
    "config/test_experiments.py::test_a_shipped_experiment_is_built",
    *("data/test_cinic10.py", "data/test_image_folder.py"),
    "distillation/",
    *("export/test_formats.py", "export/test_parity.py"),
    *(f"losses/test_{name}.py" for name in ("activation_boundary", "crd", "factor_transfer", "fitnet", "fsp", "jacobian")),
    *(f"losses/test_{name}.py" for name in ("review_kd", "semckd", "simkd")),
    "methods/test_base.py",
    "models/",
    *(f"networks/test_{name}.py" for name in ("batchnorm", "cost", "ensemble", "features", "flatten", "pairing", "precision")),
    *(f"pipeline/test_{name}.py" for name in ("compare", "compress", "tune", "tuners")),
    "process/test_startup.py",
    "reporting/test_report.py",
    *(f"test_{name}.py" for name in ("binaries", "browser", "contracts", "describe", "examples", "execution", "export_networks")),
    *(
        f"test_{name}.py"
        for name in ("golden", "gpu_benchmark", "image_shapes", "sample_weights", "search_order", "training_options", "warnings")
    ),
    *(f"test_docs.py::test_{name}" for name in ("the_site", "the_reference", "equations")),
    *(f"training/test_{name}.py" for name in ("divergence", "evaluation", "multi_worker", "replicas", "strategies")),
    *(f"training/test_{name}.py" for name in ("teacher_cache", "tensorboard")),
)
"""The beginnings of the names of tests that build large networks, train, or start processes. `dev.py test --quick` leaves them out."""


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that `THOROUGH` names."""
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(THOROUGH):
            item.add_marker("thorough")


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors, except one: NumPy 2's about how Keras reads a TensorFlow variable when it saves a model."""
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def two_replicas() -> tf.distribute.Strategy:
    """The MirroredStrategy over both logical CPU devices."""
    return strategies.strategy("mirrored")


@pytest.fixture(scope="session")
def config() -> Config:
    """The smallest configuration: 60 training images, batches of 10."""
    return Config().override(
        ["data.batch_size=10", "data.train_limit_per_class=6", "teacher.name=wrn_16_1", "student.name=wrn_10_1", "train.epochs=1"]
    )


@pytest.fixture
def quick(config: Config) -> Config:
    """A schedule of four epochs of three steps, with one evaluation."""
    return config.override(["data.batch_size=20", "train.epochs=4", "train.evaluate_every=4", "train.learning_rate=0.05"])


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


@pytest.fixture(scope="session")
def tiny():
    """Builds the cheapest network for the bundled data: groups of 8x8 and 4x4, blocks Conv-BatchNorm-activation, drawn statistics."""

    def build(width: int = 4, blocks: int = 1, *, seed: int = 0, activation: str = "relu") -> FeatureModel:
        keras.utils.set_random_seed(seed)
        random = np.random.default_rng(seed)
        pixels = x = keras.layers.Input((8, 8, 1))
        x = keras.layers.Rescaling(1 / 64, -1.0)(x)
        groups = [[f"group{group}_block{block}" for block in range(1, blocks + 1)] for group in (1, 2)]
        for group, names in enumerate(groups):
            for name in names:
                stride = 2 if group == 1 and name == names[0] else 1
                x = keras.layers.Conv2D(width * 2**group, 3, stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
                x = keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
                x = keras.layers.Activation(activation, name=name)(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        model = keras.Model(pixels, keras.layers.Dense(10, name="logits")(x), name=f"tiny_{width}_{blocks}")
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                shape = layer.gamma.shape
                scale, offset = random.uniform(0.5, 1.5, shape), random.normal(0, 0.5, shape)
                layer.set_weights([scale, offset, random.normal(0, 0.3, shape), random.uniform(0.5, 2, shape)])
        return FeatureModel.from_model(model, groups)

    return build


@pytest.fixture(scope="session")
def digits(splits: Splits) -> np.ndarray:
    """Eight raw test images, `[8, 8, 8, 1]`, float32."""
    return splits.test.images.pixels[:8].astype("float32")


@pytest.fixture
def post_activation() -> keras.Model:
    """A post-activation residual network of digits: two blocks in the group `wide`, one in the group `deep`."""

    def convolution(x: keras.KerasTensor, channels: int, size: int, stride: int, name: str) -> keras.KerasTensor:
        x = keras.layers.Conv2D(channels, size, strides=stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
        return keras.layers.BatchNormalization(name=f"{name}_bn")(x)

    def block(x: keras.KerasTensor, channels: int, stride: int, name: str) -> keras.KerasTensor:
        shortcut = x if stride == 1 else convolution(x, channels, 1, stride, f"{name}_shortcut")
        y = keras.layers.ReLU(name=f"{name}_inner_relu")(convolution(x, channels, 3, stride, f"{name}_1"))
        y = convolution(y, channels, 3, 1, f"{name}_2")
        return keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([shortcut, y]))

    pixels = keras.layers.Input((8, 8, 1))
    x = keras.layers.ReLU(name="stem_relu")(convolution(keras.layers.Rescaling(1 / 255)(pixels), 4, 3, 1, "stem"))
    for channels, stride, name in ((4, 1, "wide1"), (4, 1, "wide2"), (6, 2, "deep1")):
        x = block(x, channels, stride, name)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(pixels, keras.layers.Dense(10, name="logits")(x), name="post_activation")


@pytest.fixture(scope="session")
def fresh_process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python code in a new process; keyword arguments are environment variables."""

    def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)

    return run
