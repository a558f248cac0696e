"""Pictures on disk, decoded to raw pixels."""

import os

import numpy as np
from PIL import Image, ImageOps

from dfa_tf.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
_MODES = {1: "L", 3: "RGB"}


def read_picture(path: str | os.PathLike[str], *, channels: int = 3, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes a picture, upright as its EXIF data have it; of an animation the first frame.

    Any kind of pixels becomes colour or grey: palettes are looked up, 16 bits are cut to the upper 8, CMYK is converted, and
    transparency is dropped.

    Args:
        path: of a PNG, JPEG, BMP, GIF or WebP file, whatever its name.
        channels: 3 for colour, 1 for grey.
        size: height and width to resize to (bilinear, antialiased; proportions are not kept); its own where None.

    Returns:
        Raw pixels, uint8 `[height, width, channels]`.

    Raises:
        UserError: if the file is not whole, or not a picture of these formats.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            converted = _converted(ImageOps.exif_transpose(picture), _MODES[channels])
            if size is not None and converted.size != (size[1], size[0]):
                converted = converted.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            pixels = np.asarray(converted)
    except Exception as error:  # a broken file raises whatever its decoder runs into
        raise UserError(f"{path} is no picture that can be read ({', '.join(FORMATS)}). {type(error).__name__}: {error}") from None
    return pixels.reshape(*pixels.shape[:2], channels)


def _converted(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # in one step to RGB, Pillow warns
    return picture.convert(mode)
