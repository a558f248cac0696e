"""Pictures on disk, decoded to raw pixels."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dfa_tf.errors import UserError
from dfa_tf.storage.reading import check_regular

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def open_picture(path: str | os.PathLike[str], channels: int = 3) -> Image.Image:
    """Decodes a picture and turns it upright by its EXIF data. Of an animation it returns the first frame.

    All kinds of pixels are converted to colour or grey: palettes are resolved, 16 bits are reduced to the upper 8, CMYK is
    converted, and transparency is dropped unless there are 4 channels.

    Args:
        path: a PNG, JPEG, BMP, GIF or WebP file; the file name does not matter.
        channels: 3 for colour, 1 for grey, 4 for colour with transparency.

    Raises:
        UserError: if the file is missing, damaged or of another format, or if the number of channels is another.
    """
    if channels not in _MODES:
        raise UserError(f"images must have 1, 3 or 4 channels. Received: a model with {channels}")
    if not os.path.exists(path):
        raise UserError(f"there is no such picture. Received: {path}")
    try:
        check_regular(path)
        with Image.open(path, formats=FORMATS) as picture:
            return _converted(ImageOps.exif_transpose(picture), _MODES[channels])
    except Exception as error:  # decoders raise many kinds of errors on a damaged file
        raise UserError(f"{path} is not a readable picture ({', '.join(FORMATS)}). {type(error).__name__}: {error}") from None


def read_picture(path: str | os.PathLike[str], *, channels: int = 3, size: tuple[int, int] | None = None) -> np.ndarray:
    """Reads a picture as an array.

    Args:
        path: as in `open_picture`.
        channels: as in `open_picture`.
        size: height and width to resize to; None keeps the size.

    Returns:
        Raw pixels, uint8 `[height, width, channels]`.

    Raises:
        UserError: as `open_picture`.
    """
    return to_pixels(open_picture(path, channels), *(size or (None, None)))


def to_pixels(picture: Image.Image, height: int | None = None, width: int | None = None) -> np.ndarray:
    """Raw pixels of a decoded picture, uint8 `[height, width, channels]`.

    The picture is resized to the given sides by antialiased bilinear interpolation; proportions are not kept.
    """
    size = (width or picture.width, height or picture.height)
    pixels = np.asarray(picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR))
    return pixels.reshape(*pixels.shape[:2], -1)


class PictureFiles:
    """Pictures that are decoded when they are read, so that only one batch is in memory.

    Args:
        paths: paths of the files.
        size: height and width to which all are resized.
        channels: 3 for colour, 1 for grey.

    Attributes:
        shape: `(n, height, width, channels)`.
    """

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], channels: int) -> None:
        self.shape: tuple[int, ...] = (len(paths), *size, channels)
        self._paths, self._size = list(paths), size

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        pixels = np.empty((len(indices), *self.shape[1:]), np.uint8)
        for place, index in enumerate(indices):
            pixels[place] = read_picture(self._paths[index], channels=self.shape[3], size=self._size)
        return pixels


def _converted(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns if it converts directly to RGB
    return picture.convert(mode)
