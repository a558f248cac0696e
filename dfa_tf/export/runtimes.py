"""Any exported file as one classifier of raw pixels, run by its own runtime: TensorFlow, Keras, LiteRT or onnxruntime."""

import importlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dfa_tf.errors import UserError
from dfa_tf.networks.graph import activation_name
from dfa_tf.networks.keras_file import load_model
from dfa_tf.process.startup import silent_stderr
from dfa_tf.storage.reading import check_regular
from dfa_tf.training.evaluation import predictor

LABELS = "labels.txt"
"""Name of what carries the class names, one a line: a member of the zip archive that a `.keras` file is and that is appended
to a `.tflite` file, a file in `assets.extra/` of a SavedModel, an entry of the metadata of an `.onnx` file."""
OUTPUTS = ("probabilities", "logits")

ImageShape = tuple[int | None, ...]
Run = Callable[[np.ndarray], Mapping[str, Any]]
"""Raw pixels `[B, H, W, C]`, 0..255, uint8 or float32, to `probabilities` and `logits`, `[B, num_classes]`."""


class Answer(NamedTuple):
    """The answers of a classifier to a batch.

    Attributes:
        probabilities: float32 `[B, num_classes]`.
        logits: the same of the logits.
    """

    probabilities: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class Classifier:
    """A classifier of raw pixels, of any format.

    Attributes:
        image_shape: height, width, channels; None for what may be any.
        class_names: of the classes in order; empty where the file carries none.
        run: asks the runtime.
    """

    image_shape: ImageShape
    class_names: Sequence[str]
    run: Run

    def __call__(self, images: np.ndarray | tf.Tensor) -> Answer:
        """The answers to raw pixels `[B, H, W, C]`, 0..255, uint8 or float32."""
        answers = self.run(np.asarray(images))
        return Answer(*(np.asarray(answers[name], np.float32) for name in OUTPUTS))

    def logits(self, images: np.ndarray | tf.Tensor) -> np.ndarray:
        """The logits alone, as `dfa_tf.training.evaluation` asks for them."""
        return self(images).logits


def load(path: Path) -> Classifier:
    """Loads a classifier in the runtime of its format.

    Args:
        path: what `bin/export.py` has written: the directory of a SavedModel, or a file that ends in `.keras`,
            `.tflite` or `.onnx`; or any `.keras` file of one image input `[B, H, W, C]` and one output, logits or
            the probabilities of a softmax `[B, num_classes]`.

    Raises:
        UserError: if it is none of these, or its runtime is not installed.
    """
    kind = "saved_model" if (path / "saved_model.pb").is_file() else path.suffix
    if not path.exists():
        raise UserError(f"there is no such model. Received: {path}")
    if kind not in _LOADERS or (path.is_dir() and kind != "saved_model"):
        raise UserError(f"a model is a SavedModel directory, or a file that ends in .keras, .tflite or .onnx. Received: {path}")
    files = [file for pattern in ("*", "*/*") for file in path.glob(pattern) if not file.is_dir()] if path.is_dir() else [path]
    try:
        for file in files:
            check_regular(file)
        with silent_stderr():  # LiteRT writes there which delegate it made
            return _LOADERS[kind](path)
    except UserError:
        raise
    except Exception as error:  # a runtime raises what the broken part of the file happens to raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"the file must be a model that bin/export.py has written. Received: {path} ({reason})") from None


