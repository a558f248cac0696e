"""Wide ResNets: published sizes, raw pixels to logits, and the normalisation, padding and initialisation of the authors."""

from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

from dfa_tf import plugins


@pytest.fixture
def bfloat16() -> Iterator[None]:
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


def of_kind(model: keras.Model, kind: type) -> list[keras.layers.Layer]:
    return [layer for layer in model.layers if isinstance(layer, kind)]


def impulse(shape: tuple[int, ...]) -> np.ndarray:
    """A kernel that returns channel 0 of the central pixel."""
    kernel = np.zeros(shape, np.float32)
    kernel[shape[0] // 2, shape[1] // 2, 0, 0] = 1
    return kernel


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("wrn_28_4", 5_872_180),
        ("wrn_16_4", 2_772_020),
        ("wrn_28_2", 1_479_220),
        ("wrn_16_2", 703_284),
        ("wrn_40_2", 2_255_156),
        ("wrn_40_1", 569_780),
    ],
)
def test_parameters_are_those_published(name: str, count: int) -> None:
    model = plugins.build("models", name, image_shape=(32, 32, 3), num_classes=100)
    assert model.name == name
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == count


def test_pixels_go_in_and_float32_logits_come_out(build_model: Callable[..., keras.Model], digits: np.ndarray) -> None:
    logits = build_model("wrn_10_2")(digits)
    assert (logits.shape, logits.dtype) == ((8, 10), "float32")
    assert np.isfinite(logits).all()
    assert abs(np.sum(logits, axis=-1) - 1).max() > 1e-3, "these look like probabilities"


@pytest.mark.usefixtures("bfloat16")
def test_logits_are_float32_also_where_it_computes_in_bfloat16(build_model: Callable[..., keras.Model], digits: np.ndarray) -> None:
    model = build_model("wrn_10_2")
    assert model.get_layer("stem_conv").compute_dtype == "bfloat16"
    assert model(digits).dtype == "float32"
    keras.config.set_dtype_policy("float32")
    exact = build_model("wrn_10_2")
    exact.set_weights(model.get_weights())
    np.testing.assert_allclose(model(digits), exact(digits), atol=0.05 * np.abs(exact(digits)).max())


