"""Labelled images: pixels that are read by index, a set of images with labels, and the source of a run's images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dfa_tf.errors import UserError
from dfa_tf.images.labels import check_labels, check_weights


class Pixels(Protocol):
    """Images read by index: an array, a memory map, or an object that decodes files on demand."""

    shape: tuple[int, ...]

    def __getitem__(self, indices: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Images:
    """A labelled set of images.

    Attributes:
        pixels: raw pixels 0..255, uint8 or float32, `[n, height, width, channels]`.
        labels: classes, integers `[n]`, or soft labels, float32 `[n, num_classes]`, whose rows sum to 1.
        weights: sample weights for training, float32 `[n]`, 0 or more; None if all images have equal weight.

    Raises:
        UserError: if the labels or the weights have another dtype, shape or range.
    """

    pixels: Pixels
    labels: np.ndarray
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_labels(self.labels, self.pixels.shape[0])
        if self.weights is not None:
            check_weights(self.weights, self.pixels.shape[0])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> np.ndarray:
        """The class of each image, integers `[n]`; the most probable class of soft labels."""
        return self.labels.argmax(axis=1) if self.labels.ndim == 2 else self.labels


@dataclass(frozen=True)
class Source:
    """The images of a run, as a data plug-in returns them.

    Attributes:
        train: the whole training set.
        test: the test set, or None. Nothing is ever chosen on it.
        class_names: one name for each label.
        mean: of the training pixels, by channel, as raw pixels.
        std: standard deviation of the training pixels, by channel, as raw pixels.
        description: one line: what the images are and where they come from.
        validation: the validation set, if the data have a separate one.
        digest: identifies the images where the configuration alone does not, for example after a change in a folder; empty
            if the configuration identifies them.

    Raises:
        UserError: if there are no training images or fewer than two classes, or if image shapes or labels do not fit.
    """

    train: Images
    test: Images | None
    class_names: Sequence[str]
    mean: Sequence[float]
    std: Sequence[float]
    description: str
    validation: Images | None = None
    digest: str = ""

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise UserError(f"there must be two classes or more. Received: {list(self.class_names)}")
        if not len(self.train):
            raise UserError("there must be training images. Received: none")
        for name in ("train", "validation", "test"):
            images: Images | None = getattr(self, name)
            if images is not None and len(images):
                self._check(name, images)

    def _check(self, name: str, images: Images) -> None:
        ours, theirs = tuple(self.train.pixels.shape[1:]), tuple(images.pixels.shape[1:])
        if ours != theirs:
            raise UserError(f"{name} images must be shaped like the training images, {ours}. Received: {theirs}")
        classes, labels = len(self.class_names), images.labels
        if labels.ndim == 2 and labels.shape[1] != classes:
            raise UserError(f"soft {name} labels need a column for each of {classes} classes. Received: {labels.shape[1]}")
        if images.classes.min() < 0 or images.classes.max() >= classes:
            received = f"{labels.min()} to {labels.max()}"
            raise UserError(f"{name} labels must be 0 to {classes - 1}, one for each class name. Received: {received}")
