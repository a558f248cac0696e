"""Shared by the tables of bad input: what a mistake is, one line a case, and small files to make them from."""

import functools
import io
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import keras

CONFIG = """{
  "data": {"batch_size": 10, "train_limit_per_class": 4},
  "teacher": {"path": "WORLD/teacher.keras"},
  "student": {"path": "WORLD/student.keras"},
  "train": {"epochs": 1},
  "search": {"mode": "joint", "epochs": 1}
}"""


class Mistake(NamedTuple):
    """A call of a binary that must end with status 2 and one line.

    Attributes:
        flags: what is mistaken, beside a right --config and --workdir where the binary takes them; split at spaces, as a shell
            does. In it WORLD is a folder with a right config.json, teacher.keras, student.keras, alphas.json and a run directory
            whose teacher is done, and INPUT is an empty folder.
        told: what the line must contain, in this order, split at " ... ".
        binary: whose main is called.
        write: puts files into INPUT.
        environment: a variable and its value.
    """

    flags: str
    told: str
    binary: str = "train"
    write: Callable[[Path], object] | None = None
    environment: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """Of the case, for pytest."""
        return f"{self.binary} {self.flags}"[:90].encode("ascii", "replace").decode()


def text(name: str, content: str | bytes) -> Callable[[Path], object]:
    """Writes a file of this name."""
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def network(
    *between: keras.layers.Layer, shape: tuple[int, ...] = (8, 8, 1), classes: int = 10, blocks: int = 1, width: int = 4
) -> keras.Model:
    """A classifier of two groups, 8x8 and 4x4, for the bundled digits, with layers put in before its head."""
    pixels = x = keras.layers.Input(shape)
    for group, stride in ((1, 1), (2, 2)):
        for block in range(1, blocks + 1):
            name = f"group{group}_block{block}"
            x = keras.layers.Conv2D(width, 3, strides=stride if block == 1 else 1, padding="same", name=f"{name}_conv")(x)
            x = keras.layers.ReLU(name=name)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    for layer in between:
        x = layer(x)
    return keras.Model(pixels, keras.layers.Dense(classes, name="logits")(x), name="small")


@functools.cache
def members(**options: int) -> Mapping[str, bytes]:
    """What the `.keras` file of `network` holds, by name."""
    return unpacked(network(**options))


def unpacked(model: keras.Model) -> dict[str, bytes]:
    """What the `.keras` file of a model holds, by name."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(path := Path(folder) / "model.keras")
        content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(content: Mapping[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of these members; of those that are None nothing is kept."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, value in content.items():
            if value is not None:
                archive.writestr(name, value)
    return file.getvalue()
