"""Compares exported files with their student: each reloaded in its own runtime, all side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from dfa_tf.export.formats import FORMATS
from dfa_tf.export.runtimes import Classifier, load, of_keras
from dfa_tf.images.splits import Split
from dfa_tf.process.status import doing
from dfa_tf.training.evaluation import evaluate, images_per_second

COMPARED_IMAGES = 256
ACCURACY_IMAGES = 1000
REPETITIONS = 51
STUDENT = "student"
"""The row of the student itself, as it was trained, beside those of the formats."""
AS_TRAINED = {"max_difference": 0.25, "agreement": 0.9}
"""Tolerance between the student as trained, perhaps in bfloat16, and the exported network in float32."""


class Parity(NamedTuple):
    """How a file compares with the student on test images, spread evenly over the test set.

    Attributes:
        images: how many were compared.
        agreement: share of them with the same class on top, 0..1.
        max_difference: largest absolute difference of a probability.
        accuracy: share of right answers among `accuracy_images`, 0..1.
        accuracy_images: how many the accuracy is of.
        bytes: size of the file, or of all files of a directory.
        milliseconds: median latency of one image, the files taken in turns, each runtime with its own default of threads.
    """

    images: int
    agreement: float
    max_difference: float
    accuracy: float
    accuracy_images: int
    bytes: int
    milliseconds: float


def measure(files: Mapping[str, tuple[Path, Classifier]], student: Classifier, test: Split) -> dict[str, Parity]:
    """Compares files with the student.

    Args:
        files: by name, the path and what was loaded from it.
        student: the Keras model that they were made from.
        test: the test images.

    Returns:
        By name. Agreement and difference are the worse of two: of pixels given as uint8, and as float32.
    """
    few, many = test.sample(COMPARED_IMAGES), test.sample(ACCURACY_IMAGES)
    pixels = np.clip(np.rint(few.images.pixels[few.indices]), 0, 255).astype(np.uint8)
    with doing("measuring the speed of the files"):
        speeds = images_per_second({name: loaded.logits for name, (_, loaded) in files.items()}, pixels[:1], repetitions=REPETITIONS)
    expected = student(pixels)
    results = {}
    for name, (path, loaded) in files.items():
        with doing(f"comparing {path.name} with the student"):
            answers = [loaded(pixels), loaded(pixels.astype(np.float32))]
            accuracy = evaluate(loaded.logits, many).accuracy
        results[name] = Parity(
            images=len(few),
            agreement=min(float(np.mean(answer.logits.argmax(1) == expected.logits.argmax(1))) for answer in answers),
            max_difference=max(float(np.abs(answer.probabilities - expected.probabilities).max()) for answer in answers),
            accuracy=accuracy,
            accuracy_images=len(many),
            bytes=sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file()),
            milliseconds=round(1000 / speeds[name], 4),
        )
    return results


def check(file: Path, model: keras.Model, paths: Mapping[str, Path], test: Split) -> tuple[dict[str, Parity], dict[str, str]]:
    """Reloads files, compares them with the student, and holds them to the tolerances of their formats.

    Args:
        file: the `.keras` file of the student as it was trained.
        model: the network that the files were made from.
        paths: of the files by format.
        test: the test images.

    Returns:
        The parity by format of those that are within their tolerance, and of the student as it was trained by the name
        `STUDENT`; and by format why the others are not.
    """
    loaded, refused = {STUDENT: (file, load(file))}, {}
    for name in (name for name in FORMATS if name in paths):
        try:
            with doing(f"loading {paths[name].name}"):
                classifier = load(paths[name])
                classifier(test.images.pixels[test.indices[:1]])
        except Exception as error:  # a runtime raises whatever it does where it cannot run what a converter wrote
            refused[name] = f"its runtime cannot run it: {str(error)[:200]}"
        else:
            loaded[name] = (paths[name], classifier)
    results = measure(loaded, of_keras(model), test)
    tolerances = {name: {"max_difference": each.max_difference, "agreement": each.agreement} for name, each in FORMATS.items()}
    for name, parity in results.items():
        if reason := _refusal(parity, **(tolerances | {STUDENT: AS_TRAINED})[name]):
            refused[name] = reason
    return {name: parity for name, parity in results.items() if name not in refused}, refused


def _refusal(parity: Parity, *, max_difference: float, agreement: float) -> str:
    """Why a file is out of its format's tolerance; empty where it is within."""
    if parity.agreement >= agreement and parity.max_difference <= max_difference:
        return ""
    return (
        f"it agrees with the student on {parity.agreement:.1%} of {parity.images} images and differs by up to "
        f"{parity.max_difference:.2g} in a probability, where {agreement:.0%} and {max_difference:g} are asked for"
    )
