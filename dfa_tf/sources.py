"""Images handed over in Python as the data of a run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dfa_tf.errors import UserError
from dfa_tf.prepared import statistics
from dfa_tf.splits import Images, Source


def images(data: Any) -> Images:
    """Labelled images from arrays `(pixels, labels)`, a finite `tf.data.Dataset` of such pairs, batched or not, or as they are.

    Raises:
        UserError: if they are none of these.
    """
    if isinstance(data, Images):
        return data
    if isinstance(data, tf.data.Dataset):
        shape = data.element_spec[0].shape
        pairs = list((data.unbatch() if shape.rank == 4 else data).as_numpy_iterator())
        data = (np.stack([pixels for pixels, _ in pairs]), np.stack([labels for _, labels in pairs]))
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise UserError(f"images are a pair of arrays (pixels, labels) or a tf.data.Dataset. Received: {type(data).__name__}")
    pixels, labels = np.asarray(data[0]), np.asarray(data[1])
    if pixels.ndim != 4:
        raise UserError(f"pixels must be [n, height, width, channels]. Received: {pixels.shape}")
    if labels.ndim == 2:
        labels = labels[:, 0] if labels.shape[1] == 1 else labels.argmax(axis=1)
    return Images(pixels, labels.astype(np.int32))


def source(train: Any, test: Any = None, *, class_names: Sequence[str] | None = None, description: str = "images of your own") -> Source:
    """The data of a run from a training set and, if there is one, a test set, each as `images` takes it."""
    ours, theirs = images(train), None if test is None else images(test)
    names = class_names or [str(label) for label in range(int(ours.labels.max()) + 1)]
    mean, std = statistics(np.asarray(ours.pixels))
    return Source(ours, theirs, names, mean, std, description)
