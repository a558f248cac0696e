"""A SavedModel serves what the Keras student says, without this package, and is not left behind if it does not."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from dfa_tf.export import export_saved_model

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


@pytest.fixture
def images(splits) -> np.ndarray:
    """Twelve test images, uint8 `[12, 8, 8, 1]`."""
    return splits.test.images.pixels[splits.test.indices[:12]]


def test_a_saved_model_serves_in_a_process_without_this_package(build_model, images: np.ndarray, tmp_path: Path) -> None:
    model = build_model("wrn_10_1")
    parity = export_saved_model(model, tmp_path / "saved_model", images)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-I", "-c", SERVE, str(tmp_path / "saved_model"), str(tmp_path / "images.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    answers = json.loads(done.stdout)
    assert answers.pop("foreign") == []
    logits = model(images.astype(np.float32), training=False).numpy()
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    for answer in answers.values():
        assert sorted(answer) == ["logits", "probabilities"]
        np.testing.assert_allclose(answer["logits"], logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(answer["probabilities"], exponentials / exponentials.sum(1, keepdims=True), rtol=1e-4, atol=1e-6)
    assert (parity.images, parity.agreement) == (12, 1.0)
    assert parity.max_difference < 1e-5
    assert parity.bytes == sum(file.stat().st_size for file in (tmp_path / "saved_model").rglob("*") if file.is_file())


def test_a_saved_model_that_answers_otherwise_is_not_left_behind(images: np.ndarray, tmp_path: Path) -> None:
    # Noise that stays on in inference: two calls never agree, as with a layer that an export breaks.
    class Restless(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.generator = keras.random.SeedGenerator(1)

        def call(self, inputs):
            return inputs + keras.random.normal(keras.ops.shape(inputs), seed=self.generator)

    pixels = keras.layers.Input((8, 8, 1))
    model = keras.Model(pixels, Restless()(keras.layers.Dense(10)(keras.layers.Flatten()(pixels))))
    with pytest.raises(RuntimeError, match="differs from the student"):
        export_saved_model(model, tmp_path / "saved_model", images)
    assert list(tmp_path.iterdir()) == []


def test_float_pixels_between_the_grey_levels_are_compared_too(build_model, images: np.ndarray, tmp_path: Path) -> None:
    assert export_saved_model(build_model("wrn_10_1"), tmp_path / "saved_model", images + np.float32(0.4)).max_difference < 1e-5
