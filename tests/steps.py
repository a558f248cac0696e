"""Shared by the tests of the Distiller and of methods: one batch, one step, and weights compared."""

import keras
import numpy as np

from dfa_tf.distiller import Distiller

IMAGES = np.random.default_rng(0).uniform(0, 255, (12, 8, 8, 1)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 10, 12).astype(np.int32)


def step(distiller: Distiller, rate: float = 0.0) -> dict[str, float]:
    """The logs of one eager step."""
    if not hasattr(distiller, "optimizer"):
        distiller.compile(optimizer=keras.optimizers.SGD(rate), run_eagerly=True)
    distiller.reset_metrics()
    logs = distiller.train_on_batch(IMAGES, LABELS, return_dict=True)
    return {name: float(value) for name, value in logs.items()}


def weights_of(model: keras.Model) -> list[np.ndarray]:
    return [weight.copy() for weight in model.get_weights()]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
