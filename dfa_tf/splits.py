"""Labelled images, and their split into training, search, validation and test sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import tensorflow as tf
from sklearn.model_selection import train_test_split

from dfa_tf.augmentation import augment
from dfa_tf.config import DataConfig
from dfa_tf.errors import UserError


class Pixels(Protocol):
    """Images read by index: an array, a memory map, or anything that decodes files when asked."""

    shape: tuple[int, ...]

    def __getitem__(self, indices: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Images:
    """A labelled set of images.

    Attributes:
        pixels: raw pixels 0..255, uint8 or float32, `[n, height, width, channels]`.
        labels: classes, integers `[n]`.
    """

    pixels: Pixels
    labels: np.ndarray


@dataclass(frozen=True)
class Source:
    """What a data plug-in gives.

    Attributes:
        train: the whole training set.
        test: the test set. Nothing is ever chosen by it.
        class_names: one name for each label.
        mean: of the training pixels, by channel, in units of raw pixels.
        std: their standard deviation, likewise.
        description: one line for people: what the images are and where they come from.
    """

    train: Images
    test: Images
    class_names: Sequence[str]
    mean: Sequence[float]
    std: Sequence[float]
    description: str


@dataclass(frozen=True)
class Split:
    """Some of the images of a set, chosen by index. Pixels are read only when a batch is made."""

    images: Images
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __add__(self, other: "Split") -> "Split":
        """Both splits together; they must come from one set of images."""
        return Split(self.images, np.sort(np.concatenate([self.indices, other.indices])))

    @property
    def labels(self) -> np.ndarray:
        """The labels of this split, `[n]`."""
        return self.images.labels[self.indices]

    def steps(self, batch_size: int) -> int:
        """Full batches in one pass.

        Raises:
            UserError: if there is not one.
        """
        if batch_size > len(self):
            raise UserError(f"data.batch_size must not exceed the {len(self)} images of the split. Received: {batch_size}")
        return len(self) // batch_size

    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        crop_padding: int = 0,
        resized_crop: float | None = None,
        flip: bool = False,
    ) -> tf.data.Dataset:
        """An endless data set of shuffled, augmented batches; batch k is a function of `(seed, k)` alone.

        All indices are shuffled anew for each pass, with a remainder smaller than a batch left out.

        Args:
            batch_size: images in a batch.
            seed: decides the order and the augmentation.
            start: number of the first batch, for going on where a run had stopped.
            crop_padding: reflect-pad by so many pixels, then crop at random.
            resized_crop: crop at least this share of the area at random, then resize it to the whole.
            flip: mirror half of the images from left to right.

        Returns:
            Elements `{"images": float32 [B, H, W, C] raw pixels, "labels": int32 [B], "index": int64 [B]}`,
            where `index` is the example's position in this split.

        Raises:
            UserError: if the split has no full batch, or the padding is as large as the images.
        """
        steps = self.steps(batch_size)
        if crop_padding >= min(self.images.pixels.shape[1:3]):
            size = "x".join(str(side) for side in self.images.pixels.shape[1:3])
            raise UserError(f"data.crop_padding must be smaller than the images, which are {size}. Received: {crop_padding}")

        def one_pass(epoch: tf.Tensor) -> tf.data.Dataset:
            order = tf.random.experimental.stateless_shuffle(tf.range(len(self), dtype=tf.int64), seed=[seed, epoch])
            return tf.data.Dataset.from_tensor_slices(tf.reshape(order[: steps * batch_size], [steps, batch_size]))

        def load(step: tf.Tensor, index: tf.Tensor) -> dict[str, tf.Tensor]:
            batch = self._load(index)
            images = augment(batch["images"], seed=[seed, step], crop_padding=crop_padding, resized_crop=resized_crop, flip=flip)
            return {**batch, "images": images}

        epochs = tf.data.Dataset.range(start // steps, np.iinfo(np.int64).max)
        order = epochs.flat_map(one_pass).skip(start % steps)
        return order.enumerate(start).map(load, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def once(self, batch_size: int) -> tf.data.Dataset:
        """One pass in order, without augmentation; the last batch may be smaller. Elements as in `batches`."""
        index = tf.data.Dataset.range(len(self)).batch(batch_size)
        return index.map(self._load, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def _load(self, index: tf.Tensor) -> dict[str, tf.Tensor]:
        def read(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            chosen = self.indices[positions]
            return np.asarray(self.images.pixels[chosen], np.float32), np.asarray(self.images.labels[chosen], np.int32)

        images, labels = tf.numpy_function(read, [index], (tf.float32, tf.int32), stateful=False)
        images.set_shape([index.shape[0], *self.images.pixels.shape[1:]])
        labels.set_shape(index.shape)
        return {"images": images, "labels": labels, "index": index}


@dataclass(frozen=True)
class Splits:
    """The data of a run.

    Attributes:
        train: training half: updates the student's weights during the search.
        search: search half: updates the architecture logits. Stage 2 trains on `train + search`.
        validation: held out of the training set to choose by; may be empty.
        test: for the numbers that are reported, and nothing else.
        source: where the images come from, with class names and statistics.
    """

    train: Split
    search: Split
    validation: Split
    test: Split
    source: Source

    @property
    def num_classes(self) -> int:
        return len(self.source.class_names)

    @property
    def class_names(self) -> Sequence[str]:
        return self.source.class_names

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width, channels."""
        return self.test.images.pixels.shape[1:]

    @property
    def normalisation(self) -> dict[str, list[float]]:
        """Options of a network's own normalisation: mean and standard deviation by channel, in raw pixels."""
        return {"mean": list(self.source.mean), "std": list(self.source.std)}


