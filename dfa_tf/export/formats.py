"""Export of a student: one file a format. Raw pixels in, probabilities and logits out, class names within.

Every file takes `images`, raw pixels 0..255 `[B, H, W, C]`, B any number, and gives `probabilities` and `logits`, float32
`[B, num_classes]`. `images` is float32; of `tflite_int8` it is uint8, and a SavedModel has an endpoint for each. All compute in
float32 what the student was trained to compute in bfloat16.
"""

import functools
import logging
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dfa_tf.errors import UserError, nearest, shortened
from dfa_tf.export.runtimes import LABELS, OUTPUTS, package
from dfa_tf.images.splits import Splits
from dfa_tf.networks.copying import copy_of
from dfa_tf.networks.keras_file import load_model
from dfa_tf.process.startup import silent_stderr
from dfa_tf.process.status import doing
from dfa_tf.storage.scratch import scratch_folder

ALL = "all"
CALIBRATION_IMAGES = 100
_SAVED_MODEL = re.compile(
    r"(saved_model|keras_metadata|fingerprint)\.pb|assets|assets\.extra|assets\.extra/labels\.txt|variables|variables/variables\..+"
)  # what may be in one, but for files of assets, which no network here has


class Student(NamedTuple):
    """What is exported.

    Attributes:
        model: Functional or Sequential, raw pixels to logits, computing in float32.
        class_names: one for each logit.
        calibration: training images, raw pixels `[n, H, W, C]`; the ranges of int8 are measured on them.
    """

    model: keras.Model
    class_names: Sequence[str]
    calibration: np.ndarray


class Format(NamedTuple):
    """One kind of file.

    Attributes:
        file: its name in the directory `export/`.
        write: writes it.
        max_difference: the largest difference of a probability from the student's that it may show.
        agreement: the least share of images, 0..1, for which it must have the same class on top.
        packages: what it needs beside the requirements of this package, to be written and to be read again.
    """

    file: str
    write: Callable[[Student, Path], None]
    max_difference: float
    agreement: float
    packages: tuple[str, ...] = ()


def choose(names: Collection[str]) -> list[str]:
    """Checks the names of formats, and that the packages which they need are there.

    Args:
        names: of formats, or `"all"` among them.

    Returns:
        The names in the order of `FORMATS`.

    Raises:
        UserError: if a name is unknown, or a package is missing.
    """
    for name in names:
        if name not in (*FORMATS, ALL):
            raise UserError(f"a format is one of {', '.join([*FORMATS, ALL])}. Received: {name!r}. {nearest(name, FORMATS)}")
    chosen = [name for name in FORMATS if name in names or ALL in names]
    if not chosen:
        raise UserError(f"name at least one format of {', '.join([*FORMATS, ALL])}. Received: none")
    for name in chosen:
        for needed in FORMATS[name].packages:
            package(needed)
    return chosen


def read_student(file: Path, splits: Splits, *, seed: int) -> Student:
    """A trained student, made ready for export.

    Args:
        file: the `.keras` file.
        splits: of the data that it was trained on. Images for the calibration are drawn from its training images, never from others.
        seed: decides which.
    """
    training = splits.train + splits.search
    chosen = np.random.default_rng(seed).choice(len(training), min(CALIBRATION_IMAGES, len(training)), replace=False)
    calibration = np.asarray(training.images.pixels[training.indices[chosen]])
    return Student(_in_float32(load_model(file)), splits.class_names, calibration)


def _in_float32(model: keras.Model) -> keras.Model:
    for layer in model._flatten_layers():
        layer.dtype_policy = "float32"
    return copy_of(model)  # a Normalization layer holds constants of the precision that it was built for


def check_replaceable(path: Path) -> None:
    """Raises UserError if the directory of a SavedModel, which another one is to replace, holds files that no export writes."""
    if path.is_dir() and not path.is_symlink():
        for file in sorted(path.rglob("*")):
            if not _SAVED_MODEL.fullmatch(name := file.relative_to(path).as_posix()):
                raise UserError(f"{path} must hold nothing but what an export writes, which replaces it. Received: {shortened(name)} in it")


