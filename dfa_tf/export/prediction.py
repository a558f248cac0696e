"""Classifies image files."""

from typing import NamedTuple

import numpy as np

from dfa_tf.export.runtimes import Classifier, ImageShape
from dfa_tf.images.image_files import open_picture, to_pixels


class Photo(NamedTuple):
    """An image file, decoded.

    Attributes:
        path: of the file.
        width: of the image in the file.
        height: likewise.
        pixels: uint8 `[H, W, C]`, 0..255, of the size that the classifier takes.
    """

    path: str
    width: int
    height: int
    pixels: np.ndarray


class Guess(NamedTuple):
    """A class, its number, and how probable it is, 0..1."""

    name: str
    number: int
    probability: float


def read_image(path: str, shape: ImageShape) -> Photo:
    """Decodes an image file, upright, at the size that a classifier takes.

    Args:
        path: of a file as `dfa_tf.images.image_files.open_picture` takes it.
        shape: height, width, channels of the classifier; the image keeps what is None there, and has three channels.

    Returns:
        The image, resized by antialiased bilinear interpolation to the sides of `shape`, without regard to its aspect.

    Raises:
        UserError: as `open_picture`.
    """
    height, width, channels = shape
    picture = open_picture(path, channels or 3)
    return Photo(path, picture.width, picture.height, to_pixels(picture, height, width))


def guess(classifier: Classifier, pixels: np.ndarray, count: int) -> list[Guess]:
    """The most probable classes of an image, the best first.

    Args:
        classifier: whichever.
        pixels: raw, `[H, W, C]`, 0..255.
        count: how many classes; all where there are fewer.
    """
    answer = classifier(pixels[np.newaxis])
    best = np.argsort(-answer.logits[0], kind="stable")[:count]  # probabilities of int8, of 256 levels, are often equal
    names = dict(enumerate(classifier.class_names))
    return [Guess(names.get(int(at), f"class {at}"), int(at), float(answer.probabilities[0, at])) for at in best]
