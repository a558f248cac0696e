"""Data sets of TensorFlow Datasets: a small one is written to disk and read back; nothing is downloaded."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Images, Source
from dfa_tf.images.tfds_reader import DiskPixels, find, read

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (12, 6, 5, 3)).astype(np.uint8)
CLASSES = np.arange(12) % 3
MANY = RANDOM.integers(0, 256, (50, 3, 2, 1)).astype(np.uint8)


def store(
    directory: Path, name: str, images: list[np.ndarray], shape: tuple[int | None, ...] = (6, 5, 3), label: object = None
) -> tfds.core.DatasetBuilder:
    """Writes a data set of PNG images: the first eight are its training set, the last four its test set."""

    def part(chosen: slice) -> tf.data.Dataset:
        pairs = list(zip(images, CLASSES.tolist(), strict=True))[chosen]
        signature = {"image": tf.TensorSpec(shape, tf.uint8), "label": tf.TensorSpec([], tf.int64), "extra": tf.TensorSpec([], tf.int64)}
        return tf.data.Dataset.from_generator(
            lambda: ({"image": image, "label": kind, "extra": 7} for image, kind in pairs), output_signature=signature
        )

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape),
            "label": label or tfds.features.ClassLabel(names=["ash", "elm", "oak"]),
            "extra": tfds.features.Scalar(np.int64),
        }
    )
    return tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=features,
        split_datasets={"train": part(slice(8)), "test": part(slice(8, None))},
        data_dir=directory,
        disable_shuffling=True,
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data_sets")
    store(folder, "trees", list(COLOURS))
    store(folder, "leaves", [COLOURS[i][: 4 + i % 3] for i in range(12)], shape=(None, None, 3))
    store(folder, "unlabelled", list(COLOURS), label=tfds.features.Scalar(np.int64))
    return folder


def everything(images: Images) -> np.ndarray:
    """All pixels in memory."""
    return images.pixels[np.arange(len(images))]


def trees(directory: Path, **options: object) -> Source:
    return plugins.build("data", "tfds", dataset="trees", data_dir=str(directory), **options)


def test_images_and_classes_are_read_unchanged(directory: Path) -> None:
    source = trees(directory)
    np.testing.assert_array_equal(everything(source.train), COLOURS[:8])
    np.testing.assert_array_equal(everything(source.test), COLOURS[8:])
    np.testing.assert_array_equal(source.train.labels, CLASSES[:8])
    np.testing.assert_array_equal(source.test.labels, CLASSES[8:])
    assert (everything(source.train).dtype, source.train.labels.dtype) == (np.uint8, np.int32)
    assert list(source.class_names) == ["ash", "elm", "oak"]
    assert "trees" in source.description


def test_a_prepared_set_is_read_without_a_download_also_from_a_read_only_directory(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: tfds.core.DatasetBuilder, **options: object) -> None:
        raise AssertionError("it is there already")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
    folders = [directory, *(path for path in directory.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert len(trees(directory).train.labels) == 8
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_splits_are_chosen_by_their_tfds_names(directory: Path) -> None:
    source = trees(directory, train="train[:5]", test="train[5:]")
    np.testing.assert_array_equal(everything(source.train), COLOURS[:5])
    np.testing.assert_array_equal(everything(source.test), COLOURS[5:8])


def test_images_of_several_sizes_are_resized_where_a_size_is_given(directory: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"leaves/1.0.0 must have one size: set data.options.image_size, as \[64, 64\]. Received: shape \(None, None, 3\)",
    ):
        plugins.build("data", "tfds", dataset="leaves", data_dir=str(directory))
    source = plugins.build("data", "tfds", dataset="leaves", data_dir=str(directory), image_size=[6, 5])
    assert source.train.pixels.shape == (8, 6, 5, 3)
    np.testing.assert_array_equal(everything(source.train)[2], COLOURS[2])  # of 6x5 already
    assert not np.array_equal(*everything(source.train)[:2])


def test_resizing_averages_the_pixels_that_a_pixel_covers(directory: Path) -> None:
    flat = [np.full((4, 4, 3), 10 * i, np.uint8) for i in range(12)]
    flat[0][:2] = 200
    builder = store(directory, "flat", flat, shape=(4, 4, 3))
    pixels = everything(read(builder, image_size=(2, 4)).train)
    # The antialiased bilinear kernel spans four rows at half the size, with weights 1, 3, 3, 1 of 8, cut off at the border: 7 = 3 + 3 + 1.
    np.testing.assert_allclose(pixels[0, :, 0, 0], [200 * 6 / 7, 200 * 1 / 7], atol=0.51)
    assert (pixels[3] == 30).all()


def test_grey_images_that_are_not_square_stay_as_they_are(directory: Path) -> None:
    store(directory, "grey", list(COLOURS[..., :1]), shape=(6, 5, 1))
    source = plugins.build("data", "tfds", dataset="grey", data_dir=str(directory))
    np.testing.assert_array_equal(everything(source.train), COLOURS[:8, ..., :1])
    assert len(source.mean) == 1
    resized = plugins.build("data", "tfds", dataset="grey", data_dir=str(directory), image_size=[3, 7])
    assert resized.test.pixels.shape == (4, 3, 7, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs data.options.dataset, the name of a data set, for example svhn_cropped. Received: None"),
        ({"dataset": "treees"}, "unknown TFDS data set. Received: 'treees'. Did you mean 'trees'"),
        ({"dataset": "trees", "image_size": [6]}, r"image_size must be height and width, .* Received: \[6\]"),
        ({"dataset": "not a name"}, "a TFDS data set must have a name like .* Received: 'not a name'"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, object], message: str, directory: Path) -> None:
    with pytest.raises(UserError, match=message):
        plugins.build("data", "tfds", data_dir=str(directory), **options)


def test_images_of_sixteen_bits_are_refused(directory: Path) -> None:
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(2, 2, 1), dtype=np.uint16), "label": tfds.features.ClassLabel(num_classes=2)}
    )
    data = tf.data.Dataset.from_tensors({"image": np.full((2, 2, 1), 300, np.uint16), "label": np.int64(0)})
    builder = tfds.dataset_builders.store_as_tfds_dataset(
        name="deep", version="1.0.0", features=features, split_datasets={"train": data, "test": data}, data_dir=directory
    )
    with pytest.raises(UserError, match=r"8 bits and one number of channels. Received: shape \(2, 2, 1\) of uint16 in deep/1.0.0"):
        read(builder)


def test_statistics_are_measured_on_the_training_set_unless_given(directory: Path) -> None:
    source = trees(directory)
    np.testing.assert_allclose(source.mean, COLOURS[:8].mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(source.std, COLOURS[:8].std(axis=(0, 1, 2)))
    given = read(find("trees", directory), mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])
    assert (given.mean, given.std) == ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])


def test_an_unknown_data_set_is_refused_with_the_nearest_name(directory: Path) -> None:
    with pytest.raises(UserError, match="unknown TFDS data set. Received: 'cifr100'. Did you mean 'cifar100'"):
        find("cifr100", directory)


def test_an_unknown_split_is_refused(directory: Path) -> None:
    with pytest.raises(UserError, match="unknown split of trees/1.0.0. Received: 'tset'. Did you mean 'test'"):
        trees(directory, test="tset")


def test_a_data_set_without_classes_is_refused(directory: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"Received: unlabelled/1.0.0 with 0 of ClassLabel, its features are .*image \(Image\), .*label \(Scalar\)",
    ):
        plugins.build("data", "tfds", dataset="unlabelled", data_dir=str(directory))


def test_a_set_that_cannot_be_prepared_names_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(self: tfds.core.DatasetBuilder, **options: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", unreachable)
    (tmp_path / "mnist").mkdir()
    with pytest.raises(UserError, match=r"is not prepared in .*: set data.data_dir to .*; .* has mnist. ConnectionError: no route"):
        plugins.build("data", "cifar100", data_dir=str(tmp_path))


def test_cifar_100_takes_the_author_s_statistics_or_its_own(directory: Path) -> None:
    with pytest.raises(UserError, match="unknown statistics. Received: 'cifar'. Did you mean 'cifar10' or 'cifar100'"):
        plugins.build("data", "cifar100", data_dir=str(directory), statistics="cifar")


# Pixels in a temporary file


def test_images_are_read_by_index_in_any_order_and_more_than_once() -> None:
    pixels = DiskPixels(50, (3, 2, 1))
    pixels.append(MANY[:30])
    pixels.append(MANY[30:])
    order = np.array([49, 0, 7, 7, 30])
    assert pixels.shape == (50, 3, 2, 1)
    np.testing.assert_array_equal(pixels[order], MANY[order])
    assert pixels[order].dtype == np.uint8
    assert pixels[order[:0]].shape == (0, 3, 2, 1)


def test_images_that_were_read_belong_to_the_caller() -> None:
    pixels = DiskPixels(50, (3, 2, 1))
    pixels.append(MANY)
    pixels[np.arange(50)][:] = 0
    np.testing.assert_array_equal(pixels[np.arange(50)], MANY)


def test_memory_does_not_grow_with_the_images() -> None:
    part = np.zeros((100, 32, 32, 3), np.uint8)
    tracemalloc.start()
    pixels = DiskPixels(5000, part.shape[1:])
    for _ in range(50):
        pixels.append(part)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < part.nbytes
    assert pixels[np.array([4999])].shape == (1, 32, 32, 3)
