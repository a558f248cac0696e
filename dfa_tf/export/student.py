"""The student that is exported, with what its files need beside the weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from dfa_tf.images.splits import Splits
from dfa_tf.networks.copying import copy_of
from dfa_tf.networks.keras_file import load_model

CALIBRATION_IMAGES = 100


class Student(NamedTuple):
    """What is exported.

    Attributes:
        model: Functional or Sequential, raw pixels to logits, in float32.
        class_names: one for each logit.
        calibration: training images, raw pixels `[n, H, W, C]`; the ranges of int8 are measured on them.
    """

    model: keras.Model
    class_names: Sequence[str]
    calibration: np.ndarray


def read_student(file: Path, splits: Splits, *, seed: int) -> Student:
    """A trained student, made ready for export.

    Args:
        file: the `.keras` file.
        splits: of the data that it was trained on. Images for the calibration are drawn from its training images, never from others.
        seed: of that choice.
    """
    training = splits.train + splits.search
    chosen = np.random.default_rng(seed).choice(len(training), min(CALIBRATION_IMAGES, len(training)), replace=False)
    calibration = np.asarray(training.images.pixels[training.indices[chosen]])
    return Student(_in_float32(load_model(file)), splits.class_names, calibration)


def _in_float32(model: keras.Model) -> keras.Model:
    for layer in model._flatten_layers():
        layer.dtype_policy = "float32"
    return copy_of(model)  # a Normalization layer holds constants of the precision that it was built for
