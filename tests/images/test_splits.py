"""Splits are disjoint, stratified and drawn by seed; batch k depends on the seed and k alone; crops and flips are correct."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from dfa_tf.config import DataConfig
from dfa_tf.errors import UserError
from dfa_tf.images.augmentation import augment
from dfa_tf.images.splits import Images, Source, Split, Splits, split

CLASSES = 3


class CountedPixels:
    """Images that are made when they are read: image i has the value `10 i + row` in each row. Counts reads."""

    def __init__(self, count: int) -> None:
        self.shape = (count, 4, 6, 2)
        self.reads: list[int] = []

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        self.reads.append(len(indices))
        rows = np.arange(4).reshape(1, 4, 1, 1) + 10 * np.asarray(indices).reshape(-1, 1, 1, 1)
        return np.broadcast_to(rows, (len(indices), *self.shape[1:]))


def images(count: int) -> Images:
    return Images(CountedPixels(count), np.arange(count) % CLASSES)


def source(labels: np.ndarray) -> Source:
    train = Images(CountedPixels(len(labels)), labels)
    return Source(train, images(9), class_names=["a", "b", "c"], mean=[1.0, 2.0], std=[3.0, 4.0], description="made up")


def everything(count: int) -> Split:
    return Split(images(count), np.arange(count))


def arrays(batches: tf.data.Dataset, count: int) -> list[dict[str, np.ndarray]]:
    return list(batches.take(count).as_numpy_iterator())


def assert_same(left: list[dict[str, np.ndarray]], right: list[dict[str, np.ndarray]]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for key in ("images", "labels", "index"):
            np.testing.assert_array_equal(one[key], other[key])


# Splits


@pytest.fixture
def parts() -> Splits:
    """60 images, 20 per class: 12 for validation, 24 each for training and search."""
    return split(source(np.arange(60) % CLASSES), DataConfig(search_fraction=0.4, validation_fraction=0.2), seed=0)


def test_splits_are_disjoint_and_together_the_training_set(parts: Splits) -> None:
    together = np.concatenate([parts.train.indices, parts.search.indices, parts.validation.indices])
    assert sorted(together) == list(range(60))
    assert (len(parts.train), len(parts.search), len(parts.validation), len(parts.test)) == (24, 24, 12, 9)
    assert all(part.images is parts.source.train for part in (parts.train, parts.search, parts.validation))
    assert parts.test.images is parts.source.test


def test_splits_are_stratified(parts: Splits) -> None:
    for part in (parts.train, parts.search, parts.validation):
        assert Counter(part.labels.tolist()) == dict.fromkeys(range(CLASSES), len(part) / CLASSES)


def test_splits_are_drawn_by_seed() -> None:
    made = [split(source(np.arange(60) % CLASSES), DataConfig(train_limit_per_class=15), seed=seed) for seed in (0, 0, 1)]
    for name in ("train", "search"):
        first, same, other = (getattr(parts, name).indices for parts in made)
        np.testing.assert_array_equal(first, same)
        assert set(first) != set(other)


def test_the_limit_counts_by_class_before_the_split() -> None:
    labels = np.repeat(np.arange(CLASSES), [40, 30, 20])
    parts = split(source(labels), DataConfig(train_limit_per_class=10), seed=0)
    assert len(parts.validation) == 0
    assert Counter((parts.train + parts.search).labels.tolist()) == dict.fromkeys(range(CLASSES), 10)
    beyond = split(source(labels), DataConfig(train_limit_per_class=1000), seed=0)
    assert len(beyond.train) + len(beyond.search) == 90


def test_the_sum_of_two_splits_is_their_union(parts: Splits) -> None:
    union = parts.train + parts.search
    assert union.indices.tolist() == sorted([*parts.train.indices, *parts.search.indices])
    np.testing.assert_array_equal(union.labels, union.indices % CLASSES)


def test_splits_have_what_a_network_needs(parts: Splits) -> None:
    assert parts.num_classes == CLASSES
    assert parts.class_names == ["a", "b", "c"]
    assert parts.image_shape == (4, 6, 2)
    assert parts.normalisation == {"mean": [1.0, 2.0], "std": [3.0, 4.0]}


@pytest.mark.parametrize(
    ("counts", "config"),
    [
        ([20, 20, 1], DataConfig()),
        ([20, 20, 20], DataConfig(train_limit_per_class=1)),
        ([20, 20, 2], DataConfig(search_fraction=0.1)),
        ([20, 20, 20], DataConfig(search_fraction=0.01)),
        ([20, 20, 2], DataConfig(validation_fraction=0.1)),
    ],
)
def test_a_split_without_a_class_is_refused(counts: list[int], config: DataConfig) -> None:
    with pytest.raises(UserError, match="every split needs images of every class"):
        split(source(np.repeat(np.arange(CLASSES), counts)), config, seed=0)


# Batches


def test_batches_hold_the_images_and_labels_of_their_indices(parts: Splits) -> None:
    for batch in arrays(parts.search.batches(5, seed=0), 6):
        assert (batch["images"].shape, batch["images"].dtype) == ((5, 4, 6, 2), np.float32)
        assert (batch["labels"].dtype, batch["index"].dtype) == (np.int32, np.int64)
        numbers = parts.search.indices[batch["index"]]
        np.testing.assert_array_equal(batch["labels"], numbers % CLASSES)
        np.testing.assert_array_equal(batch["images"], parts.search.images.pixels[numbers])


def test_shapes_are_static_where_they_are_known() -> None:
    spec = everything(10).batches(4, seed=0).element_spec
    assert {name: tuple(tensor.shape) for name, tensor in spec.items()} == {"images": (4, 4, 6, 2), "labels": (4,), "index": (4,)}
    assert tuple(everything(10).once(4).element_spec["images"].shape) == (None, 4, 6, 2)


@pytest.mark.parametrize(("count", "size"), [(12, 4), (11, 4), (4, 4), (5, 1)])
def test_a_pass_takes_no_image_twice_and_leaves_only_a_remainder(count: int, size: int) -> None:
    steps = count // size
    assert everything(count).steps(size) == steps
    batches = arrays(everything(count).batches(size, seed=0), 3 * steps)
    for first in range(0, 3 * steps, steps):
        index = np.concatenate([batch["index"] for batch in batches[first : first + steps]])
        assert len(set(index)) == len(index) == steps * size
        assert set(index) <= set(range(count))


def test_batches_never_end_and_are_shuffled_anew_by_pass_and_seed() -> None:
    one_pass = [tuple(batch["index"]) for batch in arrays(everything(30).batches(30, seed=0), 20)]
    assert len(set(one_pass)) == 20
    assert one_pass[0] != tuple(range(30))
    other = arrays(everything(30).batches(30, seed=1), 1)[0]["index"]
    assert tuple(other) not in one_pass


@pytest.mark.parametrize("start", [0, 1, 2, 3, 7, 8])
def test_batch_k_depends_on_the_seed_and_k_alone(start: int) -> None:
    """14 images in batches of 4 make 3 steps per pass: starts in the first pass, at its end, and later."""
    options = {"seed": 5, "crop_padding": 2, "flip": True}
    whole = arrays(everything(14).batches(4, **options), start + 5)
    assert_same(arrays(everything(14).batches(4, start=start, **options), 5), whole[start:])


def test_the_augmentation_differs_from_batch_to_batch() -> None:
    same_image = Split(images(4), np.full(16, 3))
    batches = arrays(same_image.batches(8, seed=0, crop_padding=3), 4)
    assert len({batch["images"].tobytes() for batch in batches}) == 4


# Views


def by_view(batches: list[dict[str, np.ndarray]], split: Split) -> dict[tuple[int, int], set[bytes]]:
    """The distinct pixels of each view of each image."""
    seen: dict[tuple[int, int], set[bytes]] = {}
    for batch in batches:
        for index, view, image in zip(batch["index"], batch["view"], batch["images"], strict=True):
            seen.setdefault((int(split.indices[index]), int(view)), set()).add(image.tobytes())
    return seen


@pytest.mark.parametrize("how", [{"crop_padding": 2, "flip": True}, {"resized_crop": 0.2}], ids=["crop", "resized"])
def test_a_view_depends_on_the_image_and_the_view_alone(how: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    noise = Images(random.integers(0, 256, (12, 6, 6, 1), np.uint8), np.arange(12) % CLASSES)
    whole, part = Split(noise, np.arange(12)), Split(noise, np.array([1, 4, 5, 10]))
    seen = by_view(arrays(whole.batches(4, seed=0, views=3, view_seed=7, **how), 60), whole)
    assert set(seen) == {(image, view) for image in range(12) for view in range(3)}
    assert all(len(images) == 1 for images in seen.values())
    assert len(set.union(*seen.values())) > 30, "nearly all of the 36 differ"
    others = by_view(arrays(part.batches(2, seed=1, views=3, view_seed=7, **how), 60), part)
    assert len(others) == 12
    assert all(images == seen[key] for key, images in others.items())
    further = by_view(arrays(whole.batches(4, seed=0, views=4, view_seed=7, **how), 60), whole)
    assert all(images == further[key] for key, images in seen.items()), "more views leave those that there were"
    apart = by_view(arrays(whole.batches(4, seed=0, views=3, view_seed=8, **how), 60), whole)
    assert sum(images != apart[key] for key, images in seen.items()) > 18


def test_the_views_of_a_batch_are_drawn_by_seed_and_step() -> None:
    def drawn(seed: int, start: int = 0) -> list[tuple[int, ...]]:
        return [tuple(batch["view"]) for batch in arrays(everything(16).batches(8, seed=seed, start=start, views=2, flip=True), 8)]

    assert drawn(0)[3:] == drawn(0, start=3)[:-3]
    assert len({*drawn(0), *drawn(1)}) > 12
    assert 20 < sum(map(sum, drawn(0))) < 44, "half of 64"


def test_views_are_spread_evenly_over_places_and_mirroring(noise: np.ndarray) -> None:
    """Images of noise, whose windows can be distinguished: 400 images, 9 places, two sides."""
    split = Split(Images(noise, np.arange(400) % CLASSES), np.arange(400))
    (batch,) = arrays(split.batches(400, seed=0, views=1, crop_padding=1, flip=True), 1)
    found: Counter[tuple[tuple[int, int], bool]] = Counter()
    for index, varied in zip(batch["index"], batch["images"].astype(np.uint8), strict=True):
        places = windows(noise[index], 1)
        place = places.get(varied.tobytes())
        found[place or places[np.ascontiguousarray(varied[:, ::-1]).tobytes()], place is None] += 1
    assert len(found) == 18
    assert max(found.values()) < 45, "400 / 18 is 22"


def test_images_that_are_not_varied_are_their_only_view() -> None:
    (batch,) = arrays(everything(10).batches(10, seed=0, views=1), 1)
    np.testing.assert_array_equal(batch["images"][:, 0, 0, 0], 10.0 * batch["index"])
    np.testing.assert_array_equal(batch["view"], np.zeros(10))


def test_augmented_batches_keep_their_labels_and_indices() -> None:
    plain, varied = everything(20).batches(5, seed=3), everything(20).batches(5, seed=3, crop_padding=2, flip=True)
    differ = False
    for one, other in zip(arrays(plain, 4), arrays(varied, 4), strict=True):
        np.testing.assert_array_equal(one["index"], other["index"])
        np.testing.assert_array_equal(one["labels"], other["labels"])
        differ |= (one["images"] != other["images"]).any()
    assert differ


def test_once_covers_all_in_order_and_unchanged() -> None:
    chosen = Split(images(20), np.array([3, 5, 8, 13, 19]))
    batches = list(chosen.once(2).as_numpy_iterator())
    assert [len(batch["index"]) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([batch["index"] for batch in batches]), np.arange(5))
    np.testing.assert_array_equal(np.concatenate([batch["labels"] for batch in batches]), chosen.indices % CLASSES)
    np.testing.assert_array_equal(np.concatenate([batch["images"][:, 0, 0, 0] for batch in batches]), 10.0 * chosen.indices)


def test_an_empty_split_has_no_batches() -> None:
    assert list(Split(images(3), np.arange(0)).once(2)) == []


def test_pixels_are_read_batch_by_batch_when_asked() -> None:
    pixels = CountedPixels(3000)
    labels = np.arange(3000) % CLASSES
    parts = split(Source(Images(pixels, labels), images(9), ["a", "b", "c"], [0.0], [1.0], ""), DataConfig(), seed=0)
    batches = (parts.train + parts.search).batches(3, seed=0, crop_padding=1)
    assert pixels.reads == []
    arrays(batches, 2)
    assert set(pixels.reads) == {3}
    assert 2 <= len(pixels.reads) < 500, "a thousand would be the whole set"


def test_a_batch_larger_than_the_split_is_refused() -> None:
    for call in (lambda: everything(7).steps(8), lambda: everything(7).batches(8, seed=0)):
        with pytest.raises(UserError, match=r"data\.batch_size must not exceed the 7 images of the split\. Received: 8"):
            call()


def test_padding_as_large_as_the_image_is_refused() -> None:
    everything(7).batches(2, seed=0, crop_padding=3)
    with pytest.raises(UserError, match=r"data\.crop_padding must be smaller than the images, which are 4x6\. Received: 4"):
        everything(7).batches(2, seed=0, crop_padding=4)


# Augmentation


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """400 images of noise, 5x4x3: no two windows of one are alike."""
    return np.random.default_rng(0).integers(0, 256, (400, 5, 4, 3), dtype=np.uint8)


def windows(image: np.ndarray, padding: int) -> dict[bytes, tuple[int, int]]:
    """The places of all windows of the reflect-padded image."""
    padded = np.pad(image, [(padding, padding), (padding, padding), (0, 0)], mode="reflect")
    height, width = image.shape[:2]
    places = [(top, left) for top in range(2 * padding + 1) for left in range(2 * padding + 1)]
    return {padded[top : top + height, left : left + width].tobytes(): (top, left) for top, left in places}


@pytest.mark.parametrize("padding", [1, 2])
def test_crops_are_windows_of_the_reflect_padded_image_at_every_place(noise: np.ndarray, padding: int) -> None:
    cropped = augment(tf.constant(noise), seed=(1, 2), crop_padding=padding).numpy()
    places = [windows(image, padding).get(crop.tobytes()) for image, crop in zip(noise, cropped, strict=True)]
    assert None not in places
    assert len(set(places)) == (2 * padding + 1) ** 2


def test_a_flip_mirrors_half_of_the_images_from_left_to_right(noise: np.ndarray) -> None:
    flipped = augment(tf.constant(noise), seed=(1, 2), flip=True).numpy()
    mirrored = (flipped == noise[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (flipped == noise).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 150 < mirrored.sum() < 250


def test_crop_and_flip_are_drawn_independently(noise: np.ndarray) -> None:
    both = augment(tf.constant(noise), seed=(1, 2), crop_padding=1, flip=True).numpy()
    found = set()
    for image, varied in zip(noise, both, strict=True):
        place, mirrored_place = windows(image, 1).get(varied.tobytes()), windows(image, 1).get(varied[:, ::-1].tobytes())
        assert (place is None) != (mirrored_place is None)
        found.add((place or mirrored_place, place is None))
    assert len(found) == 9 * 2


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_augmentation_keeps_shape_type_and_range(noise: np.ndarray, dtype: type) -> None:
    varied = augment(tf.constant(noise.astype(dtype)), seed=(0, 0), crop_padding=2, flip=True).numpy()
    assert (varied.shape, varied.dtype) == (noise.shape, np.dtype(dtype))
    assert varied.min() >= 0
    assert varied.max() <= 255


def test_augmentation_is_a_function_of_the_seed(noise: np.ndarray) -> None:
    def vary(*seed: int) -> np.ndarray:
        return augment(tf.constant(noise), seed=seed, crop_padding=2, flip=True).numpy()

    np.testing.assert_array_equal(vary(1, 2), vary(1, 2))
    for other in ((1, 3), (2, 2), (2, 1)):
        assert (vary(1, 2) != vary(*other)).any()


def test_nothing_asked_for_changes_nothing(noise: np.ndarray) -> None:
    np.testing.assert_array_equal(augment(tf.constant(noise), seed=(1, 2)), noise)


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_without_a_class_name_are_refused(label: int) -> None:
    def images(last: int) -> Images:
        return Images(np.zeros((8, 2, 2, 1), np.uint8), np.array([0, 1, 0, 1, 0, 1, 0, last]))

    for train, test in ((label, 1), (1, label)):
        with pytest.raises(UserError, match=r"labels must be 0 to 1, one for each class name. Received: (-1 to 1|0 to 2)"):
            split(Source(images(train), images(test), ["a", "b"], [0.0], [1.0], ""), DataConfig(), seed=0)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [([], [0, 1], "there must be training images"), ([1, 1], [0], "class 1 alone")],
)
def test_sets_that_nothing_can_be_learned_from_are_refused(train: list[int], test: list[int], message: str) -> None:
    def images(labels: list[int]) -> Images:
        return Images(np.zeros((len(labels), 2, 2, 1), np.uint8), np.array(labels, np.int32))

    with pytest.raises(UserError, match=message):
        split(Source(images(train), images(test), ["a", "b"], [0.0], [1.0], ""), DataConfig(), seed=0)
