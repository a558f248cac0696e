"""What networks answer: counts and the hardest classes by hand, and the file that keeps them."""

import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from handmade import LABELS, NAMES, PICTURED, predictions

from dfa_tf.errors import UserError
from dfa_tf.images.splits import Images, Split
from dfa_tf.reporting import predictions as module
from dfa_tf.reporting.predictions import Answers, Predictions, RecordingPredictor


def test_a_listener_passes_logits_on_and_keeps_the_answers() -> None:
    # The softmax of (0, ln 3) is (1/4, 3/4).
    logits = iter([[[0.0, math.log(3)], [0.0, 0.0]], [[math.log(3), 0.0]]])
    recording = RecordingPredictor(lambda images: tf.constant(next(logits)), np.array([0, 1, 1]))
    passed = recording(tf.zeros((2, 4, 4, 1)))
    np.testing.assert_allclose(passed, [[0, math.log(3)], [0, 0]], rtol=1e-6)
    recording(tf.zeros((1, 4, 4, 1)))
    predicted, probability = recording.answers
    assert predicted.tolist() == [1, 0, 0]
    np.testing.assert_allclose(probability, [0.25, 0.5, 0.25], rtol=1e-3)
    assert probability.dtype == np.float16


def test_confusions_are_counted_by_true_and_predicted_class() -> None:
    assert predictions().confusion("dfa").tolist() == [[3, 1, 0], [2, 1, 1], [0, 0, 2]]


def test_the_hardest_classes_come_first_with_their_surest_mistakes() -> None:
    dog, cat = predictions().hardest("dfa")
    assert dog[:3] == (1, 4, 0.25)
    assert dog.taken_for == [(0, 2), (2, 1)]
    assert dog.mistakes == [6, 5, 4], "of images 4, 5 and 6 the last one leaves least to its own class"
    assert cat == (0, 4, 0.75, [(1, 1)], [3])


def test_a_network_without_mistakes_has_no_hard_class() -> None:
    assert predictions().hardest("teacher") == []


def test_few_classes_and_few_pictures_of_each_are_looked_at() -> None:
    labels = np.repeat(np.arange(8), 10)
    wrong = Predictions(list("abcdefgh"), labels, {"kd": Answers((labels + 1) % 8, np.zeros(80, np.float16))}, {})
    assert [(hard.number, len(hard.mistakes)) for hard in wrong.hardest("kd")] == [(number, 6) for number in range(5)]


def test_pictures_are_of_the_students_mistakes() -> None:
    pixels = np.arange(10, dtype=np.uint8)[:, np.newaxis, np.newaxis, np.newaxis] * np.ones((10, 4, 4, 3), np.uint8)
    split = Split(Images(np.concatenate([np.full((1, 4, 4, 3), 99, np.uint8), pixels]), np.concatenate([[0], LABELS])), np.arange(1, 11))
    kept = Predictions.of(split, NAMES, {name: predictions().answers[name] for name in ("teacher", "dfa")})
    assert {place: picture.max() for place, picture in kept.pictures.items()} == {3: 3, 4: 4, 5: 5, 6: 6}
    assert kept.labels.tolist() == LABELS.tolist()


def test_a_large_picture_is_reduced_and_keeps_its_aspect() -> None:
    split = Split(Images(np.zeros((2, 300, 150, 1), np.uint8), np.array([0, 1])), np.arange(2))
    kept = Predictions.of(split, ["a", "b"], {"kd": Answers(np.array([1, 1]), np.zeros(2, np.float16))})
    assert [picture.shape for picture in kept.pictures.values()] == [(96, 48)]


def test_what_is_saved_is_loaded_and_is_small(tmp_path: Path) -> None:
    predictions().save(path := tmp_path / "predictions.npz")
    loaded = Predictions.load(path)
    assert list(loaded.class_names) == list(NAMES)
    assert loaded.labels.tolist() == LABELS.tolist()
    for name, (predicted, probability) in predictions().answers.items():
        assert loaded.answers[name].predicted.tolist() == predicted.tolist()
        assert loaded.answers[name].probability.tolist() == probability.tolist()
    assert {place: int(picture[0, 0]) for place, picture in loaded.pictures.items()} == PICTURED
    with np.load(path) as file:
        assert {file[name].dtype for name in ("labels", "predicted/dfa")} == {np.dtype(np.uint8)}


def test_without_mistakes_no_picture_is_kept(tmp_path: Path) -> None:
    right = Predictions(["a", "b"], np.array([0, 1]), {"kd": Answers(np.array([0, 1]), np.ones(2, np.float16))}, {})
    right.save(path := tmp_path / "predictions.npz")
    assert Predictions.load(path).pictures == {}


def changed(**arrays: object) -> Callable[[Path], None]:
    """Replaces arrays of the file; those that are None are left out."""

    def change(path: Path) -> None:
        with np.load(path) as file:
            content = dict(file) | {name.replace("_of_", "/"): value for name, value in arrays.items()}
        np.savez(path, **{name: value for name, value in content.items() if value is not None})

    return change


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    """Damages the content of one member."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("labels.npy").header_offset
    content[place + 60 : place + 90] = bytes(30)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_bytes(b""), "whole"),
        (lambda path: path.write_text("of someone else"), "whole"),
        (cut, "whole"),
        (flipped, "whole"),
        (changed(labels=None), "labels"),
        (changed(schema=np.array(2)), "must have the schema 1. Received: 2"),
        (changed(labels=np.array([3] * 10)), "classes beyond 0 to 2"),
        (changed(predicted_of_dfa=np.array([-1] * 10)), "classes beyond 0 to 2"),
        (changed(predicted_of_dfa=np.zeros(9, int)), "answers of dfa for another number of images than 10"),
        (changed(probability_of_dfa=np.full(10, np.nan)), "probabilities of dfa beyond 0 to 1"),
        (changed(probability_of_dfa=np.full(10, 1.5)), "probabilities of dfa beyond 0 to 1"),
        (changed(probability_of_dfa=None), "probability/dfa"),
        (changed(class_names=np.array([{}], object)), "allow_pickle"),
        (changed(pictures=np.zeros((4, 8))), "pictures that are none"),
        (changed(pictured=np.array([1])), "zip()"),
    ],
)
def test_a_file_that_is_damaged_is_refused(damage: Callable[[Path], object], told: str, tmp_path: Path) -> None:
    predictions().save(path := tmp_path / "predictions.npz")
    damage(path)
    with pytest.raises(UserError) as caught:
        Predictions.load(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIZE_LIMIT", 1000)
    predictions().save(path := tmp_path / "predictions.npz")
    with pytest.raises(UserError, match="must have at most 1000 bytes of arrays"):
        Predictions.load(path)
