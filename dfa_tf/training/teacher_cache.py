"""The outputs of a frozen teacher on disk: made once, and then read in place of its forward pass.

They pay where the same views of the same images come again and again: in later epochs, methods and seeds. Read back, they agree
with the teacher's own outputs up to rounding, which depends on an image's place in its batch.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from dfa_tf.config import Config
from dfa_tf.images.splits import Split, Splits
from dfa_tf.networks.batchnorm import fused_batchnorm
from dfa_tf.networks.frozen_teacher import FrozenTeacher
from dfa_tf.process.status import doing
from dfa_tf.training.cached_files import CachedFile, make_room, warn_once
from dfa_tf.training.cached_names import cached_files

_READERS = 2  # batches that are read at a time: more of them, which may be large, would only fill the memory

ReportShare = Callable[[dict[str, float]], None]


class CachedOutputs:
    """Outputs of a teacher for every view of some images.

    Args:
        data: the images.
        views: of each image.
        arrays: by name of the output: `[images * views, ...]`, the views of an image behind one another.
            They may be memory maps: only the rows of a batch are read.
    """

    def __init__(self, data: Split, views: int, arrays: Mapping[str, np.ndarray]) -> None:
        self._data, self._views, self._arrays = data, views, dict(arrays)

    def join(self, batches: tf.data.Dataset, split: Split) -> tf.data.Dataset:
        """Batches with the cached outputs of their images in addition, `{"cached_outputs": {name: [B, ...]}}`.

        Args:
            batches: from `Split.batches`, with views.
            split: whose batches they are: of the images that the cached outputs are of, or of a part of them.
        """
        dtypes = [tf.as_dtype(array.dtype) for array in self._arrays.values()]

        def read(index: np.ndarray, view: np.ndarray) -> list[np.ndarray]:
            rows = np.searchsorted(self._data.indices, split.indices[index]) * self._views + view
            return [array[rows] for array in self._arrays.values()]

        def add(batch: dict[str, tf.Tensor]) -> dict[str, Any]:
            values = tf.numpy_function(read, [batch["index"], batch["view"]], dtypes, stateful=False)
            for value, array in zip(values, self._arrays.values(), strict=True):
                value.set_shape([batch["index"].shape[0], *array.shape[1:]])
            return {**batch, "cached_outputs": dict(zip(self._arrays, values, strict=True))}

        return batches.map(add, num_parallel_calls=_READERS).prefetch(1)


class TeacherCache:
    """A folder of teachers' outputs, one `.npy` file for each.

    The name of a file is made of all that its values depend on: the teacher's graph and weights, the place in the graph, the
    images, how they are varied, the size of the batches, the kind of device and the versions. A file has its name once it is
    whole; until then it grows, and after a kill it grows from where it was.

    Args:
        folder: of the files; it is made.
        gib: GiB that they may have. To make room, the least recently used files are removed.
    """

    def __init__(self, folder: Path, gib: float) -> None:
        self._folder, self._gib = folder, gib

    def cached_outputs(
        self,
        teacher: FrozenTeacher,
        read: Collection[str],
        splits: Splits,
        config: Config,
        *,
        mixup: float = 0.0,
        report: ReportShare | None = None,
    ) -> CachedOutputs | None:
        """The cached outputs of all training images, `splits.train + splits.search`; those that are missing are made.

        Args:
            teacher: frozen.
            read: names of the outputs that are wanted, as in `Extractor.outputs`.
            splits: the data.
            config: its `data` and `teacher.batchnorm` are read.
            mixup: of the training.
            report: called with the progress as a number by name: the share that is made, 0 to 1.

        Returns:
            The cached outputs; None where nothing is wanted, and, with a warning that says why, where the teacher does not see the
            same images again or the disk has no room.

        Raises:
            UserError: if the folder cannot be written.
        """
        if reason := _reason_against(config, mixup):
            warn_once(f"teacher.cache_gib has no effect: {reason}")
            return None
        data, views = splits.train + splits.search, config.augmentation["views"]
        files = cached_files(self._folder, teacher, read, splits, config)
        if not files or not make_room(self._folder, files.values(), self._gib):
            return None
        missing = {name: file for name, file in files.items() if not file.whole}
        try:
            if missing:
                with doing("making the teacher's outputs"):
                    _make(teacher, missing, data, config, report or (lambda numbers: None))
        except OSError as error:
            for file in missing.values():
                file.remove()
            warn_once(f"the teacher's outputs are not kept: {self._folder} cannot take them ({error.strerror})")
            return None
        return CachedOutputs(data, views, {name: file.read() for name, file in files.items()})


def _make(teacher: FrozenTeacher, files: Mapping[str, CachedFile], data: Split, config: Config, report: ReportShare) -> None:
    """Makes these outputs for all views of all images.

    The outputs for an image depend, by rounding, on the size of the batch and the image's place in it. So batches are of the
    training's size and begin at the same rows, also after a kill: the files are the same, bit for bit.
    """
    variation, size = config.augmentation, config.data.batch_size
    views, seed = variation.pop("views"), variation.pop("view_seed")
    rows, start = len(data) * views, min(file.rows_there for file in files.values()) // size * size

    @tf.function
    def wanted(images: tf.Tensor) -> dict[str, tf.Tensor]:
        with fused_batchnorm(teacher.extractor.model):
            outputs = teacher.outputs(images)
        return {name: output for name, output in zip(teacher.extractor.outputs, outputs, strict=True) if name in files}

    def load(row: tf.Tensor) -> dict[str, tf.Tensor]:
        row = tf.minimum(row, rows - 1)  # the last batch is filled up
        return data.load_views(row // views, row % views, seed=seed, **variation)

    batches = -(-(rows - start) // size)
    order = tf.data.Dataset.range(start, start + batches * size).batch(size, drop_remainder=True)
    with contextlib.ExitStack() as stack:
        takers = {name: stack.enter_context(file.growing(start)) for name, file in files.items()}
        for batch in order.map(load, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE):
            outputs = wanted(batch["images"])
            for name, take in takers.items():
                take(outputs[name].numpy()[: rows - start])
            start = min(rows, start + size)
            report({"teacher outputs made": start / rows})


def _reason_against(config: Config, mixup: float) -> str:
    """Why the teacher does not see the same images again; empty where it does."""
    if isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy):
        return "several workers would write one file"
    if config.teacher.batchnorm == "training":
        return "teacher.batchnorm=training takes the statistics of each batch"
    if mixup:
        return "train.mixup mixes images anew at every step"
    if config.augmentation["views"] is None:
        return "images are varied anew at every step unless data.views is a number"
    return ""
