"""Every exported file says what the student says, in its own runtime, and carries the class names."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from dfa_tf.errors import UserError
from dfa_tf.export import runtimes
from dfa_tf.export.formats import FORMATS, choose, write, write_all
from dfa_tf.export.student import CALIBRATION_IMAGES, Student, read_student
from dfa_tf.images.splits import Splits
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.precision import precision

NAMES = ["zero", "maple tree", "café", "3", "four\nlines", "5", "6", "7", "8", "ninth"]
CARRIED = ["zero", "maple tree", "café", "3", "four lines", "5", "6", "7", "8", "ninth"]
SERVE = """
import json, sys
import numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
images = np.load(sys.argv[2])
answers = {}
for name, kind in (("serving_default", tf.float32), ("serve_uint8", tf.uint8)):
    answer = model.signatures[name](images=tf.cast(images, kind))
    answers[name] = {key: value.numpy().tolist() for key, value in answer.items()}
answers["foreign"] = [name for name in sys.modules if name.partition(".")[0] == "dfa_tf"]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def images(splits: Splits) -> np.ndarray:
    """Twelve test images, uint8 `[12, 8, 8, 1]`."""
    return splits.test.images.pixels[splits.test.indices[:12]].astype(np.uint8)


@pytest.fixture(scope="module")
def student(tiny: Callable[..., FeatureModel], splits: Splits) -> Student:
    """A network that has learnt its 60 training images, so that its answers are not in doubt everywhere."""
    model, training = tiny(8, 2).model, splits.train + splits.search
    pixels = training.images.pixels[training.indices].astype(np.float32)
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(pixels, training.labels, batch_size=60, epochs=40, verbose=0)
    return Student(model, NAMES, pixels[:20])


