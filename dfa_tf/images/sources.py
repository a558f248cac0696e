"""A source from the user's own images, NumPy arrays or a tf.data.Dataset: checks, class names and statistics."""

import hashlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from dfa_tf.errors import UserError
from dfa_tf.images.labelled_images import Images, Pixels, Source

Data: TypeAlias = Images | tf.data.Dataset | tuple[Any, Any] | tuple[Any, Any, Any]
"""The argument of `images`."""
LARGEST_SIZE = 4096
"""Largest side, in pixels, that images can be resized to."""

_CHUNK = 100
_SAMPLE = 10_000
_READ = 256
_FORMS = "(images, labels) or (images, labels, sample_weights)"


def source(
    train: Data,
    test: Data | None = None,
    *,
    validation: Data | None = None,
    class_names: Sequence[str] | None = None,
    description: str = "your own images",
    digest: str | None = None,
) -> Source:
    """Makes a source from your own images.

    Args:
        train: the training set, in a form that `images` takes.
        test: the test set. If it is None or empty, nothing is evaluated on a test set.
        validation: the validation set. If None, it is `data.validation_fraction` of the training images.
        class_names: one name for each label, in order. If None, the names are the numbers of the classes, and each class must
            have a training image.
        description: one line about the images.
        digest: identifies the images. If None, it is computed from all images, which reads them once.

    Returns:
        The source. Its mean and standard deviation are the `statistics` of the training images.

    Raises:
        UserError: if images or labels are not as in `images` and `Source`, or if unnamed classes have no training image.
    """
    training = images(train)
    others = [None if data is None else images(data) for data in (test, validation)]
    tested, validated = (part if part is not None and len(part) else None for part in others)
    names = _numbers(training) if class_names is None else list(class_names)
    mean, std = statistics(training.pixels) if len(training) else ([], [])
    # The deviation of a constant channel becomes 1, because networks divide by it.
    std = [deviation or 1.0 for deviation in std]
    if digest is None:
        digest = "-".join([hashlib.sha256(repr(names).encode()).hexdigest(), *map(digest_of, (training, tested, validated))])
    return Source(training, tested, names, mean, std, description, validated, digest)


def images(data: Data) -> Images:
    """Converts the user's data to labelled images.

    Args:
        data: `(images, labels)` or `(images, labels, sample_weights)` as NumPy arrays or sequences; or a finite
            `tf.data.Dataset` of such tuples, batched or not, which is read into memory; or `Images`, which are returned
            unchanged. Images are raw pixels 0..255, integers or floats `[n, height, width, channels]`. Labels are
            classes, integers `[n]` or `[n, 1]`, or soft or one-hot labels `[n, num_classes]`. Sample weights are
            numbers of 0 or more, `[n]`.

    Returns:
        Images with uint8 pixels if they were integers, else float32. Arrays of these dtypes are not copied, so they can be
        memory maps.

    Raises:
        UserError: if the data have another form or are endless, or if pixels are NaN, outside 0..255, or scaled to 0..1.
    """
    if isinstance(data, Images):
        return data
    if isinstance(data, tf.data.Dataset):
        parts: Sequence[Any] = _read(data)
    elif isinstance(data, tuple | list) and len(data) in (2, 3):
        parts = data
    else:
        raise UserError(f"images must be {_FORMS}, or a tf.data.Dataset of that. Received: {type(data).__name__}")
    pixels = _raw_pixels(_array("images", parts[0]))
    labels = _array("labels", parts[1])
    if labels.dtype == bool:
        labels = labels.astype(np.int32)
    if labels.ndim == 2:
        column = labels.shape[1] == 1 and np.issubdtype(labels.dtype, np.integer)  # the form of classes in keras.datasets
        labels = labels[:, 0] if column else labels.astype(np.float32)
    weights = None if len(parts) == 2 else _array("sample weights", parts[2]).astype(np.float32)
    return Images(pixels, labels, weights)