def split(source: Source, config: DataConfig, *, seed: int) -> Splits:
    """Draws the splits from the training set: by seed, stratified by class, disjoint.

    Args:
        source: what the data plug-in gave.
        config: `search_fraction` and `validation_fraction` of the training images that are used,
            `train_limit_per_class`.
        seed: decides who goes where.

    Raises:
        UserError: if a class has too few images to appear in every split.
    """
    for part, images in (("training", source.train), ("test", source.test)):
        if not len(images.labels):
            raise UserError(f"the {part} set must hold images. Received: none, of {source.description}")
        if images.labels.min() < 0 or images.labels.max() >= len(source.class_names):
            received = f"{images.labels.min()} to {images.labels.max()}"
            raise UserError(f"labels must be 0 to {len(source.class_names) - 1}, one for each class name. Received: {received}")
    labels = np.asarray(source.train.labels)
    if len(present := np.unique(labels)) < 2:
        raise UserError(f"a classifier learns from images of at least two classes. Received: class {present[0]} alone")
    chosen = np.arange(len(labels))
    if config.train_limit_per_class is not None:
        order = np.random.default_rng(seed).permutation(len(labels))
        firsts = [order[labels[order] == label][: config.train_limit_per_class] for label in np.unique(labels)]
        chosen = np.sort(np.concatenate(firsts))
    rest, validation = _draw(chosen, labels, config.validation_fraction, seed)
    train, search = _draw(rest, labels, config.search_fraction / (1 - config.validation_fraction), seed + 1)
    everything = np.arange(len(source.test.labels))
    train_split, search_split, validation_split = (Split(source.train, part) for part in (train, search, validation))
    return Splits(train_split, search_split, validation_split, test=Split(source.test, everything), source=source)


def _draw(indices: np.ndarray, labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if fraction == 0:
        return indices, indices[:0]
    try:
        kept, drawn = train_test_split(indices, test_size=fraction, stratify=labels[indices], random_state=seed)
    except ValueError as error:
        raise UserError(f"every split needs images of every class. {error}") from None
    if missing := set(labels[indices]) - (set(labels[kept]) & set(labels[drawn])):
        raise UserError(f"every split needs images of every class. Received: too few of class {min(missing)} for a share of {fraction:g}")
    return np.sort(kept), np.sort(drawn)
