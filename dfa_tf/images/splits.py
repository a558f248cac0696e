"""Labelled images, and their split into training, search, validation and test sets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from dfa_tf.config import DataConfig
from dfa_tf.errors import UserError
from dfa_tf.images.augmentation import augment, augment_views
from dfa_tf.images.labels import check_labels, check_weights, draw


class Pixels(Protocol):
    """Images read by index: an array, a memory map, or anything that decodes files when asked."""

    shape: tuple[int, ...]

    def __getitem__(self, indices: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Images:
    """A labelled set of images.

    Attributes:
        pixels: raw pixels 0..255, uint8 or float32, `[n, height, width, channels]`.
        labels: classes, integers `[n]`, or soft labels, float32 `[n, num_classes]`, whose rows sum to 1.
        weights: how much each image counts in training, float32 `[n]`, 0 or more; None where all count alike.

    Raises:
        UserError: if labels or weights are of another form.
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
        """The class of each image, integers `[n]`: of soft labels the most probable one."""
        return self.labels.argmax(axis=1) if self.labels.ndim == 2 else self.labels


@dataclass(frozen=True)
class Source:
    """What a data plug-in gives.

    Attributes:
        train: the whole training set.
        test: the test set, which may be missing. Nothing is ever chosen by it.
        class_names: one name for each label.
        mean: of the training pixels, by channel, in units of raw pixels.
        std: their standard deviation, likewise.
        description: one line for people: what the images are and where they come from.
        validation: images to choose by, where the data have a set of their own for it.
        digest: tells these images from others that the same configuration may stand for, as those of another folder; empty
            where the configuration says it all.

    Raises:
        UserError: if there is no training image or not two classes, or a set has other image shapes or labels than it should.
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
        """The labels of this split, classes `[n]` or soft `[n, num_classes]`."""
        return self.images.labels[self.indices]

    @property
    def classes(self) -> np.ndarray:
        """The class of each image of this split, integers `[n]`: of soft labels the most probable one."""
        return self.images.classes[self.indices]

    def sample(self, count: int) -> "Split":
        """At most so many images of this split, spread evenly over it: a set is often in the order of its classes."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int))
        return Split(self.images, self.indices[chosen])

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
        views: int | None = None,
        view_seed: int = 0,
    ) -> tf.data.Dataset:
        """An endless data set of shuffled, augmented batches; batch k is a function of `(seed, k)` alone.

        All indices are shuffled anew for each pass, with a remainder smaller than a batch left out.

        Args:
            batch_size: images in a batch.
            seed: decides the order and the augmentation.
            start: number of the first batch, for going on where a run had stopped.
            crop_padding, resized_crop, flip: how images are varied, as `dfa_tf.images.augmentation.augment` takes it.
            views: variations that an image has in all, of which one is drawn; None varies it anew each time.
            view_seed: decides, with the image and the view, what that variation is.

        Returns:
            Elements `{"images": float32 [B, H, W, C] raw pixels, "labels": int32 [B], "index": int64 [B]}`,
            where `index` is the example's position in this split. Soft labels are float32 `[B, num_classes]`; images with
            sample weights have `"weights": float32 [B]` too, and those with views `"view": int64 [B]`, from 0.

        Raises:
            UserError: if the split has no full batch, or the padding is as large as the images.
        """
        steps = self.steps(batch_size)
        if crop_padding >= min(self.images.pixels.shape[1:3]):
            size = "x".join(map(str, self.images.pixels.shape[1:3]))
            raise UserError(f"data.crop_padding must be smaller than the images, which are {size}. Received: {crop_padding}")

        def one_pass(epoch: tf.Tensor) -> tf.data.Dataset:
            order = tf.random.experimental.stateless_shuffle(tf.range(len(self), dtype=tf.int64), seed=[seed, epoch])
            return tf.data.Dataset.from_tensor_slices(tf.reshape(order[: steps * batch_size], [steps, batch_size]))

        variation: dict[str, Any] = {"crop_padding": crop_padding, "resized_crop": resized_crop, "flip": flip}

        def load(step: tf.Tensor, index: tf.Tensor) -> dict[str, tf.Tensor]:
            if views is not None:
                view = tf.random.stateless_uniform([batch_size], tf.random.split([seed, step], 1)[0], 0, views, tf.int64)
                return self.load_views(index, view, seed=view_seed, **variation)
            batch = self._load(index)
            return {**batch, "images": augment(batch["images"], seed=[seed, step], **variation)}

        order = tf.data.Dataset.range(start // steps, np.iinfo(np.int64).max).flat_map(one_pass).skip(start % steps)
        return order.enumerate(start).map(load, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def once(self, batch_size: int) -> tf.data.Dataset:
        """One pass in order, without augmentation; the last batch may be smaller. Elements as in `batches`."""
        index = tf.data.Dataset.range(len(self)).batch(batch_size)
        return index.map(self._load, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def load_views(self, index: tf.Tensor, view: tf.Tensor, *, seed: int, **variation: Any) -> dict[str, tf.Tensor]:
        """An element as of `batches`, of these positions and views, int64 `[B]`: whatever the split, an image has the same views."""
        batch = self._load(index)
        numbers = tf.gather(self.indices.astype(np.int64), index)
        return {**batch, "images": augment_views(batch["images"], number=numbers, view=view, seed=seed, **variation), "view": view}

    def _load(self, index: tf.Tensor) -> dict[str, tf.Tensor]:
        images = self.images
        columns: dict[str, tuple[Pixels, tf.DType]] = {
            "images": (images.pixels, tf.float32),
            "labels": (images.labels, tf.int32 if images.labels.ndim == 1 else tf.float32),
        }
        if images.weights is not None:
            columns["weights"] = (images.weights, tf.float32)

        def read(positions: np.ndarray) -> list[np.ndarray]:
            chosen = self.indices[positions]
            return [np.asarray(values[chosen], dtype.as_numpy_dtype) for values, dtype in columns.values()]

        loaded = tf.numpy_function(read, [index], [dtype for _, dtype in columns.values()], stateful=False)
        batch = dict(zip(columns, loaded, strict=True))
        for name, (values, _) in columns.items():
            batch[name].set_shape([index.shape[0], *values.shape[1:]])
        return {**batch, "index": index}


@dataclass(frozen=True)
class Splits:
    """The data of a run.

    Attributes:
        train: training half: updates the student's weights during the search.
        search: search half: updates the architecture logits. Stage 2 trains on `train + search`.
        validation: to choose by: held out of the training set, or a set of its own; may be empty.
        test: for the numbers that are reported, and nothing else; may be empty.
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
        return tuple(self.train.images.pixels.shape[1:])

    def without_test(self) -> "Splits":
        """The same data, of which nothing can look at the test set."""
        return replace(self, test=Split(self.train.images, self.train.indices[:0]))

    @property
    def examples(self) -> Split:
        """Images to time and compare networks on: of the test set, or else the validation split, or else the training half."""
        return next(part for part in (self.test, self.validation, self.train) if len(part))

    @property
    def normalisation(self) -> dict[str, list[float]]:
        """Options of a network's own normalisation: mean and standard deviation by channel, in raw pixels."""
        return {"mean": list(self.source.mean), "std": list(self.source.std)}


def split(source: Source, config: DataConfig, *, seed: int) -> Splits:
    """Draws the splits from the training set: by seed, stratified by class, disjoint.

    Args:
        source: what the data plug-in gave. Its validation images, if any, are the validation split in full.
        config: `search_fraction` and `validation_fraction` of the training images that are used,
            `train_limit_per_class`.
        seed: decides who goes where.

    Raises:
        UserError: if a class has too few images to appear in every split, or there are validation images and a fraction too.
    """
    if source.validation is not None and config.validation_fraction:
        raise UserError(
            "data.validation_fraction must be 0 where the data have validation images of their own. "
            f"Received: {config.validation_fraction:g}"
        )
    classes = np.asarray(source.train.classes)
    if len(present := np.unique(classes)) < 2:
        raise UserError(f"a classifier learns from images of at least two classes. Received: class {present[0]} alone")
    chosen = np.arange(len(classes))
    if config.train_limit_per_class is not None:
        order = np.random.default_rng(seed).permutation(len(classes))
        firsts = [order[classes[order] == one][: config.train_limit_per_class] for one in np.unique(classes)]
        chosen = np.sort(np.concatenate(firsts))
    rest, held_out = draw(chosen, classes, config.validation_fraction, seed)
    train, search = draw(rest, classes, config.search_fraction / (1 - config.validation_fraction), seed + 1)
    validation = Split(source.train, held_out) if source.validation is None else _whole(source.validation)
    test = Split(source.train, chosen[:0]) if source.test is None else _whole(source.test)
    return Splits(Split(source.train, train), Split(source.train, search), validation, test, source)


def _whole(images: Images) -> Split:
    return Split(images, np.arange(len(images)))