@pytest.mark.parametrize(("mean", "std"), [((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)), ((100.0,), (50.0,))])
def test_normalisation_is_inside_and_by_channel(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    model = plugins.build("models", "wrn_10_1", image_shape=(4, 4, 3), num_classes=2, mean=mean, std=std)
    normalisation = model.get_layer("normalisation")
    assert isinstance(normalisation, keras.layers.Rescaling)
    assert model.layers[1] is normalisation
    pixels = np.broadcast_to(np.float32([mean, np.add(mean, std), np.subtract(mean, std)])[:, None, None], (3, 4, 4, 3))
    expected = np.broadcast_to(np.float32([0, 1, -1]).reshape(3, 1, 1, 1), (3, 4, 4, 3))
    np.testing.assert_allclose(normalisation(pixels), expected, atol=1e-6)


@pytest.mark.parametrize("side", [8, 7])
def test_convolutions_of_stride_2_are_padded_alike_on_all_sides(side: int) -> None:
    """An impulse in the kernel's middle then reads pixels 0, 2, 4, ..., as the shortcut does; `same` reads 1, 3, 5, ... of 8."""
    model = plugins.build("models", "wrn_10_1", image_shape=(side, side, 1), num_classes=2)
    strided = [layer for layer in of_kind(model, keras.layers.Conv2D) if layer.strides == (2, 2)]
    assert {layer.name for layer in strided} == {f"group{group}_block1_{branch}" for group in (2, 3) for branch in ("shortcut", "conv1")}
    for layer in strided:
        layer.set_weights([impulse(layer.kernel.shape)])
    for group in (2, 3):
        block = f"group{group}_block1"
        relu = model.get_layer(f"{block}_1_relu")
        seen = np.random.default_rng(0).uniform(size=(2, *relu.output.shape[1:])).astype(np.float32)
        main, shortcut = keras.Model(relu.output, [model.get_layer(f"{block}_{end}").output for end in ("conv1", "shortcut")])(seen)
        np.testing.assert_array_equal(main[..., 0], seen[:, ::2, ::2, 0])
        np.testing.assert_array_equal(shortcut[..., 0], seen[:, ::2, ::2, 0])


def test_a_strided_convolution_by_hand() -> None:
    """A kernel of ones applied to ones counts the pixels it covers: 4 in the first corner, 6 along the first edges, 9 elsewhere."""
    model = plugins.build("models", "wrn_10_1", image_shape=(8, 8, 1), num_classes=2)
    model.get_layer("group2_block1_conv1").set_weights([np.ones((3, 3, 16, 32), np.float32) / 16])
    relu = model.get_layer("group2_block1_1_relu").output
    counts = keras.Model(relu, model.get_layer("group2_block1_conv1").output)(np.ones((1, 8, 8, 16), np.float32))
    expected = [[4, 6, 6, 6], [6, 9, 9, 9], [6, 9, 9, 9], [6, 9, 9, 9]]
    np.testing.assert_allclose(counts[0, :, :, 5], expected, rtol=1e-6)


def test_a_block_that_changes_the_shape_has_a_shortcut_and_others_none(build_model: Callable[..., keras.Model]) -> None:
    names = {layer.name for layer in build_model("wrn_16_2").layers}
    assert {name for name in names if name.endswith("shortcut")} == {f"group{group}_block1_shortcut" for group in (1, 2, 3)}
    narrow = {layer.name for layer in build_model("wrn_16_1").layers}
    assert {name for name in narrow if name.endswith("shortcut")} == {"group2_block1_shortcut", "group3_block1_shortcut"}


def test_a_model_survives_its_file_in_safe_mode(build_model: Callable[..., keras.Model], digits: np.ndarray, tmp_path: Path) -> None:
    model = build_model("wrn_10_1")
    for layer in of_kind(model, keras.layers.BatchNormalization):
        layer.moving_mean.assign(keras.random.normal(layer.moving_mean.shape, seed=1))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert loaded.name == "wrn_10_1"
    np.testing.assert_array_equal(loaded(digits), model(digits))
    for one, other in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_convolutions_are_he_normal_by_fan_out_without_bias(build_model: Callable[..., keras.Model]) -> None:
    convolutions = of_kind(build_model("wrn_10_4"), keras.layers.Conv2D)
    assert not any(layer.use_bias for layer in convolutions)
    large = [np.asarray(layer.kernel) for layer in convolutions if np.prod(layer.kernel.shape) > 10_000]
    assert len({kernel.shape for kernel in large}) >= 5
    for kernel in large:
        height, width, _, channels = kernel.shape
        expected = np.sqrt(2 / (height * width * channels))
        np.testing.assert_allclose(kernel.std(), expected, rtol=0.03)
        assert abs(kernel.mean()) < 0.03 * expected
        assert abs(kernel).max() > 3 * expected, "a truncated normal"


def test_batchnorm_has_the_authors_momentum_and_epsilon(build_model: Callable[..., keras.Model]) -> None:
    norms = of_kind(build_model("wrn_10_1"), keras.layers.BatchNormalization)
    assert len(norms) == 7
    assert {(layer.momentum, layer.epsilon) for layer in norms} == {(0.9, 1e-5)}


def test_a_seed_repeats_the_weights(build_model: Callable[..., keras.Model]) -> None:
    first, same, other = (build_model("wrn_10_1", seed=seed).get_weights() for seed in (1, 1, 2))
    assert all((one == another).all() for one, another in zip(first, same, strict=True))
    assert any((one != another).any() for one, another in zip(first, other, strict=True))


@pytest.mark.slow
def test_it_learns_digits_in_56_steps(build_model: Callable[..., keras.Model]) -> None:
    data, model = plugins.build("data", "bundled"), build_model("wrn_10_1")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, jit_compile=False)
    model.fit(data.train.pixels[:896].astype(np.float32), data.train.labels[:896], batch_size=32, epochs=2, verbose=0)
    assert model.evaluate(data.test.pixels.astype(np.float32), data.test.labels, verbose=0) < 0.5 * np.log(10)
