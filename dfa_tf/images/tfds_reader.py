"""Labelled images from data sets of TensorFlow Datasets (TFDS). Their pixels are kept in temporary files, not in memory."""

import os
import re
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from dfa_tf.errors import UserError, nearest, shortened
from dfa_tf.images.labelled_images import Images, Source
from dfa_tf.images.sources import check_size, statistics
from dfa_tf.storage.reading import check_regular, read_json

_CHUNK = 1000
_NAMED = 10
_NAME = re.compile(r"\w+(/[\w.\-]+)?(:\d+\.\d+\.\d+)?")
_NODE = re.compile(r"\{\{.*?\}\} | \[Op:.*", re.DOTALL)  # the node of a graph in a TensorFlow error, which does not help the user
_CLASSES = "tensorflow_datasets."  # features may come from TFDS only, because TFDS imports the module named in features.json


def find(name: str, data_dir: str | os.PathLike[str] | None = None) -> tfds.core.DatasetBuilder:
    """The builder of a TFDS data set. Reads and downloads nothing.

    Args:
        name: name of the data set, for example `"cifar100"` or `"imagenette/160px-v2"`.
        data_dir: TFDS's data directory; None is TFDS's default.

    Raises:
        UserError: if the data set is unknown, or its files in `data_dir` cannot be read.
    """
    if not _NAME.fullmatch(name):  # TFDS would download code for a namespace before the name
        raise UserError(f"a TFDS data set must have a name like 'cifar100' or 'imagenette/160px-v2:1.0.0'. Received: {shortened(name)}")
    _check_prepared(Path(data_dir or tfds.core.constants.DATA_DIR, name.partition(":")[0]).expanduser())
    try:
        return tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        known = [*tfds.list_builders(), *_held(data_dir)]
        raise UserError(f"unknown TFDS data set. Received: {name!r}. {nearest(name, known)}") from None
    except Exception as error:  # TFDS raises many kinds of errors on a damaged file
        raise UserError(f"the TFDS data set {name!r} cannot be read in {data_dir}. {_one_line(error)}") from None


def _check_prepared(folder: Path) -> None:
    """Raises UserError if a prepared data set has files that are not regular, or names a class outside TFDS."""
    for file in sorted(folder.rglob("*")):
        if file.exists() and not file.is_dir():
            try:
                check_regular(file)  # TFDS would wait for a named pipe
            except OSError as error:
                raise UserError(f"a TFDS data set must have readable files. Received: {file} ({error.strerror})") from None
    for file in sorted(folder.rglob("features.json")):
        for name in _class_names(read_json(file, "the features of a TFDS data set")):
            if not name.startswith(_CLASSES):
                raise UserError(f"the features of a TFDS data set must be of TFDS. Received: {shortened(name)} in {file}")


def _class_names(value: Any) -> Iterator[str]:
    """The names of Python classes anywhere in a features.json."""
    for inner in value if isinstance(value, list) else ():
        yield from _class_names(inner)
    for key, inner in value.items() if isinstance(value, dict) else ():
        if key == "pythonClassName" or (key == "type" and "content" in value):
            yield str(inner)
        yield from _class_names(inner)


def _one_line(error: Exception) -> str:
    text = _NODE.sub("", str(error))
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"


def _held(data_dir: str | os.PathLike[str] | None) -> list[str]:
    """The data sets of a data directory, prepared or not: the names of its folders."""
    folder = Path(tfds.core.constants.DATA_DIR if data_dir is None else data_dir).expanduser()
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name != "downloads") if folder.is_dir() else []


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    if builder.data_path.exists():
        return
    try:
        builder.download_and_prepare()
    except UserError:
        raise
    except Exception as error:  # the network, the archive and the builder raise many kinds of errors
        directory = Path(builder.data_path.parent)
        held = ", ".join(_held(builder._data_dir_root)[:_NAMED]) or "no data set"
        raise UserError(
            f"{builder.info.full_name} is not prepared in {directory}, and preparing it failed: set data.data_dir to the directory that "
            f"has it; {builder._data_dir_root} has {held}. {_one_line(error)}"
        ) from None