@pytest.fixture(scope="module")
def files(student: Student, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The student in every format."""
    paths, refused = write_all(FORMATS, student, tmp_path_factory.mktemp("files"))
    assert refused == {}
    return paths


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_gives_the_probabilities_and_logits_of_the_student_for_batches_of_any_size(
    name: str, files: dict[str, Path], student: Student, images: np.ndarray
) -> None:
    loaded = runtimes.load(files[name])
    logits = student.model(images.astype(np.float32), training=False).numpy()
    # int8: half a level of the logits, whose range is some 30, times the layers before it, in a few images.
    tolerance = {"tflite_float16": 0.05, "tflite_int8": 2.0}.get(name, 1e-4)
    for pixels in (images, images.astype(np.float32)):
        for count in (12, 1):
            answer = loaded(pixels[:count])
            np.testing.assert_allclose(answer.logits, logits[:count], atol=tolerance, rtol=0)
            np.testing.assert_allclose(answer.probabilities, softmax(answer.logits), atol=0.01 if name == "tflite_int8" else 1e-5)
            assert (answer.logits.dtype, answer.probabilities.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_carries_the_class_names_and_the_shape_of_its_images(name: str, files: dict[str, Path]) -> None:
    loaded = runtimes.load(files[name])
    assert list(loaded.class_names) == CARRIED
    assert loaded.image_shape == (8, 8, 1)


def test_a_saved_model_serves_in_a_process_without_this_package(
    files: dict[str, Path], student: Student, images: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-I", "-c", SERVE, str(files["saved_model"]), str(tmp_path / "images.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    answers = json.loads(done.stdout)
    assert answers.pop("foreign") == []
    logits = student.model(images.astype(np.float32), training=False).numpy()
    assert list(answers) == ["serving_default", "serve_uint8"]
    for answer in answers.values():
        assert sorted(answer) == ["logits", "probabilities"]
        np.testing.assert_allclose(answer["logits"], logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(answer["probabilities"], softmax(logits), rtol=1e-4, atol=1e-6)


def test_a_keras_file_loads_with_plain_keras_and_has_built_in_layers_only(
    files: dict[str, Path], student: Student, images: np.ndarray
) -> None:
    model = keras.models.load_model(files["keras"])
    assert {type(layer).__module__.split(".")[0] for layer in model.layers} == {"keras"}
    answer = model(images.astype(np.float32), training=False)
    logits = student.model(images.astype(np.float32), training=False).numpy()
    np.testing.assert_allclose(answer["logits"], logits, atol=1e-5)
    np.testing.assert_allclose(answer["probabilities"], softmax(logits), atol=1e-5)


def test_int8_takes_pixels_as_they_are_although_no_training_image_spans_their_range(student: Student, tmp_path: Path) -> None:
    narrow = student._replace(calibration=student.calibration / 2 + 20)  # 20..148
    interpreter = Interpreter(str(write("tflite_int8", narrow, tmp_path / "student.tflite")))
    (pixels,) = interpreter.get_input_details()
    assert (pixels["dtype"], pixels["quantization"]) == (np.uint8, (1.0, 0))
    assert narrow.calibration.min() >= 20, "the images themselves stay what they are"


def test_int8_computes_in_integers(files: dict[str, Path]) -> None:
    interpreter = Interpreter(str(files["tflite_int8"]))
    outputs = {output["name"] for output in interpreter.get_output_details()}
    real = {tensor["name"] for tensor in interpreter.get_tensor_details() if tensor["dtype"] == np.float32}
    assert real == outputs


def test_float16_takes_half_of_the_size_and_int8_a_quarter_of_many_weights(images: np.ndarray, tmp_path: Path) -> None:
    layers = [keras.layers.Flatten(), keras.layers.Dense(4096), keras.layers.Dense(10)]  # 300 thousand weights: the graph counts for little
    student = Student(keras.Sequential([keras.layers.Input((8, 8, 1)), *layers]), NAMES, images)
    size = {
        name: write(name, student, tmp_path / FORMATS[name].file).stat().st_size for name in ("tflite", "tflite_float16", "tflite_int8")
    }
    assert 0.49 < size["tflite_float16"] / size["tflite"] < 0.53
    assert 0.24 < size["tflite_int8"] / size["tflite"] < 0.3


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_student_computes_in_float32_when_exported_and_keeps_its_normalisation(
    policy: str, splits: Splits, images: np.ndarray, tmp_path: Path
) -> None:
    with precision(policy):
        raw = keras.layers.Input((8, 8, 1))
        given = keras.layers.Normalization(axis=-1, mean=[50.3], variance=[400.0])  # 50.3 is 50.25 in bfloat16
        adapted = keras.layers.Normalization(axis=-1)
        adapted.adapt(np.array([10.3, 30.3], np.float32).reshape(1, 1, 2, 1))  # mean 20.3, deviation 10
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([given(raw), adapted(raw)]))
        keras.Model(raw, keras.layers.Dense(10, "linear", kernel_initializer="ones", dtype="float32")(x)).save(tmp_path / "trained.keras")
    student = read_student(tmp_path / "trained.keras", splits, seed=0)
    mean = images.mean(axis=(1, 2, 3))
    expected = np.tile((mean - 50.3) / 20 + (mean - 20.3) / 10, (10, 1)).T
    for name in ("saved_model", "keras", "tflite", "onnx"):
        answer = runtimes.load(write(name, student, tmp_path / FORMATS[name].file))(images)
        np.testing.assert_allclose(answer.logits, expected, atol=2e-4)


def test_calibration_images_are_training_images_drawn_by_seed(splits: Splits, student: Student, tmp_path: Path) -> None:
    student.model.save(tmp_path / "student.keras")
    first, again, other = (read_student(tmp_path / "student.keras", splits, seed=seed).calibration for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    training = splits.train + splits.search
    assert len(first) == len(training) == 60
    assert CALIBRATION_IMAGES >= 60, "all of them, in another order"
    known = training.images.pixels[training.indices].reshape(60, -1)
    assert sorted(map(tuple, first.reshape(60, -1))) == sorted(map(tuple, known))


def test_a_network_that_cannot_be_converted_is_told_and_the_others_are_written(images: np.ndarray, tmp_path: Path) -> None:
    pixels = keras.layers.Input((8, 8, 1))
    outside = keras.layers.Lambda(lambda x: keras.ops.erfinv(x / 512), output_shape=(8, 8, 1))(pixels)  # TFLite has no such operation
    model = keras.Model(pixels, keras.layers.Dense(10)(keras.layers.Flatten()(outside)))
    paths, refused = write_all(["saved_model", "tflite"], Student(model, NAMES, images), tmp_path)
    assert list(paths) == ["saved_model"]
    assert list(refused) == ["tflite"]
    assert refused["tflite"].startswith("the student cannot be converted (ConverterError: ")


def test_formats_are_chosen_in_one_order_and_a_wrong_name_is_told() -> None:
    assert choose(["onnx", "keras"]) == ["keras", "onnx"]
    assert choose(["all"]) == list(FORMATS)
    with pytest.raises(UserError, match="Received: 'tflite_int4'. Did you mean 'tflite_int8'"):
        choose(["keras", "tflite_int4"])
    with pytest.raises(UserError, match="at least one format"):
        choose([])


def test_a_missing_converter_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tf2onnx", None)  # as where it is not installed
    assert choose(["tflite", "keras"]) == ["keras", "tflite"]
    with pytest.raises(UserError, match="this format needs tf2onnx: pip install tf2onnx"):
        choose(["onnx"])
