"""`.keras` files that are damaged, hold code, or do not fit; their code is never run."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from mistakes import Mistake, members, network, packed, text, unpacked

from dfa_tf.networks.keras_file import CONFIG_LIMIT, load_model


class Mine(keras.layers.Layer):
    """A layer of someone else's, which only their program knows."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs


def mine(inputs: tf.Tensor) -> tf.Tensor:
    return inputs


def teacher(told: str, content: Callable[[], bytes], name: str = "t.keras") -> Mistake:
    """A file as teacher.path, in place of one that is right; its content is only made when the case runs."""
    return Mistake(f"--overwrite --set teacher.path=INPUT/{name}", told, write=lambda folder: (folder / name).write_bytes(content()))


def changed(told: str, **changes: bytes | None) -> Mistake:
    """A right file with some of its members changed: `config`, `weights`, or another of any name."""
    names = {"config": "config.json", "weights": "model.weights.h5"}
    return teacher(told, lambda: packed({**members(), **{names.get(name, name): value for name, value in changes.items()}}))


def saved(told: str, build: Callable[[], keras.Model], flags: str = "") -> Mistake:
    """A file that Keras wrote, of a network that does not fit."""
    return Mistake(f"--overwrite --set teacher.path=INPUT/t.keras {flags}", told, write=lambda folder: build().save(folder / "t.keras"))


def flipped(at: bytes) -> bytes:
    """A right file with the bits of 16 bytes turned, some way behind a text."""
    content = bytearray(packed(members()))
    start = content.index(at) + len(at) + 40
    content[start : start + 16] = bytes(255 - byte for byte in content[start : start + 16])
    return bytes(content)


def saved_model(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "saved_model.pb").write_bytes(b"\x08\x01")


def hdf5(folder: Path) -> None:
    network().save_weights(folder / "t.weights.h5")
    (folder / "t.weights.h5").rename(folder / "t.keras")


def damaged(name: str) -> Callable[[], bytes]:
    """A right network, one of whose weights is NaN."""

    def content() -> bytes:
        model = network()
        layer = model.get_layer(name)
        layer.set_weights([np.full_like(layer.get_weights()[0], np.nan), *layer.get_weights()[1:]])
        return packed(unpacked(model))

    return content


def weights_of_a_dense() -> bytes:
    return unpacked(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))["model.weights.h5"]


def object_of(module: str, name: str, config: object) -> bytes:
    """A config.json that asks for any object of any module."""
    return json.dumps({"module": module, "class_name": name, "config": config, "registered_name": None}).encode()


