"""`.keras` files: checked before Keras reads them, because they may come from elsewhere; loaded and saved."""

import logging
import os
import textwrap
import warnings
import zipfile
from pathlib import PurePosixPath

import keras

from dfa_tf.errors import UserError, shortened
from dfa_tf.storage.reading import open_regular

_LOG = logging.getLogger(__name__)

CONFIG_LIMIT = 1 << 24
"""Bytes that the JSON inside a `.keras` file may have: that of the largest networks of keras.applications has some 1 MiB."""
_HDF5 = b"\x89HDF\r\n\x1a\n"
_MEMBERS = ("config.json", "model.weights.h5")


def check_keras_file(path: str | os.PathLike[str], field: str = "a model") -> None:
    """Raises UserError, with the way out, unless a path is that of a whole `.keras` file that writes nothing outside of itself.

    Args:
        path: of the file.
        field: of the configuration that gives it, for the message.
    """
    fault = _fault(os.fspath(path))
    if fault:
        raise UserError(f"{field} must be a .keras file. Received: {shortened(os.fspath(path))}, {fault}")


def _fault(path: str) -> str:
    if os.path.isfile(os.path.join(path, "saved_model.pb")):
        return "a SavedModel, which holds no layers: give the .keras file that it was made from"
    if not os.path.exists(path) or os.path.isdir(path):
        return "which is a directory" if os.path.isdir(path) else "which is not there"
    try:
        with open_regular(path) as file:
            start = file.read(len(_HDF5))
    except OSError as error:
        return f"which cannot be read ({error.strerror})"
    if start == _HDF5:
        return "an HDF5 file: load it with Keras, and save it again under a name that ends in .keras"
    if not (start and zipfile.is_zipfile(path)):
        return "which is cut off, or of another format" if start else "which is empty"
    return _archive_fault(path) if path.endswith(".keras") else "whose name ends otherwise"


def _archive_fault(path: str) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        return f"a damaged archive: {error}"
    for name in sizes:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return f"an archive whose member {shortened(name)} leads out of it"
    if missing := [name for name in _MEMBERS if name not in sizes]:
        return f"an archive of something else: it holds no {missing[0]}"
    if sizes["config.json"] > CONFIG_LIMIT:
        return f"whose config.json has more than {CONFIG_LIMIT} bytes"
    return ""


def refusal(error: Exception) -> str:
    """Why Keras refuses a file, in a few words, with the way out where there is one.

    Args:
        error: what Keras has raised.
    """
    text = str(error).strip() or type(error).__name__
    if "`Lambda` layer" in text or "lambda" in text:
        return "it holds a Lambda layer, which is code, and files are data here: build it of other layers of Keras, and save it again"
    if "Could not locate" in text:
        what = text.partition("Could not locate ")[2].partition(". ")[0]
        return f"it holds the {what}, which is not of Keras: build it of layers of Keras, and save it again"
    for introduction in ("Exception encountered: ", "could not be loaded. Example error message for object "):
        text = text.rpartition(introduction)[2]
    return textwrap.shorten(text, 200, placeholder=" ...")


def save_model(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Saves a model as it is called: without what its owner has compiled it with."""
    keras.Model(model.inputs[0], model.outputs[0], name=model.name).save(path)


def load_model(path: str | os.PathLike[str]) -> keras.Model:
    """Loads a `.keras` file, in safe mode and without its optimizer: nothing in it is run as code.

    Raises:
        UserError: if it is not a readable `.keras` file of layers of Keras.
    """
    check_keras_file(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = keras.models.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # Keras raises what the broken part of the file happens to raise
            raise UserError(f"a model must be a .keras file that Keras loads. Received: {os.fspath(path)} ({refusal(error)})") from None
    if not isinstance(model, keras.Model):
        raise UserError(f"a model must be a .keras file of a model. Received: {os.fspath(path)}, which holds a {type(model).__name__}")
    for warning in caught:
        _LOG.warning("%s: %s", os.fspath(path), " ".join(str(warning.message).split()))
    return model