def read(
    builder: tfds.core.DatasetBuilder,
    *,
    train: str = "train",
    test: str = "test",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: Sequence[int] | None = None,
    description: str = "",
) -> Source:
    """Reads the training and the test set of an image classification data set.

    Args:
        builder: of a data set with one image and one class label among its features. If its directory does not have the
            data set, it is downloaded and prepared there; otherwise the directory may be read-only.
        train: TFDS split of the training set, for example `"train"` or `"train[:80%]"`.
        test: TFDS split of the test set.
        mean: mean of the training pixels by channel, as raw pixels; None measures it.
        std: standard deviation of the training pixels by channel, as raw pixels; None measures both.
        image_size: height and width to resize images to (bilinear, antialiased); required if they differ in size.
        description: one line about the data; empty for the name of the data set.

    Raises:
        UserError: if the data set cannot be prepared or is of another kind, a split is unknown, or the images differ in size.
    """
    size = check_size(image_size)
    _prepare(builder)
    image_key, label_key = _keys(builder)
    images = {part: _images(builder, part, image_key, label_key, size) for part in (train, test)}
    if mean is None or std is None:
        mean, std = statistics(images[train].pixels)
    return Source(
        train=images[train],
        test=images[test],
        class_names=builder.info.features[label_key].names,
        mean=mean,
        std=std,
        description=description or f"{builder.info.full_name} (TensorFlow Datasets)",
    )


def _keys(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    """The names of the image and the label among the features."""
    features: Any = builder.info.features
    kinds = dict(features.items()) if hasattr(features, "items") else {}
    found = []
    for kind in (tfds.features.Image, tfds.features.ClassLabel):
        names = [name for name, feature in kinds.items() if isinstance(feature, kind)]
        supervised = [name for name in builder.info.supervised_keys or () if name in names]
        if len(chosen := supervised or names) != 1:
            held = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in sorted(kinds.items())) or type(features).__name__
            raise UserError(
                f"a classification data set must have one Image and one ClassLabel. Received: {builder.info.full_name} with {len(names)} "
                f"of {kind.__name__}, its features are {held}"
            )
        found.append(chosen[0])
    return found[0], found[1]


def _shape(builder: tfds.core.DatasetBuilder, feature: tfds.features.Image, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """Height, width and channels of the images after resizing."""
    name = builder.info.full_name
    if feature.shape[-1] is None or feature.np_dtype != np.uint8:
        received = f"shape {feature.shape} of {np.dtype(feature.np_dtype)}"
        raise UserError(f"images must have 8 bits and one number of channels. Received: {received} in {name}")
    height, width = size or feature.shape[:2]
    if height is None or width is None:
        raise UserError(
            f"the images of {name} must have one size: set data.options.image_size, as [64, 64]. Received: shape {feature.shape}"
        )
    return height, width, feature.shape[-1]


def _images(builder: tfds.core.DatasetBuilder, part: str, image_key: str, label_key: str, size: tuple[int, int] | None) -> Images:
    shape = _shape(builder, builder.info.features[image_key], size)
    try:
        count = builder.info.splits[part].num_examples
        data = builder.as_dataset(split=part, shuffle_files=False)
    except (ValueError, KeyError):
        raise UserError(f"unknown split of {builder.info.full_name}. Received: {part!r}. {nearest(part, builder.info.splits)}") from None

    def sized(example: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        image = example[image_key]
        if size is not None:
            image = tf.cast(tf.clip_by_value(tf.round(tf.image.resize(image, size, antialias=True)), 0, 255), tf.uint8)
        return image, example[label_key]

    pixels, labels, done = DiskPixels(count, shape), np.empty(count, np.int32), 0
    try:
        for some, classes in data.map(sized, num_parallel_calls=tf.data.AUTOTUNE).batch(_CHUNK).prefetch(1).as_numpy_iterator():
            pixels.append(some)
            labels[done : done + len(some)] = classes
            done += len(some)
    except tf.errors.OpError as error:  # a damaged record or picture, or another number of them than expected
        raise UserError(f"{builder.info.full_name} is damaged: prepare it anew in {builder.data_path}. {_one_line(error)}") from None
    return Images(pixels, labels)


class DiskPixels:
    """Decoded images of one size in an unnamed temporary file, which is deleted when the process ends.

    The file is written once, in order, and then read by `os.preadv`: the pages of a memory map would count as memory of the process.

    Args:
        count: number of images.
        shape: height, width and channels of an image.

    Attributes:
        shape: `[n, height, width, channels]`.
    """

    def __init__(self, count: int, shape: Sequence[int]) -> None:
        self.shape = (count, *shape)
        self._bytes = int(np.prod(shape))
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it stays open while the images are in use)
        weakref.finalize(self, self._file.close)

    def append(self, images: np.ndarray) -> None:
        """Appends images, uint8 `[m, height, width, channels]`."""
        self._file.write(np.ascontiguousarray(images, np.uint8).data)
        self._file.flush()

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """The images at these indices, integers `[m]` from 0 to n - 1: raw pixels, uint8 `[m, height, width, channels]`."""
        images = np.empty((len(indices), *self.shape[1:]), np.uint8)
        for row, index in zip(images.reshape(len(images), self._bytes), indices, strict=True):
            os.preadv(self._file.fileno(), [row.data], int(index) * self._bytes)
        return images
