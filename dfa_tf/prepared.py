"""Data sets that TensorFlow Datasets has prepared on disk, read into memory as labelled images."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from dfa_tf.errors import UserError, nearest, shortened
from dfa_tf.runs import read_json
from dfa_tf.splits import Images, Source

_CHUNK = 1000
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
    _check_features(Path(data_dir or tfds.core.constants.DATA_DIR, name.partition(":")[0]))
    try:
        return tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        raise UserError(f"unknown TFDS data set. Received: {name!r}. {nearest(name, tfds.list_builders())}") from None
    except Exception as error:  # TFDS raises what the broken file happens to raise
        raise UserError(f"the TFDS data set {name!r} cannot be read in {data_dir}. {_told(error)}") from None


def _check_features(folder: Path) -> None:
    """Raises UserError if a prepared data set names a class that is not of TFDS itself."""
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


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    if builder.data_path.exists():
        return
    try:
        builder.download_and_prepare()
    except UserError:
        raise
    except Exception as error:  # a download raises whatever its network, its archive or its builder does
        raise UserError(
            f"{builder.info.full_name} is not prepared in {builder.data_path.parent}, and making it failed: set data.data_dir to where "
            f"it is. {_told(error)}"
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
    """Reads the training and the test set of an image classification set, all of both, into memory.

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
    _prepare(builder)
    image_key, label_key = _keys(builder)
    images = {part: _images(builder, part, image_key, label_key, image_size) for part in (train, test)}
    if mean is None or std is None:
        mean, std = statistics(np.asarray(images[train].pixels))
    return Source(
        train=images[train],
        test=images[test],
        class_names=builder.info.features[label_key].names,
        mean=mean,
        std=std,
        description=description or f"{builder.info.full_name} (TensorFlow Datasets)",
    )


def statistics(pixels: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by channel of pixels `[n, H, W, C]`, in their own units."""
    count, total, squares = 0, np.zeros(pixels.shape[-1]), np.zeros(pixels.shape[-1])
    for start in range(0, len(pixels), _CHUNK):
        part = pixels[start : start + _CHUNK].astype(np.float64)
        count += part[..., 0].size
        total += part.sum(axis=(0, 1, 2))
        squares += np.square(part).sum(axis=(0, 1, 2))
    mean = total / count
    return mean.tolist(), np.sqrt(np.maximum(squares / count - np.square(mean), 0)).tolist()


def _keys(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    features: Any = builder.info.features
    found = []
    for kind in (tfds.features.Image, tfds.features.ClassLabel):
        names = [name for name, feature in features.items() if isinstance(feature, kind)] if hasattr(features, "items") else []
        supervised = [name for name in builder.info.supervised_keys or () if name in names]
        if len(chosen := supervised or names) != 1:
            raise UserError(
                f"a classification set has one image and one class label. Received: {builder.info.full_name} with {len(names)} "
                f"of {kind.__name__}"
            )
        found.append(chosen[0])
    return found[0], found[1]


def _images(builder: tfds.core.DatasetBuilder, part: str, image_key: str, label_key: str, size: Sequence[int] | None) -> Images:
    feature = builder.info.features[image_key]
    if feature.np_dtype != np.uint8:
        raise UserError(f"the images of {builder.info.full_name} must be of 8 bits. Received: {np.dtype(feature.np_dtype).name}")
    shape = (*(size or feature.shape[:2]), feature.shape[-1])
    if None in shape:
        raise UserError(
            f"the images of {builder.info.full_name} are of several sizes {feature.shape}: give data.options.image_size, as [64, 64]"
        )
    try:
        count = builder.info.splits[part].num_examples
        data = builder.as_dataset(split=part, shuffle_files=False)
    except (ValueError, KeyError):
        raise UserError(f"unknown split of {builder.info.full_name}. Received: {part!r}. {nearest(part, builder.info.splits)}") from None

    def sized(example: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        image = example[image_key]
        if size is not None:
            image = tf.cast(tf.clip_by_value(tf.round(tf.image.resize(image, tuple(size), antialias=True)), 0, 255), tf.uint8)
        return image, example[label_key]

    pixels, labels, done = np.empty((count, *shape), np.uint8), np.empty(count, np.int32), 0
    try:
        for some, classes in data.map(sized, num_parallel_calls=tf.data.AUTOTUNE).batch(_CHUNK).prefetch(1).as_numpy_iterator():
            pixels[done : done + len(some)], labels[done : done + len(some)] = some, classes
            done += len(some)
    except tf.errors.OpError as error:  # a record or a picture that is damaged; more or fewer of them than there should be
        raise UserError(f"{builder.info.full_name} is damaged: prepare it anew in {builder.data_path}. {_told(error)}") from None
    return Images(pixels, labels)
