"""The bundled digits are those of scikit-learn, complete, as raw pixels, with a fixed test half."""

from collections import Counter

import numpy as np
from sklearn.datasets import load_digits

from dfa_tf import plugins
from dfa_tf.config import DataConfig
from dfa_tf.images.splits import split


def rows(pixels: np.ndarray, labels: np.ndarray) -> list[tuple[int, ...]]:
    """Images with their labels, sorted so that sets can be compared."""
    return sorted((int(label), *image) for image, label in zip(pixels.reshape(len(pixels), -1).tolist(), labels, strict=True))


def test_both_halves_together_are_the_digits_of_scikit_learn() -> None:
    source, digits = plugins.build("data", "bundled"), load_digits()
    assert (len(source.train.labels), len(source.test.labels)) == (898, 899)
    together = [np.concatenate([getattr(source.train, name), getattr(source.test, name)]) for name in ("pixels", "labels")]
    expected = np.array([round(level * 255 / 16) for level in range(17)])[digits.images.astype(int)]
    assert rows(*together) == rows(expected, digits.target)


def test_pixels_are_raw_and_labels_are_integers() -> None:
    for images in (plugins.build("data", "bundled").train, plugins.build("data", "bundled").test):
        assert images.pixels.shape[1:] == (8, 8, 1)
        assert (images.pixels.dtype, images.labels.dtype) == (np.uint8, np.int32)
        assert (images.pixels.min(), images.pixels.max()) == (0, 255)
        assert set(images.labels) == set(range(10))


def test_the_halves_are_stratified() -> None:
    source = plugins.build("data", "bundled")
    train, test = Counter(source.train.labels.tolist()), Counter(source.test.labels.tolist())
    assert all(abs(train[label] - test[label]) <= 1 for label in range(10))


def test_the_test_half_is_always_the_same_whatever_the_seed() -> None:
    first, second = (split(plugins.build("data", "bundled"), DataConfig(), seed=seed) for seed in (0, 1))
    for one, other in zip(first.test.once(100), second.test.once(100), strict=True):
        np.testing.assert_array_equal(one["images"], other["images"])
        np.testing.assert_array_equal(one["labels"], other["labels"])


def test_statistics_are_those_of_the_training_pixels() -> None:
    source = plugins.build("data", "bundled")
    pixels = source.train.pixels.astype(np.float64)
    np.testing.assert_allclose(source.mean, [pixels.mean()])
    np.testing.assert_allclose(source.std, [np.sqrt(((pixels - pixels.mean()) ** 2).mean())])
    assert source.class_names == list("0123456789")
    assert "digits" in source.description
