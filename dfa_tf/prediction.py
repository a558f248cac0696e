"""What a classifier says of image files."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dfa_tf.errors import UserError
from dfa_tf.runtimes import Classifier, ImageShape

_MODES = {1: "L", 3: "RGB", 4: "RGBA", None: "RGB"}


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
    """Decodes an image file, turns it upright as its EXIF data say, and makes of it what a classifier takes.

    Args:
        path: of a file of any format that Pillow reads, grey or colour.
        shape: height, width, channels of the classifier; the image keeps what is None there, and has three channels.

    Returns:
        The image, resized by antialiased bilinear interpolation to the sides of `shape`, without regard to its aspect.

    Raises:
        UserError: if it is not an image that can be read, or images have no such number of channels.
    """
    if shape[2] not in _MODES:
        raise UserError(f"images have 1, 3 or 4 channels. Received: a model of {shape[2]}")
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise UserError(f"there is no such image. Received: {path}") from None
    except UnidentifiedImageError:
        raise UserError(f"the file must be an image. Received: {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # a directory, or broken in the middle
        raise UserError(f"the image cannot be read. Received: {path} ({error})") from None
    return Photo(path, image.width, image.height, _pixels(image, shape))


def _pixels(image: Image.Image, shape: ImageShape) -> np.ndarray:
    height, width, channels = shape
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette may have transparent colours, which Pillow warns of
    image = image.convert(_MODES[channels]).resize((width or image.width, height or image.height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, -1)


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
