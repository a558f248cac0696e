"""Contrastive representation distillation (CRD): embeddings of one image agree, those of different images do not.

References:
    Tian, Krishnan, Isola (2020), Contrastive Representation Distillation, ICLR 2020, arXiv 1910.10699, section 3.1, with
    the loss of Eq. 18; and its code, RepDistiller.
    Wu, Xiong, Yu, Lin (2018), Unsupervised Feature Learning via Non-Parametric Instance Discrimination, arXiv 1805.01978:
    the memory, and noise-contrastive estimation with a constant Z.
"""

import math
import random
from pathlib import Path
from typing import ClassVar, Literal, get_args

import keras
import numpy as np
import tensorflow as tf

from dfa_tf.errors import UserError, nearest
from dfa_tf.images.splits import Split
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features

Exclude = Literal["class", "example"]


class ContrastiveRepresentation(Method):
    """Noise-contrastive loss of the student's embeddings with a memory of the teacher's, and vice versa, per example."""

    needs: ClassVar[tuple[Literal["index"], ...]] = ("index",)
    reads = ("embedding",)
    recommended_weight = 0.8

    def __init__(
        self, widths: tuple[int, int], *, negatives: int, temperature: float, momentum: float, embedding_size: int, exclude: Exclude
    ) -> None:
        super().__init__("crd")
        self._most_negatives, self._temperature, self._momentum = negatives, temperature, momentum
        self._size, self._exclude = embedding_size, exclude
        # Drawn as Keras draws the seeds of its layers, so that keras.utils.set_random_seed determines it.
        self._seed = random.randint(1, 10**9)
        self.heads = [_head(width, embedding_size, name) for width, name in zip(widths, ("student_head", "teacher_head"), strict=True)]

    def prepare(self, teacher: FeatureModel, data: Split, cache: Path | None) -> None:
        """Initialises the memories at random, and records which examples are never negatives of each other."""
        count = len(data)
        # An example is never contrasted with the examples of its own mark, which are neighbours in the order.
        marks = data.classes if self._exclude == "class" else np.arange(count)
        _, mark, sizes = np.unique(marks, return_inverse=True, return_counts=True)
        if sizes.max() == count:
            raise UserError(f"negatives of crd are drawn from other classes. Received: {count} training images, all of one class")
        self._order = np.argsort(mark, kind="stable").astype(np.int32)
        self._first, self._excluded = ((np.cumsum(sizes) - sizes)[mark].astype(np.int32), sizes[mark].astype(np.int32))
        self._negatives = min(self._most_negatives, count - 1)
        bound = math.sqrt(3 / self._size)  # vectors of length 1 on average
        # Each replica assigns its own value. The mean of the memories holds the changes of all replicas (see `_remember`). All replicas
        # use the mean of log Z. The step is the same on all.
        self.memories = [
            self.add_weight(
                shape=(count, self._size),
                initializer=keras.initializers.RandomUniform(-bound, bound),
                trainable=False,
                aggregation="mean",
                name=f"{name}_memory",
            )
            for name in ("student", "teacher")
        ]
        self.log_z = [
            self.add_weight(shape=(), initializer="zeros", trainable=False, aggregation="mean", name=f"{name}_log_z")
            for name in ("student", "teacher")
        ]
        self.step = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, aggregation="only_first_replica", name="step"
        )

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        if not hasattr(self, "memories"):
            raise UserError("crd has a memory of the training images: call prepare(teacher, data, cache) before the training")
        positions = tf.concat([tf.cast(batch.index, tf.int32)[:, tf.newaxis], self._draw(batch.index)], axis=1)
        ours, theirs = (
            tf.math.l2_normalize(head(network.embedding), axis=1) for head, network in zip(self.heads, (student, teacher), strict=True)
        )
        # The anchors of each network are contrasted with the memory of the other.
        loss = self._contrast(ours, positions, self.memories[1], self.log_z[0])
        loss += self._contrast(theirs, positions, self.memories[0], self.log_z[1])
        for memory, embeddings in zip(self.memories, (ours, theirs), strict=True):
            self._remember(memory, embeddings, batch.index)
        self.step.assign(self.step + 1)
        return {"crd": loss}

    def _draw(self, index: tf.Tensor) -> tf.Tensor:
        """Positions of the negatives of the examples `[B]`, drawn with replacement: int32 `[B, negatives]`."""
        context = tf.distribute.get_replica_context()  # None in the Distiller's symbolic call
        replica = 0 if context is None else context.replica_id_in_sync_group
        number = self.step * tf.distribute.get_strategy().num_replicas_in_sync + replica
        first, excluded = (tf.gather(tf.constant(array), index)[:, tf.newaxis] for array in (self._first, self._excluded))
        shape = [tf.shape(index)[0], self._negatives]
        # The remainder makes some positions more probable, by n / 2^31 of their probability.
        drawn = tf.random.stateless_uniform(shape, [self._seed, number], 0, tf.int32.max, tf.int32) % (len(self._order) - excluded)
        return tf.gather(tf.constant(self._order), tf.where(drawn < first, drawn, drawn + excluded))

    def _contrast(self, anchors: tf.Tensor, positions: tf.Tensor, memory: keras.Variable, log_z: keras.Variable) -> tf.Tensor:
        """The loss of anchors `[B, D]` with the memory at the positions `[B, 1 + negatives]`, the positive one first: `[B]`."""
        count, negatives = memory.shape[0], self._negatives
        # Computes all similarities and selects some: gathering the vectors would take D times the memory.
        scores = tf.gather(tf.matmul(anchors, memory, transpose_b=True), positions, batch_dims=1) / self._temperature
        # Z = n E[exp(score)], estimated at the first step and then kept. No gradient flows through a variable.
        estimate = tf.reduce_logsumexp(scores) - tf.math.log(tf.cast(tf.size(scores), tf.float32) / count)
        log_z.assign(tf.where(self.step == 0, estimate, log_z))
        # P / (P + m / n) of P = exp(score) / Z is the sigmoid of log P - log(m / n), which does not overflow.
        log_odds = scores - log_z - math.log(negatives / count)
        return tf.nn.softplus(-log_odds[:, 0]) + tf.reduce_sum(tf.nn.softplus(log_odds[:, 1:]), axis=1)

    def _remember(self, memory: keras.Variable, embeddings: tf.Tensor, index: tf.Tensor) -> None:
        """Moves the examples' rows of a memory towards their embeddings."""
        rows = tf.gather(memory, index)
        moved = tf.math.l2_normalize(self._momentum * rows + (1 - self._momentum) * embeddings, axis=1)
        change = tf.scatter_nd(index[:, tf.newaxis], moved - rows, tf.shape(memory, tf.int64))
        # Each of R replicas has its own examples: the mean of memory + R change is the memory with all their changes.
        memory.assign(memory + tf.distribute.get_strategy().num_replicas_in_sync * change)


