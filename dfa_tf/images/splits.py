"""Splits of labelled images: training, search, validation and test, and the batches of each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from dfa_tf.config import DataConfig
from dfa_tf.errors import UserError
from dfa_tf.images.augmentation import augment, augment_views
from dfa_tf.images.labelled_images import Images, Pixels, Source
from dfa_tf.images.labels import draw

__all__ = ["Images", "Source", "Split", "Splits", "split"]


@dataclass(frozen=True)
class Split:
    """A part of a set of images, chosen by index. Pixels are read batch by batch."""

    images: Images
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __add__(self, other: "Split") -> "Split":
        """The union of both splits, which must come from the same set of images."""
        return Split(self.images, np.sort(np.concatenate([self.indices, other.indices])))

    @property
    def labels(self) -> np.ndarray:
        """The labels of this split, classes `[n]` or soft `[n, num_classes]`."""
        return self.images.labels[self.indices]

    @property
    def classes(self) -> np.ndarray:
        """The class of each image of this split, integers `[n]`; the most probable class of soft labels."""
        return self.images.classes[self.indices]

    def sample(self, count: int) -> "Split":
        """At most `count` images, spread evenly over this split, because sets are often sorted by class."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int))
        return Split(self.images, self.indices[chosen])

    def steps(self, batch_size: int) -> int:
        """The number of full batches in one pass.

        Raises:
            UserError: if the split is smaller than a batch.
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
        """An endless data set of shuffled, augmented batches; batch k depends on `(seed, k)` alone.

        Each pass shuffles all indices anew and leaves out a remainder smaller than a batch.

        Args:
            batch_size: number of images in a batch.
            seed: for the order and the augmentation.
            start: number of the first batch, to resume a run.
            crop_padding, resized_crop, flip: augmentation, as in `dfa_tf.images.augmentation.augment`.
            views: number of fixed variations of each image, of which one is drawn; None draws a new variation each time.
            view_seed: for the fixed variations, together with the image and the view.

        Returns:
            Elements `{"images": float32 [B, H, W, C] raw pixels, "labels": int32 [B], "index": int64 [B]}`,
            where `index` is the position in this split. Soft labels are float32 `[B, num_classes]`. With sample weights there
            is also `"weights": float32 [B]`, with views `"view": int64 [B]`, from 0.

        Raises:
            UserError: if the split is smaller than a batch, or the padding is as large as the images.
        """
        steps = self.steps(batch_size)
        if crop_padding >= min(self.images.pixels.shape[1:3]):
            size = "x".join(map(str, self.images.pixels.shape[1:3]))
            raise UserError(f"data.crop_padding must be smaller than the images, which are {size}. Received: {crop_padding}")

        def one_pass(epoch: tf.Tensor) -> tf.data.Dataset:
            order = tf.random.experimental.stateless_shuffle(tf.range(len(self), dtype=tf.int64), seed=[seed, epoch])
            return tf.data.Dataset.from_tensor_slices(tf.reshape(order[: steps * batch_size], [steps, batch_size]))

        augmentation: dict[str, Any] = {"crop_padding": crop_padding, "resized_crop": resized_crop, "flip": flip}

        def load(step: tf.Tensor, index: tf.Tensor) -> dict[str, tf.Tensor]:
            if views is not None:
                view = tf.random.stateless_uniform([batch_size], tf.random.split([seed, step], 1)[0], 0, views, tf.int64)
                return self.load_views(index, view, seed=view_seed, **augmentation)
            batch = self._load(index)
            return {**batch, "images": augment(batch["images"], seed=[seed, step], **augmentation)}

        order = tf.data.Dataset.range(start // steps, np.iinfo(np.int64).max).flat_map(one_pass).skip(start % steps)
        return order.enumerate(start).map(load, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def once(self, batch_size: int) -> tf.data.Dataset:
        """One pass in order, without augmentation; the last batch may be smaller. Elements as in `batches`."""
        index = tf.data.Dataset.range(len(self)).batch(batch_size)
        return index.map(self._load, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def load_views(self, index: tf.Tensor, view: tf.Tensor, *, seed: int, **augmentation: Any) -> dict[str, tf.Tensor]:
        """The batch of these positions and views, int64 `[B]`. An image has the same views in every split."""
        batch = self._load(index)
        numbers = tf.gather(self.indices.astype(np.int64), index)
        return {**batch, "images": augment_views(batch["images"], number=numbers, view=view, seed=seed, **augmentation), "view": view}

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
        train: training half, which updates the student's weights during the search.
        search: search half, which updates the architecture logits. Stage 2 trains on `train + search`.
        validation: for model selection: held out from the training set, or a separate set; may be empty.
        test: for the reported numbers only; may be empty.
        source: the images before the split, with class names and statistics.
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
        """The same data with an empty test set."""
        return replace(self, test=Split(self.train.images, self.train.indices[:0]))

    @property
    def examples(self) -> Split:
        """Images to time and compare networks on: the test set, else the validation split, else the training half."""
        return next(part for part in (self.test, self.validation, self.train) if len(part))

    @property
    def normalisation(self) -> dict[str, list[float]]:
        """Options for the normalisation of a network: mean and standard deviation by channel, as raw pixels."""
        return {"mean": list(self.source.mean), "std": list(self.source.std)}


def split(source: Source, config: DataConfig, *, seed: int) -> Splits:
    """Draws the splits from the training set: by seed, stratified by class, disjoint.

    Args:
        source: from the data plug-in. If it has validation images, all of them are the validation split.
        config: `search_fraction` and `validation_fraction` of the training images in use, and
            `train_limit_per_class`.
        seed: of the draw.

    Raises:
        UserError: if a class has too few images to be in every split, or if there are both validation images and a fraction.
    """
    if source.validation is not None and config.validation_fraction:
        raise UserError(f"data.validation_fraction must be 0 if the data have a validation set. Received: {config.validation_fraction:g}")
    classes = np.asarray(source.train.classes)
    if len(present := np.unique(classes)) < 2:
        raise UserError(f"the training images must have at least two classes. Received: class {present[0]} alone")
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
