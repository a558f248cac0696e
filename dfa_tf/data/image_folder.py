"""Pictures in a folder for each class."""

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dfa_tf.errors import UserError
from dfa_tf.images.image_files import FORMATS, PictureFiles, read_picture
from dfa_tf.images.labelled_images import Images, Source
from dfa_tf.images.labels import draw
from dfa_tf.images.sources import check_size, source
from dfa_tf.storage.reading import read_bytes

OWN_IMAGES = True  # the configuration names a folder; only the digest identifies its pictures
TRAIN, TEST, VALIDATION = "train", "test", "validation"

_LOG = logging.getLogger(__name__)
_ALIASES = ("val", "valid")  # of "validation"
_NAMED = 5
_CHUNK = 64


class _Measured(NamedTuple):
    """A picture that could be decoded: its height and width, and the SHA-256 of its file."""

    size: tuple[int, int]
    digest: bytes


@dataclass(frozen=True)
class _Part:
    """The files of a set: their paths, the class of each, `[n]`, and their measurements, None for files that cannot be read."""

    paths: list[Path]
    labels: np.ndarray
    measured: list[_Measured | None]

    def take(self, chosen: np.ndarray) -> "_Part":
        return _Part([self.paths[index] for index in chosen], self.labels[chosen], [self.measured[index] for index in chosen])


def build(
    *,
    data_dir: str | None = None,
    image_size: Sequence[int] | None = None,
    channels: int = 3,
    test_fraction: float = 0.2,
    skip_corrupt: bool = False,
) -> Source:
    """Pictures in a folder for each class: `DIR/train/CLASS/*` and `DIR/test/CLASS/*`, or `DIR/CLASS/*` alone.

    Classes are the sorted names of the folders. PNG, JPEG, BMP, GIF and WebP files are read; hidden files and folders are
    ignored. Each file is decoded once at the start, to find damaged files, and again for each batch that contains it.
    A folder `validation`, `val` or `valid` beside `train` and `test` is the validation split; without `test` it is the test
    set.

    Args:
        data_dir: the folder.
        image_size: height and width to resize pictures to (bilinear, antialiased; proportions are not kept). None is the
            common size of all pictures.
        channels: 3 for colour, 1 for grey; pictures are converted.
        test_fraction: share of the pictures that becomes the test set if there is no folder of test pictures: stratified by
            class, and the same pictures for every seed. 0 up to but not including 1; 0 makes no test set.
        skip_corrupt: leave out files that cannot be read, with a warning that names them; otherwise they are an error.

    Raises:
        UserError: if the folder, its classes, a file or an option is not as described here.
    """
    size = check_size(image_size)
    _check_options(channels, test_fraction, skip_corrupt)
    root = _root(data_dir)
    folders = _sets(root)
    names = _class_names(folders[TRAIN])
    parts = _with_test_set(_read(root, folders, names, skip_corrupt), test_fraction)
    shape = size or _common_size(root, parts.values())
    made = {what: Images(PictureFiles(part.paths, shape, channels), part.labels) for what, part in parts.items()}
    description = f"pictures of {root.resolve().name}"
    return source(
        made[TRAIN],
        made[TEST],
        validation=made.get(VALIDATION),
        class_names=names,
        description=description,
        digest=_digest(root, parts),
    )


def _read(root: Path, folders: Mapping[str, Path], names: Sequence[str], skip_corrupt: bool) -> dict[str, _Part]:
    """The sets of a folder, with all files measured."""
    # All files are listed before the first one is decoded, which takes long: a wrong folder is reported at once.
    listed = {what: _files(folder, names) for what, folder in folders.items()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        measured = {what: _Part(paths, labels, _measured(paths, pool)) for what, (paths, labels) in listed.items()}
    parts = _readable(root, measured, skip_corrupt)
    for what, part in parts.items():
        if empty := sorted(set(range(len(names))) - set(part.labels.tolist())):
            classes = _few(folders[what] / names[label] for label in empty)
            raise UserError(f"class folders must contain pictures. Received: none in {classes}")
    return parts


def _with_test_set(parts: dict[str, _Part], fraction: float) -> dict[str, _Part]:
    """The sets, with a test set drawn from the training set if there is none."""
    if TEST in parts:
        return parts
    train = parts[TRAIN]
    kept, drawn = draw(np.arange(len(train.labels)), train.labels, fraction, 0)
    return parts | {TRAIN: train.take(kept), TEST: train.take(drawn)}


def _check_options(channels: int, test_fraction: float, skip_corrupt: bool) -> None:
    if type(channels) is not int or channels not in (1, 3):
        raise UserError(f"channels of image_folder must be 3 for colour or 1 for grey. Received: {channels!r}")
    if not isinstance(test_fraction, int | float) or not 0 <= test_fraction < 1:
        raise UserError(f"test_fraction of image_folder must be 0 up to but not including 1. Received: {test_fraction!r}")
    if not isinstance(skip_corrupt, bool):
        raise UserError(f"skip_corrupt of image_folder must be true or false. Received: {skip_corrupt!r}")


def _root(data_dir: str | None) -> Path:
    if data_dir is None:
        raise UserError("image_folder needs data.data_dir, a folder with a folder of pictures for each class. Received: none")
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"data.data_dir must be a folder with a folder of pictures for each class. Received: {root}, which is not a folder")
    return root


