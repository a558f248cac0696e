"""Export of a student: SavedModel, reloaded and compared before it counts as done."""

from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dfa_tf.runs import atomic

TOLERANCE = 1e-4
"""Largest difference of a probability from the Keras student's that a SavedModel may show."""


class Parity(NamedTuple):
    """How an exported file compares with the Keras student on the same images.

    Attributes:
        images: how many were compared.
        agreement: share of the images with the same class on top, 0..1.
        max_difference: largest absolute difference of a probability.
        bytes: size of all files.
    """

    images: int
    agreement: float
    max_difference: float
    bytes: int


def export_saved_model(model: keras.Model, path: Path, images: np.ndarray) -> Parity:
    """Writes a SavedModel that serves without this package.

    Its endpoint `serving_default` takes float32 raw pixels and `serve_uint8` takes uint8, both
    `images`: `[B, H, W, C]`, 0..255; both give `probabilities` and `logits`, float32 `[B, num_classes]`.

    Args:
        model: raw pixels to logits.
        path: the directory to write; one that is there is replaced once the new one has passed.
        images: raw pixels to compare on, `[n, H, W, C]`; rounded, so that both endpoints can take them.

    Raises:
        RuntimeError: if the reloaded model answers otherwise; nothing is left behind then.
    """

    def serve(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = tf.cast(model(tf.cast(pixels, tf.float32), training=False), tf.float32)
        return {"probabilities": tf.nn.softmax(logits), "logits": logits}

    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, dtype in (("serving_default", tf.float32), ("serve_uint8", tf.uint8)):
        signature = [tf.TensorSpec(model.inputs[0].shape, dtype, name="images")]
        archive.add_endpoint(name, tf.function(serve, input_signature=signature))
    with atomic(path) as temporary:
        archive.write_out(str(temporary), verbose=False)
        parity = _compare(model, temporary, images)
        if parity.agreement < 1 or not parity.max_difference <= TOLERANCE:
            raise RuntimeError(f"the SavedModel differs from the student: {parity}, where {TOLERANCE} is tolerated")
    return parity


def _compare(model: keras.Model, path: Path, images: np.ndarray) -> Parity:
    """The worse of both endpoints against the Keras model."""
    images = np.rint(images).astype(np.uint8)
    expected = tf.nn.softmax(tf.cast(model(tf.cast(images, tf.float32), training=False), tf.float32)).numpy()
    loaded = tf.saved_model.load(str(path))
    agreement, difference = 1.0, 0.0
    for name, dtype in (("serving_default", tf.float32), ("serve_uint8", tf.uint8)):
        served = loaded.signatures[name](images=tf.cast(images, dtype))["probabilities"].numpy()
        agreement = min(agreement, float(np.mean(served.argmax(1) == expected.argmax(1))))
        difference = max(difference, float(np.abs(served - expected).max()))
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Parity(len(images), agreement, difference, size)