def _head(width: int, size: int, name: str) -> keras.layers.Dense:
    bound = 1 / math.sqrt(width)
    # Not zero: for an embedding of 0 the bias alone keeps the vector away from 0, where the normalisation's gradient is huge.
    bias = keras.initializers.RandomUniform(-bound, bound)
    head = keras.layers.Dense(size, bias_initializer=bias, dtype="float32", name=name)
    head.build((None, width))
    return head


def build(
    student: FeatureModel,
    teacher: FeatureModel,
    *,
    negatives: int = 16384,
    temperature: float = 0.07,
    momentum: float = 0.5,
    embedding_size: int = 128,
    exclude: Exclude = "class",
) -> ContrastiveRepresentation:
    """Contrastive distillation of the embeddings, with a memory of all training images for each network.

    The positive of an image is the image itself (`exact` in the code). Negatives are drawn at each step from Keras' seed, the step and
    the replica. They are drawn with replacement; the code draws without it as long as there are enough. The loss is the code's without
    its 1e-7. A batch must not hold an image twice. On several devices the memories (n times `embedding_size` numbers each) are averaged
    at each step.

    Args:
        student: its embedding is contrasted, after a trained Dense layer and L2 normalisation.
        teacher: the same for the teacher.
        negatives: number for each image, at least 1; limited to the number of other images.
        temperature: of the similarities, above 0.
        momentum: of the memories, from 0 to below 1.
        embedding_size: of the Dense layers, at least 1.
        exclude: the images that are never negatives of an image: those of its `"class"` (as in the code; the better choice in the
            paper), or only the `"example"` itself, which needs no labels.

    Returns:
        A method with recommended weight 0.8, as in the paper's code; its loss is a sum over the negatives.

    Raises:
        UserError: if a network has no embedding, or an option is out of its range.
    """
    if exclude not in get_args(Exclude):
        raise UserError(f"unknown value of exclude of crd. Received: {exclude!r}. {nearest(exclude, get_args(Exclude))}")
    for name, value in (("negatives", negatives), ("embedding_size", embedding_size)):
        if not (isinstance(value, int) and value >= 1):
            raise UserError(f"the {name} of crd must be an integer of at least 1. Received: {value!r}")
    if not temperature > 0:
        raise UserError(f"the temperature of crd must be above 0. Received: {temperature}")
    if not 0 <= momentum < 1:
        raise UserError(f"the momentum of crd must be from 0 to below 1. Received: {momentum}")
    widths = [network.embedding_width("crd") for network in (student, teacher)]
    return ContrastiveRepresentation(
        (widths[0], widths[1]),
        negatives=negatives,
        temperature=float(temperature),
        momentum=float(momentum),
        embedding_size=embedding_size,
        exclude=exclude,
    )
