"""Image files as a classifier takes them, what is wrong with them, and the classes that are named."""

from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from dfa_tf.errors import UserError
from dfa_tf.export.prediction import guess, read_image
from dfa_tf.export.runtimes import Classifier, load, of_keras


def saved(image: Image.Image, path: Path, **options: object) -> str:
    image.save(path, **options)
    return str(path)


def test_grey_is_read_as_colour_and_colour_as_grey_as_the_model_asks(tmp_path: Path) -> None:
    grey = saved(Image.new("L", (2, 3), 90), tmp_path / "grey.png")
    colour = saved(Image.new("RGB", (2, 3), (200, 100, 0)), tmp_path / "colour.bmp")
    np.testing.assert_array_equal(read_image(grey, (3, 2, 3)).pixels, np.full((3, 2, 3), 90))
    luma = round(0.299 * 200 + 0.587 * 100)  # ITU-R 601: 118.5
    assert abs(int(read_image(colour, (3, 2, 1)).pixels[0, 0, 0]) - luma) <= 1
    assert read_image(colour, (3, 2, 1)).pixels.shape == (3, 2, 1)
    np.testing.assert_array_equal(read_image(colour, (3, 2, None)).pixels[0, 0], [200, 100, 0])


def test_an_image_is_resized_by_averaging_to_height_and_width_of_the_model(tmp_path: Path) -> None:
    # Four columns of 0, 100, 20, 80 to two: antialiased, each is a weighted mean over the triangle of its neighbourhood.
    # Weights 1:3:3:1, of which the first one lies outside on the left and the last one on the right: 3*0 + 3*100 + 1*20 over 7.
    path = saved(Image.fromarray(np.tile(np.array([0, 100, 20, 80], np.uint8), (6, 1))), tmp_path / "wide.png")
    photo = read_image(path, (3, 2, 1))
    assert (photo.width, photo.height, photo.path) == (4, 6, path)
    np.testing.assert_allclose(photo.pixels[:, :, 0], [[320 / 7, (100 + 3 * 20 + 3 * 80) / 7]] * 3, atol=0.51)


def test_a_model_of_any_size_is_given_the_image_as_it_is(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    path = saved(Image.fromarray(pixels), tmp_path / "small.png")
    np.testing.assert_array_equal(read_image(path, (None, None, 3)).pixels, pixels)


def test_a_photo_that_the_camera_took_sideways_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the left column becomes the first row
    path = saved(Image.fromarray(np.array([[10, 20], [30, 40], [50, 60]], np.uint8)), tmp_path / "photo.png", exif=exif)
    photo = read_image(path, (None, None, 1))
    np.testing.assert_array_equal(photo.pixels[:, :, 0], [[50, 30, 10], [60, 40, 20]])


def test_sixteen_bits_of_grey_are_brought_to_eight(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.array([[0, 256, 65535]], np.uint16)), tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(path, (1, 3, 1)).pixels[0, :, 0], [0, 1, 255])


def test_a_palette_with_transparent_colours_is_read_without_a_warning(tmp_path: Path) -> None:
    image = Image.new("P", (1, 1), 0)
    image.putpalette([7, 8, 9])
    path = saved(image, tmp_path / "palette.png", transparency=b"\x00")
    np.testing.assert_array_equal(read_image(path, (1, 1, 3)).pixels[0, 0], [7, 8, 9])


def test_what_is_no_image_is_told_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    whole = Path(saved(Image.effect_noise((64, 64), 50), tmp_path / "whole.png")).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"there is no such picture. Received: {tmp_path / 'missing.png'}"):
        read_image(str(tmp_path / "missing.png"), (1, 1, 1))
    for name in ("text.png", "cut.png"):
        with pytest.raises(UserError, match=f"{tmp_path / name} is not a readable picture"):
            read_image(str(tmp_path / name), (1, 1, 1))
    with pytest.raises(UserError, match="is not a readable picture"):
        read_image(str(tmp_path), (1, 1, 1))
    with pytest.raises(UserError, match="Received: a model with 5"):
        read_image(str(tmp_path / "whole.png"), (1, 1, 5))


def test_the_most_probable_classes_come_first_by_their_names() -> None:
    logits = np.array([[1.0, 3.0, 2.0, 2.5]])
    level = np.array([[0.1, 0.5, 0.2, 0.2]])  # the last two are told apart by their logits alone
    for names, expected in ((["a", "b", "c", "d"], ["b", "d", "c"]), ([], ["class 1", "class 3", "class 2"])):
        classifier = Classifier((1, 1, 1), names, lambda images: {"probabilities": level, "logits": logits})
        found = guess(classifier, np.zeros([1, 1, 1]), 3)
        assert [each.name for each in found] == expected
        assert [each.number for each in found] == [1, 3, 2]
        np.testing.assert_allclose([each.probability for each in found], [0.5, 0.2, 0.2])
        assert len(guess(classifier, np.zeros([1, 1, 1]), 9)) == 4


# Any Keras classifier


def constant(values: list[float], activation: str | None, path: Path, *, nested: bool = False) -> Classifier:
    """A classifier of 2x2 images that answers `activation(values)` to everything."""
    dense = keras.layers.Dense(len(values), activation, kernel_initializer="zeros")
    model = keras.Sequential([keras.layers.Input((2, 2, 1)), keras.layers.Flatten(), dense])
    dense.bias.assign(values)
    if nested:
        pixels = keras.layers.Input((2, 2, 1))
        model = keras.Model(pixels, model(pixels))
    model.save(path)
    return load(path)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_a_keras_file_of_logits_or_of_probabilities_is_understood(activation: str | None, nested: bool, tmp_path: Path) -> None:
    classifier = constant([np.log(1.0), np.log(3.0)], activation, tmp_path / "model.keras", nested=nested)  # softmax: 1/4, 3/4
    answer = classifier(np.zeros([1, 2, 2, 1], np.uint8))
    np.testing.assert_allclose(answer.probabilities, [[0.25, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(answer.logits[0, 1] - answer.logits[0, 0], np.log(3), rtol=1e-5)
    assert classifier.class_names == ()
    assert classifier.image_shape == (2, 2, 1)


def test_a_keras_model_that_is_no_classifier_of_images_is_refused(tmp_path: Path) -> None:
    words = keras.Sequential([keras.layers.Input((7,)), keras.layers.Dense(2)], name="words")
    with pytest.raises(UserError, match="one batch of images .* Received: 'words'"):
        of_keras(words)
    with pytest.raises(UserError, match="Received: 'maps'"):
        of_keras(keras.Sequential([keras.layers.Input((2, 2, 1)), keras.layers.Conv2D(2, 1)], name="maps"))
    with pytest.raises(UserError, match="gives softmax or linear outputs. Received: 'sigmoid'"):
        constant([0.0, 0.0], "sigmoid", tmp_path / "model.keras")


def test_what_is_no_model_is_told_by_its_path(tmp_path: Path) -> None:
    for name in ("broken.keras", "broken.tflite", "broken.onnx"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 no model")
        with pytest.raises(UserError, match=str(tmp_path / name)):
            load(tmp_path / name)
    (tmp_path / "model.h5").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.onnx").mkdir()
    for name in ("model.h5", "folder", "folder.onnx"):
        with pytest.raises(UserError, match=f"a model is a SavedModel directory, or a file that ends in .* Received: {tmp_path / name}"):
            load(tmp_path / name)
    with pytest.raises(UserError, match="no such model"):
        load(tmp_path / "missing.keras")
