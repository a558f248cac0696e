"""All kinds of pictures are read as raw pixels; other files are refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfa_tf.errors import UserError
from dfa_tf.images.image_files import read_picture

COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[9, 8, 7], [0, 0, 0], [255, 255, 255]]], np.uint8)  # 2 high, 3 wide


def written(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "gif"])
def test_a_lossless_picture_is_read_unchanged(suffix: str, tmp_path: Path) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    pixels = read_picture(written(tmp_path / f"picture.{suffix}", Image.fromarray(COLOURS), **options))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, COLOURS)


def test_a_jpeg_is_read_with_little_loss_under_any_name(tmp_path: Path) -> None:
    flat = np.full((16, 8, 3), [200, 100, 50], np.uint8)
    path = written(tmp_path / "picture.png", Image.fromarray(flat), format="JPEG")
    np.testing.assert_allclose(read_picture(path).astype(int), flat, atol=3)


def test_grey_is_the_brightness_of_colours(tmp_path: Path) -> None:
    pixels = read_picture(written(tmp_path / "picture.png", Image.fromarray(COLOURS)), channels=1)
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B; 76.2, 149.7, 29.1 and 8.2.
    np.testing.assert_array_equal(pixels[..., 0], [[76, 150, 29], [8, 0, 255]])


GREY = np.array([[0, 100], [200, 255]], np.uint8)
LEVELS = {
    "grey": Image.fromarray(GREY),
    "grey with transparency": Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(GREY)]),
    "16 bits": Image.fromarray(GREY.astype(np.uint16) * 256 + 77),
}


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_pictures_have_one_level_in_each_channel(kind: str, channels: int, tmp_path: Path) -> None:
    pixels = read_picture(written(tmp_path / "picture.png", LEVELS[kind]), channels=channels)
    np.testing.assert_array_equal(pixels, np.repeat(GREY[..., np.newaxis], channels, axis=-1))


def test_black_and_white_are_the_ends_of_the_range(tmp_path: Path) -> None:
    pixels = read_picture(written(tmp_path / "picture.png", Image.fromarray(np.array([[True, False]]))))
    np.testing.assert_array_equal(pixels, [[[255] * 3, [0] * 3]])


def test_transparency_is_dropped_also_of_a_palette(tmp_path: Path) -> None:
    opacity = np.array([[0, 255, 128], [255, 255, 255]], np.uint8)
    clear = Image.fromarray(np.concatenate([COLOURS, opacity[..., np.newaxis]], axis=-1))
    np.testing.assert_array_equal(read_picture(written(tmp_path / "clear.png", clear)), COLOURS)
    palette = Image.fromarray(COLOURS).quantize(6)
    path = written(tmp_path / "palette.png", palette, transparency=bytes([0, 100, 255, 255, 255, 255]))
    np.testing.assert_array_equal(read_picture(path), COLOURS)


def test_print_colours_become_screen_colours(tmp_path: Path) -> None:
    ink = Image.fromarray(np.zeros((8, 8, 4), np.uint8), mode="CMYK")  # no ink: white
    assert (read_picture(written(tmp_path / "ink.jpg", ink)) >= 253).all()


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was turned: a quarter to the right shows it upright
    path = written(tmp_path / "turned.png", Image.fromarray(COLOURS), exif=turned)
    np.testing.assert_array_equal(read_picture(path), np.rot90(COLOURS, -1))


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((2, 2), level, np.uint8)) for level in (10, 200)]
    path = written(tmp_path / "moving.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (read_picture(path) == 10).all()


def test_resizing_takes_the_mean_of_what_a_pixel_covers(tmp_path: Path) -> None:
    pixels = np.zeros((4, 2), np.uint8)
    pixels[:2] = 200
    path = written(tmp_path / "picture.png", Image.fromarray(pixels))
    # As of TFDS images: weights 1, 3, 3, 1 over four rows at half the size, cut off at the border.
    assert read_picture(path, channels=1, size=(2, 4)).tolist() == [[[round(200 * 6 / 7)]] * 4, [[round(200 / 7)]] * 4]


def broken(path: Path, kind: str) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    whole = written(path.with_suffix(".png"), Image.fromarray(noise)).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    tiff = written(path.with_suffix(".tiff"), Image.fromarray(noise)).read_bytes()
    path.write_bytes({"cut off": whole[: len(whole) // 2], "bit flipped": bytes(flipped), "empty": b"", "text": b"cat", "tiff": tiff}[kind])
    return path


@pytest.mark.parametrize("kind", ["cut off", "bit flipped", "empty", "text", "tiff"])
def test_a_damaged_picture_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cat is not a readable picture \(PNG, JPEG, BMP, GIF, WEBP\)"):
        read_picture(broken(tmp_path / "cat", kind))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such picture. Received: .*none.png"):
        read_picture(tmp_path / "none.png")
