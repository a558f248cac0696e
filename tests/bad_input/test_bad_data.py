"""Data sets that are damaged, that hold something else, or that are too small."""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from mistakes import Mistake, text

from dfa_tf.storage.reading import JSON_LIMIT

TRAIN = "trees-train.tfrecord-00000-of-00001"


@functools.cache
def folder_of_data_sets() -> tempfile.TemporaryDirectory[str]:
    """Data sets of eight training and four test images of 8x8x1, as TFDS keeps them; removed when the process ends."""
    folder = tempfile.TemporaryDirectory()
    kinds = tfds.features.ClassLabel(names=["ash", "elm"])
    for name, label, dtype, feature in (
        ("trees", lambda i: i % 2, np.uint8, kinds),
        ("alone", lambda i: 0, np.uint8, kinds),
        ("one", lambda i: 0, np.uint8, tfds.features.ClassLabel(names=["ash"])),
        ("floats", lambda i: i % 2, np.float32, kinds),
        ("numbers", lambda i: i % 2, np.uint8, tfds.features.Scalar(np.int64)),
    ):
        store(folder.name, name, label, dtype, feature)
    return folder


def store(folder: str, name: str, label: Callable[[int], int], dtype: type, feature: object) -> None:
    def part(count: int) -> tf.data.Dataset:
        images = tf.fill([count, 8, 8, 1], tf.constant(np.nan if dtype is np.float32 else 7, dtype))
        return tf.data.Dataset.from_tensor_slices({"image": images, "label": tf.constant([label(i) for i in range(count)], tf.int64)})

    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(8, 8, 1), dtype=dtype), "label": feature}),
        split_datasets={"train": part(8), "test": part(4)},
        data_dir=folder,
        disable_shuffling=True,
    )


TFDS = "--workdir=INPUT/run --set data.name=tfds --set data.data_dir=INPUT/data --set data.batch_size=2 --set data.options.dataset="


def stored(flags: str, told: str, damage: Callable[[Path], object] = lambda folder: None) -> Mistake:
    """A data set by its name, and further flags; what it is damaged by is given the folder of `trees`."""

    def write(folder: Path) -> None:
        shutil.copytree(folder_of_data_sets().name, folder / "data")
        damage(folder / "data" / "trees" / "1.0.0")

    return Mistake(f"{TFDS}{flags}", told, write=write)


def trees(told: str, damage: Callable[[Path], object]) -> Mistake:
    return stored("trees", told, damage)


def replaced(name: str, old: str, new: str) -> Callable[[Path], object]:
    """Damage: another text in a file, where it holds this one."""

    def damage(folder: Path) -> None:
        content = (folder / name).read_text(encoding="utf-8")
        assert old in content
        (folder / name).write_text(content.replace(old, new), encoding="utf-8")

    return damage


