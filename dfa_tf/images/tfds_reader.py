"""Data sets that TensorFlow Datasets has prepared on disk, read as labelled images."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from dfa_tf.errors import UserError, nearest, shortened
from dfa_tf.images.disk_pixels import DiskPixels
from dfa_tf.images.sources import check_size, statistics
from dfa_tf.images.splits import Images, Source
from dfa_tf.storage.reading import check_regular, read_json

_CHUNK = 1000
_NAMED = 10
_NAME = re.compile(r"\w+(/[\w.\-]+)?(:\d+\.\d+\.\d+)?")
_NODE = re.compile(r"\{\{.*?\}\} | \[Op:.*", re.DOTALL)  # where in its graph TensorFlow raised an error, which tells a user nothing
_CLASSES = "tensorflow_datasets."  # where features may come from: TFDS imports the module that a features.json names


def find(name: str, data_dir: str | os.PathLike[str] | None = None) -> tfds.core.DatasetBuilder:
    """The builder of a TFDS data set; nothing is read or downloaded yet.

    Args:
        name: of the data set, as `"cifar100"` or `"imagenette/160px-v2"`.
        data_dir: TFDS's data directory; its own default where None.

    Raises:
        UserError: if there is no such data set, or what `data_dir` holds of it cannot be read.
    """
    if not _NAME.fullmatch(name):  # a namespace before the name would be code that TFDS downloads
        raise UserError(f"a TFDS data set is named as 'cifar100' or 'imagenette/160px-v2:1.0.0'. Received: {shortened(name)}")
    _check_prepared(Path(data_dir or tfds.core.constants.DATA_DIR, name.partition(":")[0]).expanduser())
    try:
        return tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        known = [*tfds.list_builders(), *_held(data_dir)]
        raise UserError(f"unknown TFDS data set. Received: {name!r}. {nearest(name, known)}") from None
    except Exception as error:  # TFDS raises what the broken file happens to raise
        raise UserError(f"the TFDS data set {name!r} cannot be read in {data_dir}. {_told(error)}") from None


def _check_prepared(folder: Path) -> None:
    """Raises UserError if a prepared data set has files that TFDS would wait for, or names a class that is not of TFDS itself."""
    for file in sorted(folder.rglob("*")):
        if file.exists() and not file.is_dir():
            try:
                check_regular(file)
            except OSError as error:
                raise UserError(f"a TFDS data set must be of readable files. Received: {file} ({error.strerror})") from None
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


def _told(error: Exception) -> str:
    text = _NODE.sub("", str(error))
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"


def _held(data_dir: str | os.PathLike[str] | None) -> list[str]:
    """The names of the folders of a data directory; a folder is a data set, prepared or not."""
    folder = Path(tfds.core.constants.DATA_DIR if data_dir is None else data_dir).expanduser()
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name != "downloads") if folder.is_dir() else []


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    if builder.data_path.exists():
        return
    try:
        builder.download_and_prepare()
    except UserError:
        raise
    except Exception as error:  # a download raises whatever its network, its archive or its builder does
        directory = Path(builder.data_path.parent)
        held = ", ".join(_held(builder._data_dir_root)[:_NAMED]) or "no data set"
        raise UserError(
            f"{builder.info.full_name} is not prepared in {directory}, and making it failed: set data.data_dir to where "
            f"it is; {builder._data_dir_root} holds {held}. {_told(error)}"
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
    """Reads the training and the test set of an image classification set, all of both; their pixels are kept in temporary files.

    Args:
        builder: of a data set with one image and one class label among its features. Where its directory, which may be
            read-only, does not hold the data set, it is downloaded and prepared there.
        train: TFDS split of the training set, as `"train"` or `"train[:80%]"`.
        test: of the test set.
        mean: of the training pixels by channel, in raw pixels; measured where None.
        std: their standard deviation, likewise.
        image_size: height and width that images are resized to (bilinear, antialiased); needed where they differ in size.
        description: one line about the data; the data set's name where empty.

    Raises:
        UserError: if the data set cannot be made or is of another kind, a split is unknown, or the images differ in size.
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
    """The names of the image and of the label among the features."""
    features: Any = builder.info.features
    kinds = dict(features.items()) if hasattr(features, "items") else {}
    found = []
    for kind in (tfds.features.Image, tfds.features.ClassLabel):
        names = [name for name, feature in kinds.items() if isinstance(feature, kind)]
        supervised = [name for name in builder.info.supervised_keys or () if name in names]
        if len(chosen := supervised or names) != 1:
            held = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in sorted(kinds.items())) or type(features).__name__
            raise UserError(
                f"a classification set has one Image and one ClassLabel. Received: {builder.info.full_name} with {len(names)} "
                f"of {kind.__name__}, its features are {held}"
            )
        found.append(chosen[0])
    return found[0], found[1]


def _shape(builder: tfds.core.DatasetBuilder, feature: tfds.features.Image, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """Height, width and channels that the images are to have."""
    name = builder.info.full_name
    if feature.shape[-1] is None or feature.np_dtype != np.uint8:
        received = f"shape {feature.shape} of {np.dtype(feature.np_dtype)}"
        raise UserError(f"images must be of 8 bits and of one number of channels. Received: {received} in {name}")
    height, width = size or feature.shape[:2]
    if height is None or width is None:
        raise UserError(f"the images of {name} are of several sizes {feature.shape}: give data.options.image_size, as [64, 64]")
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
    except tf.errors.OpError as error:  # a record or a picture that is damaged; more or fewer of them than there should be
        raise UserError(f"{builder.info.full_name} is damaged: prepare it anew in {builder.data_path}. {_told(error)}") from None
    return Images(pixels, labels)
