"""Pictures on disk, decoded to raw pixels."""

import os

import numpy as np
from PIL import Image, ImageOps

from dfa_tf.errors import UserError
from dfa_tf.storage.reading import check_regular

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def open_picture(path: str | os.PathLike[str], channels: int = 3) -> Image.Image:
    """Decodes a picture, upright as its EXIF data have it; of an animation the first frame.

    Any kind of pixels becomes colour or grey: palettes are looked up, 16 bits are cut to the upper 8, CMYK is converted, and
    transparency is dropped.

    Args:
        path: of a PNG, JPEG, BMP, GIF or WebP file, whatever its name.
        channels: 3 for colour, 1 for grey, 4 for colour with transparency.

    Raises:
        UserError: if the file is not there, not whole, or not a picture of these formats; or there is no such number of channels.
    """
    if channels not in _MODES:
        raise UserError(f"images have 1, 3 or 4 channels. Received: a model of {channels}")
    if not os.path.exists(path):
        raise UserError(f"there is no such picture. Received: {path}")
    try:
        check_regular(path)
        with Image.open(path, formats=FORMATS) as picture:
            return _converted(ImageOps.exif_transpose(picture), _MODES[channels])
    except Exception as error:  # a broken file raises whatever its decoder runs into
        raise UserError(f"{path} is no picture that can be read ({', '.join(FORMATS)}). {type(error).__name__}: {error}") from None


def read_picture(path: str | os.PathLike[str], *, channels: int = 3, size: tuple[int, int] | None = None) -> np.ndarray:
    """A picture as an array.

    Args:
        path: as `open_picture` takes it, like `channels`.
        channels: of the array.
        size: height and width to resize to; its own where None.

    Returns:
        Raw pixels, uint8 `[height, width, channels]`.

    Raises:
        UserError: as `open_picture`.
    """
    return to_pixels(open_picture(path, channels), *(size or (None, None)))


def to_pixels(picture: Image.Image, height: int | None = None, width: int | None = None) -> np.ndarray:
    """Raw pixels of a decoded picture, uint8 `[height, width, channels]`.

    It is resized by antialiased bilinear interpolation to the sides that are given; proportions are not kept.
    """
    size = (width or picture.width, height or picture.height)
    pixels = np.asarray(picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR))
    return pixels.reshape(*pixels.shape[:2], -1)


def _converted(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # in one step to RGB, Pillow warns
    return picture.convert(mode)
