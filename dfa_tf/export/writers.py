"""The writers of the formats: each writes a student to one file or, for a SavedModel, to one directory."""

import functools
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from dfa_tf.export.runtimes import LABELS, OUTPUTS, package
from dfa_tf.export.student import Student
from dfa_tf.storage.scratch import scratch_folder


def write_saved_model(student: Student, path: Path) -> None:
    archive = keras.export.ExportArchive()
    archive.track(student.model)
    for name, dtype in (("serving_default", tf.float32), ("serve_uint8", tf.uint8)):
        serve = functools.partial(_serve, student.model)
        archive.add_endpoint(name, tf.function(serve, input_signature=_signature(student, dtype)))
    archive.write_out(str(path), verbose=False)
    extra = path / "assets.extra"  # where a SavedModel keeps files that TensorFlow does not load
    extra.mkdir()
    (extra / LABELS).write_text(_labels(student), encoding="utf-8")


def write_keras(student: Student, path: Path) -> None:
    logits = student.model.outputs[0]
    probabilities = keras.layers.Softmax(dtype="float32", name="export_probabilities")(logits)
    outputs = dict(zip(OUTPUTS, (probabilities, logits), strict=True))
    keras.Model(student.model.inputs[0], outputs, name=student.model.name).save(path)
    _append_labels(student, path)


def write_tflite(student: Student, path: Path, *, prepare: Callable[[Student, tf.lite.TFLiteConverter], None] | None = None) -> None:
    with scratch_folder() as folder, warnings.catch_warnings():
        # TensorFlow's own calibrator still uses the interpreter that TensorFlow warns of.
        warnings.filterwarnings("ignore", r"\s*Warning: tf\.lite\.Interpreter is deprecated")
        saved_model = folder / "saved_model"
        write_saved_model(student, saved_model)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=["serving_default"])
        if prepare is not None:
            prepare(student, converter)
        path.write_bytes(converter.convert())
    _append_labels(student, path)


def float16(student: Student, converter: tf.lite.TFLiteConverter) -> None:
    """Weights are stored in float16."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def int8(student: Student, converter: tf.lite.TFLiteConverter) -> None:
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


def write_onnx(student: Student, path: Path) -> None:
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