FILE, LOADS = "teacher.path must be a .keras file. Received: ", "a model must be a .keras file that Keras loads. Received: "
FITS = "networks must fit the data's "
MISTAKES = [
    Mistake("--set teacher.path=INPUT/none.keras", f"{FILE} ... none.keras', which is not there"),
    Mistake("--set teacher.path=INPUT", f"{FILE} ... which is a directory"),
    Mistake("--set teacher.path=INPUT/model", f"{FILE} ... a SavedModel, which holds no layers: give the .keras file", write=saved_model),
    Mistake(f"--set teacher.path={'a' * 5000}.keras", f"{FILE}'aaa ... which is not there"),
    Mistake('--set \'teacher.path="a\\u0000b.keras"\'', f"{FILE} ... which is not there"),
    Mistake("--set teacher.path=/dev/zero", f"{FILE}'/dev/zero', which cannot be read"),
    Mistake("--set teacher.path=WORLD/config.json", f"{FILE} ... which is cut off, or of another format"),
    Mistake("--set student.path=INPUT/none.keras", "student.path must be a .keras file. Received: ... which is not there", "search"),
    Mistake("--set student.path=INPUT/none.keras", "student.path must be a .keras file. Received: ... which is not there", "distil"),
    Mistake("--set student.path=WORLD/alphas.json", "a model must be a .keras file. Received: ... cut off, or of another format", "run"),
    teacher(f"{FILE} ... which is empty", lambda: b""),
    teacher(f"{FILE} ... which is cut off, or of another format", lambda: b"not a model\n"),
    teacher(f"{FILE} ... which is cut off, or of another format", lambda: packed(members())[:-60]),
    teacher(f"{FILE} ... which is cut off, or of another format", lambda: packed(members())[:5000]),
    teacher(f"{FILE} ... whose name ends otherwise", lambda: packed(members()), "t.zip"),
    Mistake("--set teacher.path=INPUT/t.keras", f"{FILE} ... an HDF5 file: load it with Keras, and save it again", write=hdf5),
    teacher(f"{FILE} ... an archive of something else: it holds no config.json", lambda: packed({})),
    teacher(f"{FILE} ... an archive of something else: it holds no config.json", lambda: packed({"data.npy": b"\x93NUMPY"})),
    changed(f"{FILE} ... it holds no config.json", config=None),
    changed(f"{FILE} ... it holds no model.weights.h5", weights=None),
    changed(f"{FILE} ... it holds no model.weights.h5", weights=None, **{"model.weights.npz": b"PK"}),
    changed(f"{FILE} ... whose member '../../escaped.txt' leads out of it", **{"../../escaped.txt": b"x"}),
    changed(f"{FILE} ... whose member '/tmp/escaped.txt' leads out of it", **{"/tmp/escaped.txt": b"x"}),
    changed(f"{FILE} ... whose member 'assets/../../x' leads out of it", **{"assets/../../x": b"x"}),
    teacher(
        f"{FILE} ... whose config.json has more than {CONFIG_LIMIT} bytes",
        lambda: packed({**members(), "config.json": bytes(CONFIG_LIMIT + 1)}, zipfile.ZIP_DEFLATED),
    ),
    teacher("an archive must be whole. Received: ... Bad CRC-32 for file 'config.json'", lambda: flipped(b'{"module"')),
    teacher("an archive must be whole. Received: ... Bad CRC-32 for file 'model.weights.h5'", lambda: flipped(b"HDF")),
    changed(f"{LOADS} ... (Expecting value", config=b""),
    changed(f"{LOADS} ... (Unterminated string", config=members()["config.json"][:100]),
    changed(f"{LOADS} ... t.keras (", config=b"[1]"),
    changed(f"{LOADS} ... (maximum recursion depth exceeded", config=b"[" * 100_000),
    changed(f"{LOADS} ... t.keras (", config=object_of("os", "system", "touch pwned")),
    changed(f"{LOADS} ... it holds the class 'system', which is not of Keras", config=object_of("os", "system", {"command": "ls"})),
    changed(f"{LOADS} ... it holds the class 'Popen', which is not of Keras", config=object_of("subprocess", "Popen", {"args": "ls"})),
    changed(f"{LOADS} ... `keras.utils.get_file`", config=object_of("keras.utils", "get_file", {"origin": "file:///etc/passwd"})),
    changed("a model must be a .keras file of a model. Received: ... which holds a SGD", config=object_of("keras.optimizers", "SGD", {})),
    changed(f"{LOADS} ... (Unable to synchronously open file", weights=b"no weights"),
    changed(f"{LOADS} ... (Unable to synchronously open file", weights=members()["model.weights.h5"][:2000]),
    changed(f"{LOADS} ... expected 2 variables, but received 0", weights=weights_of_a_dense()),
    changed(f"{LOADS} ... must match. variable.shape=(3, 3, 1, 4)", weights=unpacked(network(width=5))["model.weights.h5"]),
    saved(f"{LOADS} ... it holds a Lambda layer, which is code, and files are data", lambda: network(keras.layers.Lambda(lambda x: x))),
    saved(f"{LOADS} ... it holds the class 'Mine', which is not of Keras: build it of layers of Keras", lambda: network(Mine())),
    saved(f"{LOADS} ... it holds the function 'mine', which is not of Keras", lambda: network(keras.layers.Activation(mine))),
    saved(f"{FITS}num_classes 10. Received: 7 of 'small'", lambda: network(classes=7)),
    saved(f"{FITS}image_shape (8, 8, 1). Received: (8, 8, 3) of 'small'", lambda: network(shape=(8, 8, 3))),
    saved(f"{FITS}image_shape (8, 8, 1). Received: (16, 16, 1) of 'small'", lambda: network(shape=(16, 16, 1))),
    saved("groups must name layers of the model. Received: 'blok'", network, """--set 'teacher.groups=[["blok"]]'"""),
    saved("every group needs a layer. Received: groups=[]", network, "--set teacher.groups=[]"),
    saved("every group needs a layer. Received: groups=[[]]", network, "--set teacher.groups=[[]]"),
    teacher("teacher.path must be a network with finite logits. Received: ... 'test_loss': nan", damaged("logits")),
    Mistake(
        "--set student.path=INPUT/s.keras",
        f"{FITS}num_classes 10. Received: 7 of 'small'",
        "search",
        lambda folder: network(classes=7).save(folder / "s.keras"),
    ),
    Mistake(
        "--set student.path=INPUT/s.keras --set distil.aggregation=last",
        f"{FITS}image_shape (8, 8, 1). Received: (8, 8, 3) of 'small'",
        "distil",
        lambda folder: network(shape=(8, 8, 3)).save(folder / "s.keras"),
    ),
    Mistake("--set student.path=INPUT/t.txt", "a model must be a .keras file", "run", text("t.txt", "x")),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.name for mistake in MISTAKES])
def test_a_model_that_is_damaged_is_refused(mistake: Mistake, refused: Callable[[Mistake], None]) -> None:
    refused(mistake)


def test_a_right_file_is_loaded(tmp_path: Path) -> None:
    """What the mistaken files are made from has no mistake itself."""
    (tmp_path / "t.keras").write_bytes(packed(members()))
    assert load_model(tmp_path / "t.keras").name == "small"


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    network(keras.layers.Lambda(lambda x: (open(mark, "w").close(), x)[1])).save(tmp_path / "t.keras")
    os.unlink(mark)  # Keras has called the layer to build the network
    with pytest.raises(ValueError, match="holds a Lambda layer"):
        load_model(tmp_path / "t.keras")
    assert not os.path.exists(mark)
