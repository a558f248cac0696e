"""Folders of pictures, single pictures and exported models that are damaged, that are something else, or that are not there."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from mistakes import Mistake, members, packed, text
from PIL import Image


def picture(path: Path, size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size), 7, np.uint8)).save(path)


def pictures(told: str, damage: Callable[[Path], object] = lambda folder: None, flags: str = "") -> Mistake:
    """A folder of two classes of five grey pictures; what it is damaged by is given the folder."""

    def write(folder: Path) -> None:
        for kind in ("ash", "elm"):
            for number in range(5):
                picture(folder / "trees" / kind / f"{number}.png")
        damage(folder / "trees")

    data = "--set data.name=image_folder --set data.data_dir=INPUT/trees --set data.batch_size=2 --set data.options.channels=1"
    return Mistake(f"--workdir=INPUT/run {data} {flags}", told, "run", write)


def emptied(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for path in (folder / name).iterdir():
            path.unlink()

    return damage


def cut(folder: Path) -> None:
    path = folder / "elm" / "3.png"
    path.write_bytes(path.read_bytes()[:40])


def moved(folder: Path) -> None:
    """One folder of classes, with one class alone."""
    (folder / "elm").rename(folder.parent / "elm")


def classifier(told: str, name: str, content: bytes | str = "", flags: str = "INPUT/a.png") -> Mistake:
    """A call of predict with a file or a SavedModel of this content, and a picture that is right."""

    def write(folder: Path) -> None:
        picture(folder / "a.png")
        if content:
            (folder / name).parent.mkdir(exist_ok=True)
            text(name, content)(folder)

    return Mistake(f"--model=INPUT/{name.partition('/')[0]} {flags}", told, "predict", write)


def saved_model(folder: Path) -> None:
    """Made elsewhere: it doubles numbers, and is no classifier of images."""

    class Twice(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
        def __call__(self, x: tf.Tensor) -> tf.Tensor:
            return 2 * x

    module = Twice()
    tf.saved_model.save(module, str(folder / "twice"), signatures=module.__call__)
    picture(folder / "a.png")


def right(name: str, content: bytes | None = None) -> Callable[[Path], None]:
    """A right model for predict, and beside it a file."""

    def write(folder: Path) -> None:
        (folder / "m.keras").write_bytes(packed(members()))
        if content is not None:
            (folder / name).write_bytes(content)

    return write


EXPORTED = "the file must be a model that bin/export.py has written. Received: "
NEEDED = "a model and at least one image are needed"
SHAPE = "--image_shape=8,8,1 --num_classes=10"
MISTAKES = [
    pictures("elm ... 3.png", cut),
    pictures("elm ... 3.png", lambda folder: (folder / "elm" / "3.png").write_text("no picture")),
    pictures("elm ... 3.png", lambda folder: (folder / "elm" / "3.png").write_bytes(b"")),
    pictures("Received: 2 sizes, from 8x8 to 9x9", lambda folder: picture(folder / "elm" / "3.png", 9)),
    pictures("class folders must contain pictures. Received: none in ", emptied("ash")),
    pictures("a folder of pictures for each class, two or more. Received: ash", moved),
    pictures("trees", lambda folder: folder.rename(folder.parent / "forest")),
    pictures("channels of image_folder must be 3 for colour or 1 for grey. Received: 2", flags="--set data.options.channels=2"),
    pictures("image_size must be height and width", flags="--set data.options.image_size=[8]"),
    pictures("test_fraction", flags="--set data.options.test_fraction=1"),
    pictures("skip_corrupt", flags="--set data.options.skip_corrupt=maybe"),
    pictures("unknown option of image_folder. Received: 'size'", flags="--set data.options.size=8"),
    pictures("Received: 10 of 'small'"),
    Mistake("--set data.name=image_folder --set data.data_dir=null --workdir=INPUT/run", "data.data_dir"),
    Mistake("", NEEDED, "predict"),
    Mistake("INPUT/a.png", NEEDED, "predict"),
    Mistake("--model=INPUT/m.keras", NEEDED, "predict"),
    Mistake("--model=INPUT/m.keras INPUT/a.png --workdir=x", "workdir", "predict"),
    Mistake("--model=INPUT/m.keras --top=0 INPUT/a.png", "top", "predict"),
    Mistake("--model=INPUT/m.keras INPUT/none.png", "there is no such picture. Received: ... none.png", "predict", right("")),
    Mistake("--model=INPUT/m.keras INPUT/a.png", "a.png is not a readable picture", "predict", right("a.png", b"")),
    Mistake("--model=INPUT/m.keras INPUT/a.png", "a.png is not a readable picture", "predict", right("a.png", b"\x89PNG\r\n")),
    Mistake("--model=INPUT/m.keras INPUT", "is not a readable picture", "predict", right("")),
    classifier("there is no such model. Received: ... m.onnx", "m.onnx"),
    classifier("a model is a SavedModel directory, or a file that ends in", "m.pb", "x"),
    classifier("a model is a SavedModel directory, or a file that ends in", "folder/x", "x"),
    classifier(f"{EXPORTED} ... saved", "saved/saved_model.pb", "no protocol buffer"),
    classifier("must be a .keras file ... m.keras", "m.keras", packed(members())[:500]),
    classifier(f"{EXPORTED} ... m.tflite", "m.tflite", "x" * 100),
    classifier(f"{EXPORTED} ... m.tflite", "m.tflite", b"\x1c\0\0\0TFL3" + bytes(100)),
    classifier(f"{EXPORTED} ... m.onnx", "m.onnx", "x" * 100),
    Mistake("--model=INPUT/twice INPUT/a.png", "twice", "predict", saved_model),
    Mistake(SHAPE, "--model is needed", "describe"),
    Mistake(f"--model=INPUT/none.keras {SHAPE}", "must be a .keras file. Received: ... none.keras", "describe"),
    Mistake("--model=INPUT/m.keras", "m.keras', which is cut off", "describe", text("m.keras", packed(members())[:500])),
    Mistake(f"--model=wrn_10_1 {SHAPE} --output=/dev/full/picture.png", "/dev/full/picture.png must be writable", "describe"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[f"{number} {mistake.told[:70]}" for number, mistake in enumerate(MISTAKES)])
def test_pictures_and_models_that_are_damaged_or_do_not_fit_are_refused(mistake: Mistake, refused: Callable[[Mistake], None]) -> None:
    refused(mistake)
