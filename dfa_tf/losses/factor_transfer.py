"""Factor transfer: a paraphraser of the teacher's last feature, and a translator of the student's.

References:
    Kim, Park, Kwak (2018), Paraphrasing Complex Network: Network Compression via Factor Transfer, NeurIPS, arXiv 1802.04977,
    section 3: the reconstruction loss of the paraphraser, and the factor transfer loss.
"""

import io
import logging
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from dfa_tf.config import Tap
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Split
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.connectors import same_resolution
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.frozen_teacher import FrozenTeacher, frozen
from dfa_tf.networks.layers import convolve
from dfa_tf.networks.pairing import pair_groups
from dfa_tf.storage.files import atomic
from dfa_tf.storage.reading import read_bytes
from dfa_tf.training.replicas import ReplicatedModel, distributed

_LOG = logging.getLogger(__name__)
_LARGEST_BATCH = 128
_LEAST_STEPS = 64


class FactorTransfer(Method):
    """The mean of |u/||u|| - v/||v|||^p, for the student's factor u and the teacher's v."""

    taps: ClassVar[tuple[Tap, ...]] = ("output",)
    recommended_weight = 500.0

    def __init__(self, student: FeatureModel, teacher: FeatureModel, rate: float, p: float, epochs: int) -> None:
        super().__init__("factor_transfer")
        self.reads = (f"group{len(teacher.groups)}/last_block",)
        ours, theirs = pair_groups(student, teacher)[-1]
        factors = max(round(rate * theirs.channels), 1)
        self.p = p
        self.epochs = epochs
        self.translator = _convolutions(ours.shape, [ours.channels, factors, factors], "translator")
        self.paraphraser = _convolutions(theirs.shape, [theirs.channels, factors, factors], "paraphraser")
        self.paraphraser.trainable = False
        self._prepared = False

    def prepare(self, teacher: FeatureModel, data: Split, cache: Path | None) -> None:
        """Trains the paraphraser with a decoder that inverts it, without labels and augmentation, or loads it from `cache`."""
        channels = self.paraphraser.input_shape[-1]
        # Built even if there is nothing to train: later random draws must not depend on the cache.
        decoder = _convolutions(self.paraphraser.output_shape[1:], [self.paraphraser.output_shape[-1], channels, channels], "decoder")
        path = None if cache is None else cache / "paraphraser.npz"
        if path is None or not self._loaded(path):
            self.paraphraser.trainable = True
            _train(_Autoencoder(frozen(teacher, self.taps), self.paraphraser, decoder), data, self.epochs)
            self.paraphraser.trainable = False
            if path is not None:
                with atomic(path) as temporary:
                    np.savez(temporary, *self.paraphraser.get_weights())
        self._prepared = True

    def _loaded(self, path: Path) -> bool:
        """Loads the paraphraser, and returns whether it did. Warns if the file is damaged."""
        if not path.exists():
            return False
        content = read_bytes(path, "a paraphraser")
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                self.paraphraser.set_weights([arrays[f"arr_{i}"] for i in range(len(self.paraphraser.weights))])
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            _LOG.warning("%s is damaged (%s): the paraphraser is trained again", path, error)
            return False
        return True

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        if not self._prepared:
            raise UserError("factor_transfer needs a paraphraser: call prepare(teacher, data, cache) before the training, as distil does")
        ours = tf.cast(self.translator(student.at("output")[-1][-1]), tf.float32)
        theirs = tf.cast(self.paraphraser(teacher.at("output")[-1][-1]), tf.float32)
        difference = tf.abs(tf.subtract(*map(_unit, same_resolution(ours, theirs))))
        return {"factor_transfer": tf.reduce_mean(difference**self.p, axis=1)}


class _Autoencoder(ReplicatedModel):
    """Trains encoder and decoder on the teacher's last features; the squared error is its loss."""

    def __init__(self, teach: FrozenTeacher, encoder: keras.Model, decoder: keras.Model) -> None:
        super().__init__(name="autoencoder", dtype="float32")  # the teacher reads its pixels in full precision
        self._teach, self.encoder, self.decoder = teach, encoder, decoder

    def call(self, images: tf.Tensor) -> tf.Tensor:
        feature = tf.cast(self._teach(images).at("output")[-1][-1], tf.float32)
        reconstructed = tf.cast(self.decoder(self.encoder(feature)), tf.float32)
        self.add_loss(tf.reduce_mean(tf.math.squared_difference(reconstructed, feature)))
        return reconstructed


def _train(autoencoder: keras.Model, data: Split, epochs: int) -> None:
    strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    # Few images come in smaller batches: a handful of updates would hardly change the paraphraser.
    batch_size = replicas * min(max(len(data) // (_LEAST_STEPS * replicas), 1), _LARGEST_BATCH // replicas)
    images = data.batches(batch_size, seed=0).map(lambda batch: batch["images"])
    autoencoder.compile(optimizer=keras.optimizers.Adam(1e-3))
    fitted = autoencoder.fit(distributed(images, strategy), epochs=epochs, steps_per_epoch=data.steps(batch_size), shuffle=False, verbose=0)
    errors = fitted.history["loss"]
    _LOG.info("the paraphraser's squared error: %.4g in the first epoch, %.4g in the last", errors[0], errors[-1])


def _convolutions(source: Sequence[int], widths: Sequence[int], name: str) -> keras.Model:
    """3x3 convolutions with bias to these widths, with a LeakyReLU of slope 0.1 after each."""
    feature = x = layers.Input(tuple(source))
    for i, width in enumerate(widths, start=1):
        x = layers.LeakyReLU(0.1, name=f"{name}_relu{i}")(convolve(x, width, 3, name=f"{name}_conv{i}", bias=True))
    return keras.Model(feature, x, name=name)


def _unit(factor: tf.Tensor) -> tf.Tensor:
    return tf.math.l2_normalize(tf.reshape(factor, [tf.shape(factor)[0], -1]), axis=1)


def build(student: FeatureModel, teacher: FeatureModel, *, rate: float = 0.5, p: float = 1.0, epochs: int = 5) -> FactorTransfer:
    """Factors of the last group's output.

    Paraphraser and translator are those of the authors' code: three convolutions without BatchNorm. The term is the mean over the
    elements of the factor. The recommended weight is the code's beta, 500 on CIFAR-10. RepDistiller's 200 is for another term: it
    compares the means of the factors' squares over the channels. The paraphraser is trained before the student, by Adam at 1e-3 on the
    squared error of the paper (the authors' code: SGD on the absolute error). The teacher's BatchNorm uses its moving statistics.
    Batches hold 128 images, or fewer if an epoch would otherwise have fewer than 64 batches. Where resolutions differ, the finer factor
    is pooled to the coarser.

    Args:
        student: the output of its last block is translated.
        teacher: the output of its last block is paraphrased.
        rate: k, channels of a factor divided by those of the teacher's feature, above 0.
        p: of the norm, at least 1: 1 in the authors' code.
        epochs: of the paraphraser's training, at least 1: 5 in the authors' code, 30 in RepDistiller.

    Raises:
        UserError: if an option is out of range, or the groups do not pair.
    """
    if not 0 < rate < math.inf:
        raise UserError(f"the rate of factor_transfer must be above 0. Received: {rate}")
    if not 1 <= p < math.inf:
        raise UserError(f"p of factor_transfer must be at least 1. Received: {p}")
    if not isinstance(epochs, int) or epochs < 1:
        raise UserError(f"the epochs of factor_transfer must be a whole number of at least 1. Received: {epochs}")
    return FactorTransfer(student, teacher, rate, float(p), epochs)