def cut(name: str, length: int) -> Callable[[Path], object]:
    """Damage: only the first bytes of a file are left."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


def flip(folder: Path) -> None:
    content = bytearray((folder / TRAIN).read_bytes())
    content[40] ^= 255
    (folder / TRAIN).write_bytes(content)


def example(**features: object) -> Callable[[Path], object]:
    """Damage: the first record says something else, and its checksum is right."""

    def damage(folder: Path) -> None:
        records = [tf.train.Example.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(folder / TRAIN))]
        for name, value in features.items():
            kind = records[0].features.feature[name]
            (kind.bytes_list if isinstance(value, bytes) else kind.int64_list).value[:] = [value]
        with tf.io.TFRecordWriter(str(folder / TRAIN)) as writer:
            for record in records:
                writer.write(record.SerializeToString())

    return damage


IMAGE = "tensorflow_datasets.core.features.image_feature.Image"
DAMAGED, UNREAD = "trees/1.0.0 is damaged: prepare it anew in ", "the TFDS data set 'trees' cannot be read in "
NAMED = "a TFDS data set must have a name like 'cifar100' or 'imagenette/160px-v2:1.0.0'. Received: "
SIZE = "image_size must be height and width, 1 to 4096 pixels each, as [64, 64]. Received: "
BATCH = "data.batch_size must not exceed the "
MIRRORED = "--workdir=INPUT/run --set strategy=mirrored"
ARCHIVE = "--workdir=INPUT/run --set data.name=cinic10 --set data.data_dir=INPUT/data --set data.options.archive=INPUT/a.tar.gz"
MISTAKES = [
    trees(f"{DAMAGED} ... DataLossError: truncated record", cut(TRAIN, -10)),
    trees(f"{DAMAGED} ... DataLossError: corrupted record", flip),
    trees(f"{DAMAGED} ... DataLossError: ", text(TRAIN, "no records at all, of some length")),
    trees(f"{DAMAGED} ... expected to contain 8 elements but contained only 0 elements", text(TRAIN, "")),
    trees(f"{DAMAGED} ... NotFoundError", lambda folder: (folder / TRAIN).unlink()),
    trees(f"{DAMAGED} ... InvalidArgumentError", example(image=b"\x89PNG\r\n\x1a\n cut off")),
    trees(f"{DAMAGED} ... InvalidArgumentError", example(image=b"")),
    trees(f"{DAMAGED} ... InvalidArgumentError", example(image=b"GIF89a")),
    trees("labels must be 0 to 1, one for each class name. Received: 0 to 99", example(label=99)),
    trees("labels must be 0 to 1, one for each class name. Received: -1 to 1", example(label=-1)),
    trees(f"{DAMAGED} ... expected to contain 9 elements but contained only 8", replaced("dataset_info.json", '"8"', '"9"')),
    trees(f"{DAMAGED} ... expected to contain 7 elements but contained at least 8", replaced("dataset_info.json", '"8"', '"7"')),
    trees(f"{UNREAD} ... ParseError", text("dataset_info.json", "")),
    trees(f"{UNREAD} ... ParseError", cut("dataset_info.json", 100)),
    trees("the features of a TFDS data set must be JSON. Received: ", text("features.json", "{")),
    trees("the features of a TFDS data set must be JSON. Received: ", text("features.json", "[" * 100_000)),
    trees(f"the features of a TFDS data set must have at most {JSON_LIMIT} bytes", text("features.json", " " * (JSON_LIMIT + 1))),
    trees("features of a TFDS data set must be of TFDS. Received: 'this.Image' in ", replaced("features.json", IMAGE, "this.Image")),
    trees(f"{UNREAD} ... Error", replaced("features.json", IMAGE, "tensorflow_datasets.core.no_such_module.Image")),
    trees(f"{UNREAD} ... Error", text("features.json", "[]")),
    stored("tree", "unknown TFDS data set. Received: 'tree'."),
    stored("huggingface:mnist", f"{NAMED}'huggingface:mnist'"),
    stored("../../etc", f"{NAMED}'../../etc'"),
    stored("trees:2.0.0", "unknown TFDS data set. Received: 'trees:2.0.0'"),
    stored("trees --set data.options.test=tset", "unknown split of trees/1.0.0. Received: 'tset'. Did you mean 'test'"),
    stored("trees --set data.options.train=train[:0]", "unknown split of trees/1.0.0. Received: 'train[:0]'. Did you mean 'train'"),
    stored("trees --set data.options.image_size=big", f"{SIZE}big"),
    stored("trees --set data.options.image_size=[0,8]", f"{SIZE}[0, 8]"),
    stored("trees --set data.options.colour=1", "unknown option of tfds. Received: 'colour'"),
    stored("alone", "the training images must have at least two classes. Received: class 0 alone"),
    stored("one", "there must be two classes or more. Received: ['ash']"),
    stored("floats", "images must have 8 bits and one number of channels. Received: shape (8, 8, 1) of float32 in floats/1.0.0"),
    stored("numbers", "a classification data set must have one Image and one ClassLabel. Received: numbers/1.0.0 with 0 of ClassLabel"),
    stored("trees", "networks must fit the data's num_classes 2. Received: 10 of 'small'"),
    stored("trees --set data.train_limit_per_class=1", "every split needs images of every class"),
    Mistake(f"{TFDS}trees", "unknown TFDS data set. Received: 'trees'", write=text("data", "x")),
    Mistake(f"{TFDS}trees", "unknown TFDS data set. Received: 'trees'"),
    Mistake("--set data.options.colour=1", "unknown option of bundled. Received: 'colour'"),
    Mistake("--workdir=INPUT/run --set data.batch_size=1000", f"{BATCH}40 images of the split. Received: 1000", "run"),
    Mistake("--workdir=INPUT/run --set data.batch_size=1000", f"{BATCH}40 images of the split. Received: 1000", "compare"),
    Mistake("--workdir=INPUT/run --set data.batch_size=41 --set teacher.path=null", f"{BATCH}40 images of the split. Received: 41"),
    Mistake("--set data.batch_size=41 --overwrite", f"{BATCH}40 images of the split. Received: 41"),
    Mistake("--workdir=INPUT/run --set data.batch_size=30", f"{BATCH}20 images of the split. Received: 30", "run"),
    Mistake("--overwrite --set data.crop_padding=8", "data.crop_padding must be smaller than the images, which are 8x8. Received: 8"),
    Mistake("--overwrite --set data.validation_fraction=0.001", "every split needs images of every class"),
    Mistake("--overwrite --set data.search_fraction=0.01", "every split needs images of every class"),
    Mistake(f"{MIRRORED} --set data.batch_size=1", "data.batch_size must be at least the number of replicas, 2. Received: 1", "run"),
    Mistake(ARCHIVE, "the archive of CINIC-10 must be a file. ... a.tar.gz"),
    Mistake(ARCHIVE, "CINIC-10.tar.gz must have 687544992 bytes and the MD5 digest ... Received: 5 bytes", write=text("a.tar.gz", "cinic")),
    Mistake(f"{ARCHIVE} --set data.options.train_split=all", "unknown train_split of cinic10. Received: 'all'"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=[f"{number} {mistake.told[:70]}" for number, mistake in enumerate(MISTAKES)])
def test_data_that_are_damaged_or_do_not_fit_are_refused(mistake: Mistake, refused: Callable[[Mistake], None]) -> None:
    refused(mistake)


def test_features_are_of_the_classes_that_the_table_changes() -> None:
    """The damage above must hit what is there."""
    content = json.loads((Path(folder_of_data_sets().name) / "trees/1.0.0/features.json").read_text(encoding="utf-8"))
    assert content["featuresDict"]["features"]["image"]["pythonClassName"] == IMAGE
