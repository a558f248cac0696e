"""The comparison of exported files with their student: its numbers by hand, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf.export.formats import write
from dfa_tf.export.parity import ACCURACY_IMAGES, COMPARED_IMAGES, STUDENT, check, measure
from dfa_tf.export.runtimes import Classifier, load
from dfa_tf.export.student import Student
from dfa_tf.images.splits import Images, Split, Splits
from dfa_tf.networks.features import FeatureModel


@pytest.fixture(scope="module")
def numbered() -> Split:
    """1,500 images in the order of their classes; the one pixel of an image is 0 for the first half of them, else 200."""
    half = np.repeat([0, 1], 750)
    return Split(Images((200 * half).astype(np.float32).reshape(-1, 1, 1, 1), half.astype(np.int32)), np.arange(1500))


def classifier(dark: tuple[float, float], light: tuple[float, float]) -> Classifier:
    """Gives these probabilities, and their logarithms, to dark and light images."""

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        probabilities = np.where(images.reshape(-1, 1) < 100, [dark], [light])
        return {"probabilities": probabilities, "logits": np.log(probabilities)}

    return Classifier((1, 1, 1), (), run)


def test_agreement_difference_accuracy_and_size_by_hand(numbered: Split, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/graph").write_bytes(b"12345")
    (tmp_path / "model/names").write_bytes(b"123")
    student = classifier((0.9, 0.1), (0.25, 0.75))
    # Says class 0 of everything: agrees on the dark half, is right on it; differs by 0.05 there and by 0.55 on the light one.
    zero = classifier((0.85, 0.15), (0.8, 0.2))
    row = measure({"zero": (tmp_path / "model", zero)}, student, numbered)["zero"]
    assert (row.images, row.accuracy_images) == (COMPARED_IMAGES, ACCURACY_IMAGES) == (256, 1000)
    assert row.agreement == 0.5, "the images are spread over the test set, not its first ones"
    assert row.accuracy == 0.5
    np.testing.assert_allclose(row.max_difference, 0.55, rtol=1e-6)
    assert row.bytes == 8
    assert 0 < row.milliseconds < 1000


def test_the_worse_answer_of_uint8_and_float_pixels_counts(numbered: Split, tmp_path: Path) -> None:
    student = classifier((0.9, 0.1), (0.25, 0.75))
    wrong = classifier((0.1, 0.9), (0.25, 0.75))
    for kind in (np.uint8, np.float32):
        torn = Classifier((1, 1, 1), (), lambda images, kind=kind: (wrong if images.dtype == kind else student).run(images))
        row = measure({"torn": (tmp_path, torn)}, student, numbered)["torn"]
        assert row.agreement == 0.5
        np.testing.assert_allclose(row.max_difference, 0.8, rtol=1e-6)


def test_a_small_test_set_is_taken_whole(numbered: Split, tmp_path: Path) -> None:
    some = Split(numbered.images, np.array([0, 1, 749, 750, 1499]))
    same = classifier((0.9, 0.1), (0.75, 0.25))
    row = measure({"same": (tmp_path, same)}, same, some)["same"]
    assert (row.images, row.accuracy_images, row.agreement, row.max_difference) == (5, 5, 1, 0)
    np.testing.assert_allclose(row.accuracy, 3 / 5)


def test_the_latency_is_of_one_image(numbered: Split, tmp_path: Path) -> None:
    seen: list[int] = []

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(len(images))
        return classifier((0.9, 0.1), (0.75, 0.25)).run(images)

    measure({"watched": (tmp_path, Classifier((1, 1, 1), (), run))}, classifier((0.9, 0.1), (0.75, 0.25)), numbered)
    assert seen.count(1) > 50


def test_files_of_the_student_pass_and_files_of_another_network_are_refused(
    tiny: Callable[..., FeatureModel], splits: Splits, tmp_path: Path
) -> None:
    model, other = tiny(seed=1).model, tiny(seed=2).model
    model.save(tmp_path / "trained.keras")
    (tmp_path / "student.onnx").write_bytes(b"no network")
    paths = {
        "keras": write("keras", Student(model, (), np.zeros([1, 8, 8, 1])), tmp_path / "student.keras"),
        "saved_model": write("saved_model", Student(other, (), np.zeros([1, 8, 8, 1])), tmp_path / "saved_model"),
        "onnx": tmp_path / "student.onnx",
    }
    kept, refused = check(tmp_path / "trained.keras", model, paths, splits.test)
    assert list(kept) == [STUDENT, "keras"]
    assert (kept["keras"].agreement, kept[STUDENT].agreement) == (1, 1)
    assert kept["keras"].max_difference < 1e-6
    assert sorted(refused) == ["onnx", "saved_model"]
    assert "where 100% and 0.0001 are asked for" in refused["saved_model"]
    assert "its runtime cannot run it" in refused["onnx"]


def test_a_difference_within_a_right_class_is_refused_too(tiny: Callable[..., FeatureModel], splits: Splits, tmp_path: Path) -> None:
    model = tiny(seed=1).model
    model.save(tmp_path / "trained.keras")
    dense = model.get_layer("logits")
    dense.set_weights([weights * 1.01 for weights in dense.get_weights()])  # the order of the classes stays
    path = write("keras", Student(model, (), np.zeros([1, 8, 8, 1])), tmp_path / "student.keras")
    original = keras.models.load_model(tmp_path / "trained.keras")
    kept, refused = check(tmp_path / "trained.keras", original, {"keras": path}, splits.test)
    assert list(kept) == [STUDENT]
    assert "agrees with the student on 100.0%" in refused["keras"]


def test_a_numeric_fault_is_never_within_tolerance(tiny: Callable[..., FeatureModel], splits: Splits, tmp_path: Path) -> None:
    model = tiny(seed=1).model
    model.save(tmp_path / "trained.keras")
    pixels = keras.layers.Input((8, 8, 1))
    lost = keras.Model(pixels, model(pixels) * tf.constant(np.nan))
    path = write("saved_model", Student(lost, (), np.zeros([1, 8, 8, 1])), tmp_path / "saved_model")
    assert np.isnan(load(path)(np.zeros([1, 8, 8, 1])).probabilities).all()
    assert list(check(tmp_path / "trained.keras", model, {"saved_model": path}, splits.test)[1]) == ["saved_model"]