def package(name: str) -> ModuleType:
    """A package that only some formats need.

    Raises:
        UserError: if it is not installed; it says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        needed = name.partition(".")[0].replace("_", "-")
        raise UserError(
            f"this format needs {needed}: pip install {needed}, or all of its kind with the extra `export`. ({error})"
        ) from None


def of_keras(model: keras.Model, class_names: Sequence[str] = ()) -> Classifier:
    """A Keras classifier in inference mode.

    Args:
        model: of one image input `[B, H, W, C]`. Its output is logits, or the probabilities of a softmax, `[B, num_classes]`;
            or a dictionary of both by the names in `OUTPUTS`.
        class_names: of its classes, where known.

    Raises:
        UserError: if it has other inputs or outputs.
    """
    inputs, outputs = model.inputs or [], model.outputs or []
    named = len(outputs) == len(OUTPUTS) and isinstance(model.output, dict) and set(model.output) == set(OUTPUTS)
    if [len(x.shape) for x in inputs] != [4] or not (named or [len(x.shape) for x in outputs] == [2]):
        raise UserError(f"a classifier takes one batch of images [B, H, W, C] and gives [B, classes]. Received: {model.name!r}")
    predict: Callable[[tf.Tensor], Any] = predictor(model)
    ending = "linear" if named else _ending(model)
    if ending not in ("linear", "softmax"):
        raise UserError(f"a classifier gives softmax or linear outputs. Received: {ending!r} at the end of {model.name!r}")
    probable = ending == "softmax"

    def run(images: np.ndarray) -> Mapping[str, Any]:
        answer = predict(tf.cast(images, tf.float32))
        if named:
            return answer
        answer = tf.cast(answer, tf.float32)
        logits = tf.math.log(tf.maximum(answer, keras.config.epsilon())) if probable else answer
        return {"probabilities": answer if probable else tf.nn.softmax(answer), "logits": logits}

    return Classifier(tuple(inputs[0].shape[1:]), class_names, run)


def _ending(model: keras.Model) -> str:
    """The name of the activation that a model ends in: `"linear"` where it has none."""
    last = model.outputs[0]._keras_history.operation
    if isinstance(last, keras.Model):
        return _ending(last)
    if isinstance(last, keras.layers.Softmax):
        return "softmax"
    return activation_name(last)


def _keras(path: Path) -> Classifier:
    return of_keras(load_model(path), _zipped_names(path))


def _saved_model(path: Path) -> Classifier:
    loaded = tf.saved_model.load(str(path))
    endpoints = loaded.signatures
    _check_outputs(path, endpoints["serving_default"].structured_outputs)
    labels = path / "assets.extra" / LABELS

    def run(images: np.ndarray) -> Mapping[str, Any]:
        if images.dtype == np.uint8 and "serve_uint8" in endpoints:
            return endpoints["serve_uint8"](images=tf.constant(images))
        # `loaded` owns the variables: it must live as long as its endpoints.
        return loaded.signatures["serving_default"](images=tf.cast(images, tf.float32))

    shape = endpoints["serving_default"].structured_input_signature[1]["images"].shape
    return Classifier(tuple(shape[1:]), labels.read_text(encoding="utf-8").splitlines() if labels.is_file() else (), run)


def _tflite(path: Path) -> Classifier:
    interpreter = package("ai_edge_litert.interpreter").Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner("serving_default")
    _check_outputs(path, runner.get_output_details())
    details = runner.get_input_details()["images"]

    def run(images: np.ndarray) -> Mapping[str, Any]:
        if details["dtype"] == np.uint8:
            images = np.clip(np.rint(images), 0, 255)
        return runner(images=images.astype(details["dtype"]))

    shape = tuple(None if size < 0 else int(size) for size in details["shape_signature"][1:])
    return Classifier(shape, _zipped_names(path), run)


def _onnx(path: Path) -> Classifier:
    session = package("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    _check_outputs(path, [output.name for output in session.get_outputs()])
    (pixels,) = session.get_inputs()
    names = session.get_modelmeta().custom_metadata_map.get(LABELS, "")

    def run(images: np.ndarray) -> Mapping[str, Any]:
        return dict(zip(OUTPUTS, session.run(OUTPUTS, {pixels.name: images.astype(np.float32)}), strict=True))

    shape = tuple(size if isinstance(size, int) else None for size in pixels.shape[1:])
    return Classifier(shape, names.splitlines(), run)


_LOADERS: dict[str, Callable[[Path], Classifier]] = {"saved_model": _saved_model, ".keras": _keras, ".tflite": _tflite, ".onnx": _onnx}


def _zipped_names(path: Path) -> Sequence[str]:
    if not zipfile.is_zipfile(path):
        return ()
    with zipfile.ZipFile(path) as archive:
        return archive.read(LABELS).decode().splitlines() if LABELS in archive.namelist() else ()


def _check_outputs(path: Path, names: Any) -> None:
    if not set(OUTPUTS) <= set(names):
        raise UserError(f"an exported model gives {' and '.join(OUTPUTS)}. Received: {path}, which gives {', '.join(sorted(names))}")
