"""The answers of a run's networks on the test set, which the evaluation keeps for the confusion matrix and the hardest classes."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from dfa_tf.display.figures import pixels_shown
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Split
from dfa_tf.storage.files import atomic
from dfa_tf.storage.reading import open_regular
from dfa_tf.training.evaluation import Predictor

SCHEMA = 1
"""Of `predictions.npz`."""
SIZE_LIMIT = 1 << 28
"""Most bytes of the arrays of `predictions.npz`."""
HARDEST, PICTURES = 5, 6
"""Classes that are shown, and pictures of each."""
_SIDE = 96  # most pixels of a kept picture


class Answers(NamedTuple):
    """The answers of a network.

    Attributes:
        predicted: the class on top, integers `[n]`.
        probability: of the image's own class, 0..1, float16 `[n]`.
    """

    predicted: np.ndarray
    probability: np.ndarray


class HardClass(NamedTuple):
    """A class that a network is often wrong about.

    Attributes:
        number: of the class.
        images: how many there are.
        accuracy: share of them that are classified rightly, 0..1.
        taken_for: the classes that they are taken for and how often, the most frequent first.
        mistakes: positions in the test set of wrong answers, the surest ones first.
    """

    number: int
    images: int
    accuracy: float
    taken_for: list[tuple[int, int]]
    mistakes: list[int]


class RecordingPredictor:
    """A predictor that calls another one and keeps its answers.

    Args:
        predict: raw pixels to logits.
        classes: of the images that it will be given, in their order, integers `[n]`.
    """

    def __init__(self, predict: Predictor, classes: np.ndarray) -> None:
        self._predict, self._classes = predict, classes
        self._parts: list[Answers] = []
        self._seen = 0

    def __call__(self, images: tf.Tensor) -> tf.Tensor | np.ndarray:
        """Raw pixels, float32 `[B, H, W, C]`, to logits `[B, num_classes]`."""
        logits = self._predict(images)
        probabilities = tf.nn.softmax(tf.cast(logits, tf.float32)).numpy()
        own = self._classes[self._seen : self._seen + len(probabilities)]
        self._seen += len(probabilities)
        probability = np.take_along_axis(probabilities, own[:, np.newaxis].astype(np.int64), axis=1)[:, 0]
        self._parts.append(Answers(probabilities.argmax(axis=1), probability.astype(np.float16)))
        return logits

    @property
    def answers(self) -> Answers:
        """The answers so far."""
        return Answers(*(np.concatenate(columns) for columns in zip(*self._parts, strict=True)))


@dataclass(frozen=True)
class Predictions:
    """The answers of several networks on one test set.

    Attributes:
        class_names: K names.
        labels: the class of each test image, integers `[n]`.
        answers: by network: `"teacher"`, or the name of the student's directory.
        pictures: of some images that a student has classified wrongly, by position in the test set, as a screen shows them:
            uint8 `[h, w]` or `[h, w, 3]`, reduced to at most 96 pixels a side.
    """

    class_names: Sequence[str]
    labels: np.ndarray
    answers: Mapping[str, Answers]
    pictures: Mapping[int, np.ndarray]

    @classmethod
    def of(cls, test: Split, class_names: Sequence[str], answers: Mapping[str, Answers]) -> "Predictions":
        """The answers with pictures of the hardest classes of each student.

        Args:
            test: the test set.
            class_names: of the data.
            answers: by network.
        """
        bare = cls(class_names, test.classes, answers, {})
        students = [name for name in answers if name != "teacher"]
        wanted = sorted({place for name in students for hard in bare.hardest(name) for place in hard.mistakes})
        pictures = dict(zip(wanted, map(_reduced, test.images.pixels[test.indices[wanted]]), strict=True)) if wanted else {}
        return cls(class_names, test.classes, answers, pictures)

    def confusion(self, name: str) -> np.ndarray:
        """How many images of each class (row) a network takes for each class (column), integers `[K, K]`."""
        counts: np.ndarray = tf.math.confusion_matrix(
            self.labels, self.answers[name].predicted, len(self.class_names), dtype=tf.int64
        ).numpy()
        return counts

    def hardest(self, name: str) -> list[HardClass]:
        """The classes that a network is most often wrong about, the least accuracy first; at most `HARDEST`."""
        counts, answers = self.confusion(name), self.answers[name]
        images, wrong = counts.sum(axis=1), counts.sum(axis=1) - counts.diagonal()
        shares = wrong / np.maximum(images, 1)
        found = []
        for number in [int(each) for each in np.argsort(-shares, kind="stable")[:HARDEST] if wrong[each]]:
            places = np.flatnonzero((self.labels == number) & (answers.predicted != number))
            surest = places[np.argsort(answers.probability[places], kind="stable")][:PICTURES]
            others = [int(each) for each in np.argsort(-counts[number], kind="stable") if each != number and counts[number, each]]
            taken_for = [(other, int(counts[number, other])) for other in others]
            found.append(HardClass(number, int(images[number]), 1 - float(shares[number]), taken_for, surest.tolist()))
        return found

    def save(self, path: Path) -> None:
        """Writes `predictions.npz` atomically: small integers, and probabilities in float16."""
        small = np.min_scalar_type(len(self.class_names))
        arrays: dict[str, Any] = {
            "schema": np.array(SCHEMA),
            "class_names": np.array(list(self.class_names)),
            "labels": self.labels.astype(small),
        }
        for name, (predicted, probability) in self.answers.items():
            arrays |= {f"predicted/{name}": predicted.astype(small), f"probability/{name}": probability}
        arrays["pictured"] = np.array(list(self.pictures), np.int64)
        arrays["pictures"] = np.array(list(self.pictures.values()), np.uint8)
        with atomic(path) as temporary:
            np.savez_compressed(temporary, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Reads `predictions.npz`.

        Raises:
            UserError: if it is none, is damaged, too large, or of a newer schema.
        """
        try:
            with open_regular(path) as content:
                with zipfile.ZipFile(content) as archive:
                    if (size := sum(member.file_size for member in archive.infolist())) > SIZE_LIMIT:
                        raise UserError(f"{path} must have at most {SIZE_LIMIT} bytes of arrays. Received: {size}")
                content.seek(0)
                with np.load(content, allow_pickle=False) as file:
                    arrays = dict(file)
            if arrays["schema"] != SCHEMA:
                raise UserError(f"{path} must have the schema {SCHEMA}. Received: {arrays['schema']}, of another version of dfa_tf")
            names = [name.removeprefix("predicted/") for name in arrays if name.startswith("predicted/")]
            answers = {name: Answers(arrays[f"predicted/{name}"].astype(np.int64), arrays[f"probability/{name}"]) for name in names}
            pictures = dict(zip(arrays["pictured"].tolist(), arrays["pictures"], strict=True))
            predictions = cls(list(map(str, arrays["class_names"])), arrays["labels"].astype(np.int64), answers, pictures)
            predictions._check()
        except UserError:
            raise
        except (
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            EOFError,
            OSError,
            NotImplementedError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise UserError(f"{path} must be the answers that an evaluation keeps, and whole. Received: {error}") from None
        return predictions

    def _check(self) -> None:
        """Raises ValueError unless everything is of one size, and in its range."""
        count, classes = len(self.labels), len(self.class_names)
        for name, (predicted, probability) in self.answers.items():
            if predicted.shape != (count,) or probability.shape != (count,):
                raise ValueError(f"answers of {name} for another number of images than {count}")
            if not (probability >= 0).all() or not (probability <= 1).all():
                raise ValueError(f"probabilities of {name} beyond 0 to 1")
        for numbers in (self.labels, *(predicted for predicted, _ in self.answers.values())):
            if not count or numbers.min() < 0 or numbers.max() >= classes:
                raise ValueError(f"classes beyond 0 to {classes - 1}")
        if any(picture.dtype != np.uint8 or picture.ndim not in (2, 3) for picture in self.pictures.values()):
            raise ValueError("pictures that are none")


def _reduced(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(pixels_shown(image))
    picture.thumbnail((_SIDE, _SIDE))
    return np.asarray(picture)
