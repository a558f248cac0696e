"""Arrays and tf.data.Datasets become sources; each mistake is reported in one clear line."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf.config import DataConfig
from dfa_tf.errors import UserError
from dfa_tf.images.sources import check_size, images, source, statistics
from dfa_tf.images.splits import Images, split

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3)).astype(np.uint8)
LABELS = np.arange(12) % 3
WEIGHTS = np.arange(12) / 4
SOFT = np.random.default_rng(1).dirichlet(np.ones(3), 12)


def assert_same(one: Images, other: Images) -> None:
    assert one.pixels.dtype == other.pixels.dtype
    np.testing.assert_array_equal(one.pixels, other.pixels)
    np.testing.assert_array_equal(one.labels, other.labels)
    assert (one.weights is None) == (other.weights is None)
    if one.weights is not None:
        np.testing.assert_array_equal(one.weights, other.weights)


# Arrays


def test_arrays_are_taken_as_they_are_without_a_copy() -> None:
    made = images((PIXELS, LABELS))
    assert np.shares_memory(made.pixels, PIXELS)
    assert_same(made, Images(PIXELS, LABELS))
    weighted = images((PIXELS, LABELS, WEIGHTS))
    assert weighted.weights is not None
    assert weighted.weights.dtype == np.float32
    np.testing.assert_array_equal(weighted.weights, WEIGHTS)


def test_a_memory_map_stays_one(tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", PIXELS)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    assert np.shares_memory(images((mapped, LABELS)).pixels, mapped)


def test_images_are_given_back() -> None:
    given = Images(PIXELS, LABELS)
    assert images(given) is given


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_whole_numbers_are_raw_pixels_of_eight_bits(dtype: type) -> None:
    assert_same(images((PIXELS.astype(dtype), LABELS)), Images(PIXELS, LABELS))


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_floats_are_raw_pixels_of_float32(dtype: type) -> None:
    assert_same(images((PIXELS.astype(dtype), LABELS)), Images(PIXELS.astype(np.float32), LABELS))


def test_black_images_are_no_images_of_0_to_1() -> None:
    assert images((np.zeros((2, 4, 4, 1)), np.array([0, 1]))).pixels.max() == 0


def test_labels_in_a_column_are_classes() -> None:
    assert_same(images((PIXELS, LABELS[:, np.newaxis])), Images(PIXELS, LABELS))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, bool])
def test_one_hot_labels_are_soft_labels(dtype: type) -> None:
    made = images((PIXELS, np.eye(3)[LABELS].astype(dtype)))
    assert made.labels.dtype == np.float32
    np.testing.assert_array_equal(made.labels, np.eye(3)[LABELS])
    np.testing.assert_array_equal(made.classes, LABELS)


def test_true_and_false_are_classes() -> None:
    assert images((PIXELS, LABELS > 0)).labels.tolist() == [0, 1, 1] * 4


# tf.data


@pytest.mark.parametrize("batch", [None, 1, 5, 100])
@pytest.mark.parametrize("parts", [(PIXELS, LABELS), (PIXELS, LABELS, WEIGHTS), (PIXELS, SOFT), (PIXELS, LABELS[:, np.newaxis])])
def test_a_data_set_is_read_as_its_arrays(parts: tuple[np.ndarray, ...], batch: int | None) -> None:
    data = tf.data.Dataset.from_tensor_slices(parts)
    assert_same(images(data if batch is None else data.batch(batch)), images(parts))


def test_a_data_set_of_unknown_length_is_read_to_its_end() -> None:
    data = tf.data.Dataset.from_tensor_slices((PIXELS, LABELS)).filter(lambda image, label: label < 2)
    np.testing.assert_array_equal(images(data).labels, [0, 1] * 4)


def read(*parts: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(parts)


def uneven() -> tf.data.Dataset:
    spec = (tf.TensorSpec([None, 4, 1], tf.uint8), tf.TensorSpec([], tf.int64))
    return tf.data.Dataset.from_generator(lambda: ((np.zeros((3 + i, 4, 1), np.uint8), i) for i in range(2)), output_signature=spec)


def test_an_endless_data_set_is_refused() -> None:
    with pytest.raises(UserError, match=r"must be finite: remove repeat\(\), .* Received: an endless one"):
        images(read(PIXELS, LABELS).batch(4).repeat())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (read(PIXELS), "elements .* must be .*: map it to that. Received: a tuple of 1"),
        (tf.data.Dataset.from_tensor_slices({"image": PIXELS, "label": LABELS}), r"Received: dict with the keys \['image', 'label'\]"),
        (tf.data.Dataset.from_tensor_slices(PIXELS), "Received: TensorSpec"),
        (read(PIXELS[:, 0], LABELS), r"\[height, width, channels\], or be in batches. Received: shape \(5, 3\)"),
        (read(PIXELS, LABELS).take(0), "must contain images. Received: none"),
        (uneven(), "images of one size: resize them"),
        (uneven().batch(1), "images of one size: resize them"),
    ],
)
def test_a_data_set_of_another_form_is_refused(data: tf.data.Dataset, message: str) -> None:
    with pytest.raises(UserError, match=message):
        images(data)


# Mistakes


def with_nan() -> np.ndarray:
    pixels = PIXELS.astype(np.float32)
    pixels[7, 1, 1, 1] = np.nan
    return pixels


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (with_nan(), "raw pixels 0..255. Received: values from nan to nan. Remove the NaN"),
        (PIXELS / 255, r"multiply them by 255. Received: values from 0(\.\d+)? to 1"),
        (PIXELS / 127.5 - 1, "Received: values from -1 to 1. Use the unscaled images"),
        (PIXELS.astype(int) - 128, "Received: values from -128 to 127. Use the unscaled images"),
        (PIXELS.astype(int) * 257, "Received: values from 0 to 65535. Use the unscaled images"),
        (PIXELS[..., 0], r"\[n, height, width, channels\]: add the channel by images\[..., np.newaxis\]. Received: shape \(12, 4, 5\)"),
        (PIXELS[0], r"the shape \[n, height, width, channels\]: .* Received: shape \(4, 5, 3\)"),
        (PIXELS.reshape(12, -1), r"the shape \[n, height, width, channels\]. Received: shape \(12, 60\)"),
        (PIXELS > 127, "integers or floats. Received: bool"),
        (PIXELS.astype(str), "images must be numbers. Received: <U3"),
        ([PIXELS[0], PIXELS[0][1:]], "images must form one array, with equal shapes"),
    ],
)
def test_wrong_images_are_refused(pixels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        images((pixels, LABELS))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS.astype(float), r"classes, integers \[12\], or soft labels, floats \[12, num_classes\]. Received: float64 of shape \(12,\)"),
        (LABELS + 0j, "labels must be numbers. Received: complex128"),
        (LABELS[:11], r"Received: int64 of shape \(11,\)"),
        (SOFT[:11], r"Received: float32 of shape \(11, 3\)"),
        (np.zeros((12, 2, 2)), r"Received: float64 of shape \(12, 2, 2\)"),
        (np.array(["cat", "dog"] * 6), "labels must be numbers. Received: <U3"),
        (2 * SOFT, r"probabilities: values of 0 or more, rows that sum to 1. Received: values from .*, sums from 2 to 2"),
        (SOFT - np.array([1.0, -1.0, 0.0]), "probabilities: values of 0 or more, rows that sum to 1. Received: values from -"),
        (np.full((12, 3), np.nan), "probabilities: .* Received: values from nan"),
    ],
)
def test_wrong_labels_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        images((PIXELS, labels))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (WEIGHTS[:11], r"sample weights must be floats of shape \(12,\). Received: float32 of shape \(11,\)"),
        (WEIGHTS - 1, "sample weights must be 0 or more, and not all 0. Received: -1 to 1.75"),
        (np.zeros(12), "not all 0. Received: 0 to 0"),
        (np.full(12, np.inf), "Received: inf to inf"),
        (np.array([np.nan] + [1.0] * 11), "Received: nan to nan"),
    ],
)
def test_wrong_sample_weights_are_refused(weights: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        images((PIXELS, LABELS, weights))


@pytest.mark.parametrize("data", [PIXELS, (PIXELS,), (PIXELS, LABELS, WEIGHTS, WEIGHTS), None, "images.npz"])
def test_other_types_of_data_are_refused(data: Any) -> None:
    with pytest.raises(UserError, match=r"images must be \(images, labels\) or .*, or a tf.data.Dataset of that. Received: "):
        images(data)


# Sources


def test_a_source_numbers_its_classes_and_measures_its_training_pixels() -> None:
    made = source((PIXELS, LABELS), (PIXELS[:4] // 2, LABELS[:4]))
    assert list(made.class_names) == ["0", "1", "2"]
    np.testing.assert_allclose(made.mean, PIXELS.mean((0, 1, 2)))
    np.testing.assert_allclose(made.std, PIXELS.std((0, 1, 2)))
    assert list(source((PIXELS, SOFT)).class_names) == ["0", "1", "2"]
    assert list(source((PIXELS, LABELS), class_names=["ash", "elm", "oak", "yew"]).class_names) == ["ash", "elm", "oak", "yew"]


def test_a_channel_that_is_the_same_everywhere_is_not_divided_by_zero() -> None:
    assert source((np.full((4, 2, 2, 1), 7, np.uint8), np.array([0, 1, 0, 1]))).std == [1.0]


@pytest.mark.parametrize("test", [None, (PIXELS[:0], LABELS[:0])])
def test_a_source_needs_no_test_set(test: Any) -> None:
    made = source((PIXELS, LABELS), test)
    assert made.test is None
    splits = split(made, DataConfig(), seed=0)
    assert len(splits.test) == 0
    assert splits.image_shape == (4, 5, 3)
    assert splits.examples is splits.train


def test_validation_images_are_the_validation_split_in_full() -> None:
    made = source((PIXELS, LABELS), validation=(PIXELS[:5], LABELS[:5]))
    splits = split(made, DataConfig(), seed=0)
    assert splits.validation.images is made.validation
    assert splits.validation.indices.tolist() == [0, 1, 2, 3, 4]
    assert len(splits.train + splits.search) == 12
    assert splits.examples is splits.validation
    with pytest.raises(UserError, match="validation_fraction must be 0 if the data have a validation set. Received: 0.25"):
        split(made, DataConfig(validation_fraction=0.25), seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"train": (PIXELS, LABELS + 1)},
            "must number the classes from 0, .* unless class_names is given. Received: 3 classes from 1 to 3",
        ),
        ({"train": (PIXELS, np.where(LABELS == 1, -1, LABELS))}, "Received: 3 classes from -1 to 2"),
        ({"train": (PIXELS, LABELS + 2**40)}, "must number the classes from 0"),
        ({"train": (PIXELS, 0 * LABELS)}, r"two classes or more. Received: \['0'\]"),
        ({"train": (PIXELS[:0], LABELS[:0]), "class_names": ["a", "b"]}, "must be training images. Received: none"),
        ({"class_names": ["a", "b"]}, "train labels must be 0 to 1, one for each class name. Received: 0 to 2"),
        ({"test": (PIXELS[:2], LABELS[:2] + 2)}, "test labels must be 0 to 2, one for each class name. Received: 2 to 3"),
        ({"validation": (PIXELS[:2], LABELS[:2] - 1)}, "validation labels must be 0 to 2, .* Received: -1 to 0"),
        ({"test": (PIXELS[:, 1:], LABELS)}, r"test images must be shaped like the training images, \(4, 5, 3\). Received: \(3, 5, 3\)"),
        ({"test": (PIXELS, np.eye(4)[LABELS])}, "soft test labels need a column for each of 3 classes. Received: 4"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        source(**{"train": (PIXELS, LABELS), **arguments})


def test_a_digest_tells_images_labels_weights_and_names_apart() -> None:
    other = PIXELS.copy()
    other[11, 3, 4, 2] ^= 1
    sources = [
        source((PIXELS, LABELS)),
        source((other, LABELS)),
        source((PIXELS.astype(np.float32), LABELS)),
        source((PIXELS, (LABELS + 1) % 3)),
        source((PIXELS, LABELS, WEIGHTS)),
        source((PIXELS, LABELS), (PIXELS, LABELS)),
        source((PIXELS, LABELS), class_names=["a", "b", "c"]),
    ]
    assert len({made.digest for made in sources}) == len(sources)
    assert source((PIXELS.copy(), LABELS.copy())).digest == sources[0].digest


def test_statistics_by_hand_over_more_than_one_chunk() -> None:
    pixels = np.zeros((1500, 2, 1, 2), np.uint8)
    pixels[:, 0, 0, 0] = 4  # channel 0: half 4, half 0; channel 1: all 9
    pixels[..., 1] = 9
    assert statistics(pixels) == ([2.0, 9.0], [2.0, 0.0])


class Counted:
    """Images of one pixel whose value is the number of the image; counts reads."""

    shape = (25_000, 1, 1, 1)
    read = 0

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        self.read += len(indices)
        return np.asarray(indices, np.float32).reshape(-1, 1, 1, 1)


def test_statistics_of_very_many_images_use_an_even_sample() -> None:
    pixels = Counted()
    (mean,), (std,) = statistics(pixels)
    assert pixels.read == 10_000
    # Evenly spread numbers of 0 to 24,999: mean of the ends, deviation 25,000 / sqrt(12).
    np.testing.assert_allclose(mean, 12_499.5, rtol=1e-4)
    np.testing.assert_allclose(std, 25_000 / np.sqrt(12), rtol=1e-3)


def test_a_size_is_none_or_height_and_width() -> None:
    assert check_size(None) is None
    assert check_size([3, 4]) == (3, 4)
    for size in ([3], [3, 4, 5], ["3", 4], [True, 4], "34", 3):
        with pytest.raises(UserError, match="image_size must be height and width"):
            check_size(size)


def test_arrays_of_keras_datasets_and_utils_fit() -> None:
    labels = keras.utils.to_categorical(LABELS.reshape(-1, 1), 3)
    np.testing.assert_array_equal(images((PIXELS.tolist(), labels)).classes, LABELS)