def write_all(names: Collection[str], student: Student, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Writes several files.

    Args:
        names: of formats, in `FORMATS`.
        student: what to export.
        folder: the directory to write them to.

    Returns:
        The paths by format, and by format why it cannot be written.
    """
    paths, refused = {}, {}
    for name in names:
        try:
            paths[name] = write(name, student, folder / FORMATS[name].file)
        except UserError as error:
            refused[name] = str(error)
    return paths, refused


def write(name: str, student: Student, path: Path) -> Path:
    """Writes one file.

    Args:
        name: of the format, in `FORMATS`.
        student: what to export.
        path: of the file or, of a SavedModel, the directory; it is not there yet.

    Returns:
        That path.

    Raises:
        UserError: if the format's converter cannot convert the network.
    """
    try:
        with doing(f"writing {FORMATS[name].file}"), silent_stderr():  # the converters tell their progress there
            FORMATS[name].write(student, path)
    except Exception as error:  # a converter raises what the operation that it does not know happens to raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"the student cannot be converted ({type(error).__name__}: {reason})") from error
    return path


def _labels(student: Student) -> str:
    return "\n".join(" ".join(name.split()) for name in student.class_names)


def _append_labels(student: Student, path: Path) -> None:
    # A zip archive at the end of a .tflite file is where its readers look for label files; a .keras file is one itself.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(LABELS, _labels(student))


def _serve(model: keras.Model, images: tf.Tensor) -> dict[str, tf.Tensor]:
    logits = tf.cast(model(tf.cast(images, tf.float32), training=False), tf.float32)
    return {"probabilities": tf.nn.softmax(logits), "logits": logits}


def _signature(student: Student, dtype: tf.DType = tf.float32) -> list[tf.TensorSpec]:
    return [tf.TensorSpec(student.model.inputs[0].shape, dtype, name="images")]


def _write_saved_model(student: Student, path: Path) -> None:
    archive = keras.export.ExportArchive()
    archive.track(student.model)
    for name, dtype in (("serving_default", tf.float32), ("serve_uint8", tf.uint8)):
        serve = functools.partial(_serve, student.model)
        archive.add_endpoint(name, tf.function(serve, input_signature=_signature(student, dtype)))
    archive.write_out(str(path), verbose=False)
    extra = path / "assets.extra"  # where a SavedModel keeps files that TensorFlow does not load
    extra.mkdir()
    (extra / LABELS).write_text(_labels(student), encoding="utf-8")


def _write_keras(student: Student, path: Path) -> None:
    logits = student.model.outputs[0]
    probabilities = keras.layers.Softmax(dtype="float32", name="export_probabilities")(logits)
    outputs = dict(zip(OUTPUTS, (probabilities, logits), strict=True))
    keras.Model(student.model.inputs[0], outputs, name=student.model.name).save(path)
    _append_labels(student, path)


def _write_tflite(student: Student, path: Path, *, prepare: Callable[[Student, tf.lite.TFLiteConverter], None] | None = None) -> None:
    with scratch_folder() as folder, warnings.catch_warnings():
        # TensorFlow's own calibrator still uses the interpreter that TensorFlow warns of.
        warnings.filterwarnings("ignore", r"\s*Warning: tf\.lite\.Interpreter is deprecated")
        saved_model = folder / "saved_model"
        _write_saved_model(student, saved_model)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=["serving_default"])
        if prepare is not None:
            prepare(student, converter)
        path.write_bytes(converter.convert())
    _append_labels(student, path)


def _float16(student: Student, converter: tf.lite.TFLiteConverter) -> None:
    """Weights are stored in float16."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _int8(student: Student, converter: tf.lite.TFLiteConverter) -> None:
    """Full-integer quantisation: uint8 pixels in, int8 within, float32 answers of 256 levels out."""

    def calibration() -> Iterator[dict[str, np.ndarray]]:
        for number, image in enumerate(student.calibration.astype(np.float32)):
            if number == 0:
                # One black and one white value give the input the range 0..255 exactly: its scale is 1, and a pixel stays what it is.
                image.flat[:2] = 0, 255
            yield {"images": image[np.newaxis]}

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = calibration
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8


def _write_onnx(student: Student, path: Path) -> None:
    # tf2onnx and not `model.export(format="onnx")`, whose file has no names for its outputs.
    tf2onnx, onnx = package("tf2onnx"), package("onnx")
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)  # it warns with a traceback where an optimisation does not apply
    for layer in student.model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):  # its tensors would become further inputs, and no runtime would load the file
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)
    serve = tf.function(functools.partial(_serve, student.model))
    model, _ = tf2onnx.convert.from_function(serve, _signature(student), opset=17)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(model, {LABELS: _labels(student)})
    onnx.save(model, str(path))


_LITERT = ("ai_edge_litert.interpreter",)
_ONNX = ("tf2onnx", "onnx", "onnxruntime")

FORMATS = {
    "saved_model": Format("saved_model", _write_saved_model, 1e-4, 1.0),
    "keras": Format("student.keras", _write_keras, 1e-4, 1.0),
    "tflite": Format("student.tflite", _write_tflite, 1e-4, 1.0, _LITERT),
    "tflite_float16": Format("student_float16.tflite", functools.partial(_write_tflite, prepare=_float16), 0.1, 0.98, _LITERT),
    "tflite_int8": Format("student_int8.tflite", functools.partial(_write_tflite, prepare=_int8), 1.0, 0.85, _LITERT),
    "onnx": Format("student.onnx", _write_onnx, 1e-4, 1.0, _ONNX),
}
"""By name. The tolerances are of what was measured on trained networks (wide ResNets, ResNets, MobileNets V2 and V3): float16 rounds
weights to 11 bits and moved a probability by 0.002 to 0.04; int8 agreed on 89 to 100 % of the images (of one MobileNetV2 on 76 %, which
is refused), least where the student was in doubt itself, and moves the probabilities of such images by much, so that it is held to its
agreement alone."""
