"""Several teachers as one: an ensemble is a FeatureModel like any other."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from dfa_tf.errors import UserError
from dfa_tf.networks.copying import copy_onto
from dfa_tf.networks.features import FeatureModel


def ensemble(teachers: Sequence[FeatureModel]) -> FeatureModel:
    """Makes one teacher of several, with the mean of their logits and all their blocks as candidates.

    Its model is one flat graph over one image: copies of the teachers, whose layers are named `teacher1_...`, `teacher2_...`
    in their order, so that it can be saved as a `.keras` file. Blocks have these names too; to read the file again, give
    `FeatureModel.from_model` the names from `block_names()`, because the groups of several networks cannot be found in a graph.
    A group has the blocks of all teachers, those of the first one first: the last block is the last teacher's. There is no
    embedding, because no single Dense layer makes the logits, and no tail, because no group can be cut from the rest.

    Args:
        teachers: two or more; the ensemble has its own copies of their weights. They agree in image shape, classes, tap, number of
            groups and the shape of each group.

    Returns:
        A model from raw pixels `[B, H, W, C]` to float32 logits `[B, num_classes]`, with the merged groups of the teachers.

    Raises:
        UserError: if there are fewer than two teachers, or they do not agree.
    """
    _check(teachers)
    first = teachers[0]
    pixels = layers.Input(first.image_shape, name="image")
    logits = [copy_onto(teacher.model, pixels, prefix=f"teacher{i}_") for i, teacher in enumerate(teachers, start=1)]
    model = keras.Model(pixels, layers.Average(dtype="float32", name="logits")(logits), name="ensemble")
    groups = [
        [f"teacher{i}_{block.name}" for i, teacher in enumerate(teachers, start=1) for block in teacher.groups[index].blocks]
        for index in range(len(first.groups))
    ]
    return FeatureModel.from_model(model, groups, first.tap)


def _check(teachers: Sequence[FeatureModel]) -> None:
    if len(teachers) < 2:
        raise UserError(f"an ensemble needs two teachers or more. Received: {len(teachers)}")
    agreed: dict[str, list[Any]] = {
        "image_shape": [teacher.image_shape for teacher in teachers],
        "num_classes": [teacher.num_classes for teacher in teachers],
        "tap": [teacher.tap for teacher in teachers],
        "the shapes of their groups": [[group.shape for group in teacher.groups] for teacher in teachers],
    }
    for what, values in agreed.items():
        if any(value != values[0] for value in values):
            received = ", ".join(f"{value} of {teacher.model.name!r}" for value, teacher in zip(values, teachers, strict=True))
            raise UserError(f"the teachers of an ensemble must agree in {what}. Received: {received}")