def _sets(root: Path) -> dict[str, Path]:
    """The folders of class folders: `train`, and if present `test` and `validation`."""
    if not (root / TRAIN).is_dir() or not _folders(root / TRAIN):  # a folder of pictures is a class, also if it is called train
        return {TRAIN: root}
    beside = [name for name in _folders(root) if name != TRAIN]
    held_out = [name for name in beside if name in (VALIDATION, *_ALIASES)]
    if len(held_out) > 1:
        raise UserError(f"{root} must have one folder of validation pictures. Received: {_few(held_out)}")
    if TEST in beside:
        return {what: root / name for what, name in zip((TRAIN, TEST, VALIDATION), (TRAIN, TEST, *held_out), strict=False)}
    if beside and not held_out:
        raise UserError(f"the folder of test pictures beside {root / TRAIN} must be called test. Received: {_few(beside)}")
    return {what: root / name for what, name in zip((TRAIN, TEST), (TRAIN, *held_out), strict=False)}


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _class_names(folder: Path) -> list[str]:
    names = _folders(folder)
    if len(names) < 2:
        raise UserError(f"{folder} must contain a folder of pictures for each class, two or more. Received: {_few(names) or 'no folder'}")
    return names


def _files(folder: Path, names: Sequence[str]) -> tuple[list[Path], np.ndarray]:
    """All files of the class folders in order, and the class of each."""
    if different := sorted(set(_folders(folder)) ^ set(names)):
        raise UserError(
            f"{folder} must have the same class folders as the training set. Received: only one of the two has {_few(different)}"
        )
    paths, labels = [], []
    for label, name in enumerate(names):
        entries = sorted(entry for entry in (folder / name).iterdir() if not entry.name.startswith("."))
        if inner := [entry for entry in entries if entry.is_dir()]:
            raise UserError(
                f"class folders must contain no folders, and sets must be called train and test. Received: the folder {_few(inner)}"
            )
        paths += entries
        labels += [label] * len(entries)
    return paths, np.array(labels, np.int32)


def _measured(paths: Sequence[Path], pool: ThreadPoolExecutor) -> list[_Measured | None]:
    """Decodes and measures each picture; None for those that cannot be decoded."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    return [one for some in pool.map(_measure, chunks) for one in some]


def _measure(paths: Sequence[Path]) -> list[_Measured | None]:
    found: list[_Measured | None] = []
    for path in paths:
        try:
            height, width, _ = read_picture(path).shape
            found.append(_Measured((height, width), hashlib.sha256(read_bytes(path, "a picture")).digest()))
        except UserError:
            found.append(None)
    return found


def _readable(root: Path, parts: Mapping[str, _Part], skip: bool) -> dict[str, _Part]:
    """The sets without the files that cannot be decoded."""
    corrupt = [
        path.relative_to(root)
        for part in parts.values()
        for path, measured in zip(part.paths, part.measured, strict=True)
        if measured is None
    ]
    if not corrupt:
        return dict(parts)
    count = sum(len(part.paths) for part in parts.values())
    message = f"{len(corrupt)} of {count} files in {root} are not readable pictures ({', '.join(FORMATS)}): {_few(corrupt)}"
    if not skip:
        raise UserError(f"{message}. Repair them, or leave them out with data.options.skip_corrupt=true")
    _LOG.warning("%s; they are left out", message)
    return {what: part.take(np.flatnonzero([measured is not None for measured in part.measured])) for what, part in parts.items()}


def _digest(root: Path, parts: Mapping[str, _Part]) -> str:
    """SHA-256 of all pictures and of their places in the folder."""
    sha = hashlib.sha256()
    for what, part in parts.items():
        sha.update(what.encode())
        for path, measured in zip(part.paths, part.measured, strict=True):
            sha.update(b"\n" + os.fsencode(path.relative_to(root)) + b"\0" + (measured.digest if measured else b""))
    return sha.hexdigest()


def _common_size(root: Path, parts: Iterable[_Part]) -> tuple[int, int]:
    sizes = {measured.size for part in parts for measured in part.measured if measured}
    if len(sizes) > 1:
        smallest, largest = (f"{height}x{width}" for height, width in (min(sizes), max(sizes)))
        raise UserError(
            f"the pictures of {root} must have one size: set data.options.image_size, as [64, 64]. "
            f"Received: {len(sizes)} sizes, from {smallest} to {largest} (height x width)"
        )
    return next(iter(sizes))


def _few(names: Iterable[object]) -> str:
    """The first few names, and the number of the others."""
    listed = [str(name) for name in names]
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more