def statistics(pixels: Pixels) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by channel of pixels `[n, H, W, C]`, in the units of the pixels.

    Of more than 10,000 images, 10,000 at even distances are read.
    """
    count = pixels.shape[0]
    chosen = np.linspace(0, count - 1, min(count, _SAMPLE)).round().astype(np.int64)
    number, total, squares = 0, np.zeros(pixels.shape[-1]), np.zeros(pixels.shape[-1])
    for start in range(0, len(chosen), _CHUNK):
        part = np.asarray(pixels[chosen[start : start + _CHUNK]], np.float64)
        number += part[..., 0].size
        total += part.sum(axis=(0, 1, 2))
        squares += np.square(part).sum(axis=(0, 1, 2))
    mean = total / number
    return mean.tolist(), np.sqrt(np.maximum(squares / number - np.square(mean), 0)).tolist()


def digest_of(part: Images | None) -> str:
    """SHA-256 of images, labels and sample weights, in hexadecimal; reads the images once. None has a digest too."""
    sha = hashlib.sha256()
    for values in () if part is None else (part.pixels, part.labels, part.weights):
        if values is None:
            continue
        sha.update(repr(values.shape).encode())
        for start in range(0, values.shape[0], _CHUNK):
            some = np.asarray(values[np.arange(start, min(start + _CHUNK, values.shape[0]))])
            sha.update(str(some.dtype).encode() + some.tobytes())
    return sha.hexdigest()


def check_size(size: Any) -> tuple[int, int] | None:
    """The option `image_size` of a data set as height and width, or None if it is not given.

    Raises:
        UserError: unless it is two integers from 1 to 4096.
    """
    if size is None:
        return None
    sides = list(size) if isinstance(size, list | tuple) else [size]
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= LARGEST_SIZE for side in sides):
        raise UserError(f"image_size must be height and width, 1 to {LARGEST_SIZE} pixels each, as [64, 64]. Received: {size}")
    return sides[0], sides[1]


def _array(what: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(f"{what} must form one array, with equal shapes. {error}") from None
    if array.dtype.kind not in "biuf":
        raise UserError(f"{what} must be numbers. Received: {array.dtype}")
    return array


def _raw_pixels(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim != 4 or 0 in pixels.shape[1:]:
        fix = ": add the channel by images[..., np.newaxis]" if pixels.ndim == 3 else ""
        raise UserError(f"images must have the shape [n, height, width, channels]{fix}. Received: shape {pixels.shape}")
    whole = np.issubdtype(pixels.dtype, np.integer)
    if not whole and not np.issubdtype(pixels.dtype, np.floating):
        raise UserError(f"images must be raw pixels 0..255, integers or floats. Received: {pixels.dtype}")
    if pixels.dtype == np.uint8 or not len(pixels):
        return pixels
    # In parts, because comparing all pixels at once copies them.
    bounds = [(part.min(), part.max()) for part in (pixels[start : start + _CHUNK] for start in range(0, len(pixels), _CHUNK))]
    least, most = np.min(bounds), np.max(bounds)
    if not (least >= 0 and most <= 255):
        fix = " Remove the NaN" if np.isnan(least) else " Use the unscaled images"
        raise UserError(f"images must be raw pixels 0..255. Received: values from {least:g} to {most:g}.{fix}")
    if not whole and least < most <= 1:
        raise UserError(f"images must be raw pixels 0..255: multiply them by 255. Received: values from {least:g} to {most:g}")
    return pixels.astype(np.uint8 if whole else np.float32, copy=False)


def _numbers(training: Images) -> list[str]:
    if training.labels.ndim == 2:
        return [str(number) for number in range(training.labels.shape[1])]
    found = np.unique(training.labels)
    if found.tolist() != list(range(len(found))):
        raise UserError(
            "labels must number the classes from 0, each with a training image, unless class_names is given. "
            f"Received: {len(found)} classes from {found[0]} to {found[-1]}"
        )
    return [str(number) for number in found]


def _read(data: tf.data.Dataset) -> list[np.ndarray]:
    """Reads a data set into memory: images, labels, and sample weights if there are any."""
    spec = data.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3) or not all(isinstance(part, tf.TensorSpec) for part in spec):
        raise UserError(f"elements of a tf.data.Dataset must be {_FORMS}: map it to that. Received: {_short(spec)}")
    if spec[0].shape.rank not in (3, 4):
        raise UserError(
            f"images of a tf.data.Dataset must have the shape [height, width, channels], or be in batches. Received: shape {spec[0].shape}"
        )
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise UserError(
            "a tf.data.Dataset must be finite: remove repeat(), train.epochs sets the number of epochs. Received: an endless one"
        )
    try:
        batches = list((data.batch(_READ) if spec[0].shape.rank == 3 else data).as_numpy_iterator())
        if not batches:
            raise UserError("a tf.data.Dataset must contain images. Received: none")
        return [np.concatenate(part) for part in zip(*batches, strict=True)]
    except (tf.errors.OpError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"a tf.data.Dataset must have images of one size: resize them. {str(error)[:300]}") from None


def _short(spec: Any) -> str:
    names = f" with the keys {list(spec)}" if isinstance(spec, dict) else ""
    return f"{type(spec).__name__}{names}" if names or not isinstance(spec, tuple) else f"a tuple of {len(spec)}"
