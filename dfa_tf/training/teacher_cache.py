"""The outputs of a frozen teacher on disk: made once, and then read in place of its forward pass.

They pay where the same views of the same images come again and again: in later epochs, methods and seeds. Read back, they agree
with what the teacher would give but for rounding, which depends on an image's place in its batch.
"""

import contextlib
import errno
import functools
import hashlib
import io
import json
import logging
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dfa_tf.config import Config
from dfa_tf.errors import writing
from dfa_tf.images.sources import digest_of
from dfa_tf.images.splits import Split, Splits
from dfa_tf.networks.batchnorm import fused_batchnorm
from dfa_tf.networks.frozen_teacher import FrozenTeacher
from dfa_tf.networks.graph import Graph
from dfa_tf.process.status import doing

_LOG = logging.getLogger(__name__)
_GIB = 1 << 30
_NAME = re.compile(r"[0-9a-f]{32}\.npy(\.part)?")  # of the files
_READERS = 2  # batches that are read at a time: more of them, which may be large, would only fill the memory

Tell = Callable[[dict[str, float]], None]


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
    whole; until then it grows, and what a kill has left of it is gone on with.

    Args:
        folder: of the files; it is made.
        gib: GiB that they may have. To make room, the files that were not used for longest are removed.
    """

    def __init__(self, folder: Path, gib: float) -> None:
        self._folder, self._gib = folder, gib

    def cached_outputs(
        self, teacher: FrozenTeacher, read: Collection[str], splits: Splits, config: Config, *, mixup: float = 0.0, tell: Tell | None = None
    ) -> CachedOutputs | None:
        """The cached outputs of all training images, `splits.train + splits.search`, made as far as they are not there.

        Args:
            teacher: frozen.
            read: names of the outputs that are wanted, as in `Extractor.outputs`.
            splits: the data.
            config: its `data` and `teacher.batchnorm` are read.
            mixup: of the training.
            tell: is told of progress, numbers by name: the share that is made, 0 to 1.

        Returns:
            The cached_outputs; or None, with a warning that says why, where the teacher does not see the same images again, or there
            is no room. None, too, if nothing is wanted.

        Raises:
            UserError: if the folder cannot be written.
        """
        if reason := _reason_against(config, mixup):
            _warn(f"teacher.cache_gib is of no use: {reason}")
            return None
        data, views = splits.train + splits.search, config.augmentation["views"]
        files = {name: _File(path, len(data) * views, output) for name, path, output in self._paths(teacher, read, splits, config)}
        if not files or not self._make_room(files.values()):
            return None
        missing = {name: file for name, file in files.items() if not file.whole}
        try:
            if missing:
                with doing("making the teacher's outputs"):
                    _make(teacher, missing, data, config, tell or (lambda numbers: None))
        except OSError as error:
            for file in missing.values():
                file.remove()
            _warn(f"the teacher's outputs are not kept: {self._folder} cannot take them ({error.strerror})")
            return None
        return CachedOutputs(data, views, {name: file.read() for name, file in files.items()})

    def _paths(self, teacher: FrozenTeacher, read: Collection[str], splits: Splits, config: Config) -> list[tuple[str, Path, Any]]:
        """The outputs with the files that they belong in."""
        network = teacher.extractor.classifier
        data, (graph, places) = splits.train + splits.search, _described(network)
        content = hashlib.sha256(graph.encode())
        for array in (*network.get_weights(), data.indices):
            content.update(array.tobytes())
        content.update((splits.source.digest or digest_of(data.images)).encode())
        about = {
            "data": {**config.stage_fields("plain")["data"], "seed": config.data_seed},
            "devices": sorted({device.device_type for device in tf.config.list_logical_devices()}),
            "versions": {name: version(name) for name in ("tensorflow", "keras")},
        }
        content.update(json.dumps(about, sort_keys=True).encode())
        paths = []
        for name, output in zip(teacher.extractor.outputs, teacher.extractor.model.outputs, strict=True):
            if name in read:
                own = hashlib.sha256(content.digest() + places[id(output)].encode())
                paths.append((name, self._folder / f"{own.hexdigest()[:32]}.npy", output))
        return paths

    def _make_room(self, files: Collection["_File"]) -> bool:
        """Whether there is room for all of these files; others are removed for it."""
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        wanted, missing = sum(file.bytes for file in files), sum(file.bytes - file.bytes_there for file in files)
        needs = f"the teacher's outputs are not kept: they need {wanted / _GIB:.3g} GiB"
        if wanted > self._gib * _GIB:
            _warn(f"{needs}, and teacher.cache_gib is {self._gib:g}")
            return False
        ours = {path for file in files for path in (file.path, file.part)}
        made = (path for path in self._folder.glob("*.npy*") if _NAME.fullmatch(path.name) and _is_file(path))
        others = sorted((path for path in made if path not in ours), key=lambda path: path.stat().st_mtime)
        held, free = sum(path.stat().st_size for path in others), shutil.disk_usage(self._folder).free
        while others and (held + wanted > self._gib * _GIB or missing > free):
            size = others[0].stat().st_size
            others.pop(0).unlink()
            held, free = held - size, free + size
        if missing > free:
            _warn(f"{needs}, and {self._folder} has room for {free / _GIB:.3g}")
            return False
        return True


class _File:
    """A file of one output: whole, growing, or not there."""

    def __init__(self, path: Path, rows: int, output: Any) -> None:
        self.path, self.part = path, path.with_name(f"{path.name}.part")
        self._dtype = np.dtype(tf.as_dtype(output.dtype).as_numpy_dtype)
        header, shape = io.BytesIO(), (rows, *output.shape[1:])
        described = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, described)
        self._header, self._row = header.getvalue(), math.prod(shape[1:]) * self._dtype.itemsize
        self.bytes = len(self._header) + rows * self._row

    @property
    def whole(self) -> bool:
        return _is_file(self.path) and self.path.stat().st_size == self.bytes

    @property
    def bytes_there(self) -> int:
        return self.bytes if self.whole else self.part.stat().st_size if _is_file(self.part) else 0

    @property
    def rows_there(self) -> int:
        return max(0, self.bytes_there - len(self._header)) // self._row

    def read(self) -> np.ndarray:
        """A memory map of all rows."""
        os.utime(self.path)  # was used now
        return np.load(self.path, mmap_mode="r", allow_pickle=False).view(self._dtype)  # of bfloat16 the file knows the size alone

    def remove(self) -> None:
        for path in (self.path, self.part):
            if _is_file(path):
                path.unlink()

    @contextlib.contextmanager
    def growing(self, start: int) -> Any:
        """Yields a function that takes further rows, behind the first ones that are there already; then the file is whole."""
        for path in (self.path, self.part):
            if os.path.lexists(path) and not _is_file(path):
                raise FileExistsError(errno.EEXIST, f"{path.name} is no regular file")
        with open(self.part, "ab", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            file.truncate(len(self._header) + start * self._row if start else 0)
            if not start:
                file.write(self._header)
            yield lambda values: file.write(values.tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.part, self.path)


def _is_file(path: Path) -> bool:
    """Whether there is a file that may be one of a cache: a regular one, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _described(network: keras.Model) -> tuple[str, dict[int, str]]:
    """A network's graph without the names in it, which a process counts up; and by id of a tensor, its place there."""
    nodes = Graph(network).nodes
    places = {id(tensor): f"{number}:{output}" for number, node in enumerate(nodes) for output, tensor in enumerate(node.outputs)}
    lines = []
    for node in nodes:
        called = keras.tree.map_structure(lambda value: places.get(id(value), repr(value)), [node.arguments.args, node.arguments.kwargs])
        config = {**node.operation.get_config(), "name": ""}
        lines.append(json.dumps([type(node.operation).__name__, config, called], sort_keys=True, default=repr))
    return "\n".join(lines), places


def _make(teacher: FrozenTeacher, files: Mapping[str, _File], data: Split, config: Config, tell: Tell) -> None:
    """Makes these outputs for all views of all images.

    What a network gives for an image depends, by rounding, on the size of the batch and the image's place in it. So batches are
    of the training's size, and begin at the same rows whenever a kill comes: the same files are made, bit for bit.
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
            tell({"teacher outputs made": start / rows})


def _reason_against(config: Config, mixup: float) -> str:
    """Why the teacher does not see the same images again; empty where it does."""
    if isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy):
        return "several workers would write one file"
    if config.teacher.batchnorm == "training":
        return "teacher.batchnorm=training takes the statistics of each batch"
    if mixup:
        return "train.mixup mixes images anew at every step"
    if config.augmentation["views"] is None:
        return "images are varied anew at every step, but for a number of data.views"
    return ""


@functools.cache
def _warn(message: str) -> None:
    """Says it once in a process: many rows and seeds have the same reason."""
    _LOG.warning(message)
