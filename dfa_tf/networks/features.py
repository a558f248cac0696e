"""A Keras classifier seen through its layer groups: block outputs in one forward pass, and tails.

A layer group is the run of layers that share one spatial size; its blocks are the candidates of the
feature aggregation. Both are read from the model's graph.
"""

import os
from collections.abc import Collection, Sequence

import keras

from dfa_tf.config import Tap
from dfa_tf.errors import UserError, nearest
from dfa_tf.networks.blocks import LayerGroup
from dfa_tf.networks.extractor import Extractor, Features
from dfa_tf.networks.flatten import flat_classifier
from dfa_tf.networks.graph import Graph
from dfa_tf.networks.groups import LeftOut, find_groups, name_groups
from dfa_tf.networks.keras_file import load_model

__all__ = ["TAPS", "Extractor", "FeatureModel", "Features"]

TAPS: tuple[Tap, ...] = ("pre_activation", "output")


class FeatureModel:
    """A stock Keras classifier with its layer groups; build it with `from_model`.

    Attributes:
        model: the classifier itself if it is flat and returns logits; else a flat model of the same layers and weights (see
            `dfa_tf.networks.flatten`), so that training one trains the other.
        groups: its layer groups, from the image to the logits.
        tap: where block outputs are read unless another tap is requested.
        left_out: layers that resemble blocks but are none; empty if the user named the groups.
    """

    def __init__(self, model: keras.Model, groups: Sequence[LayerGroup], tap: Tap, left_out: Sequence[LeftOut] = ()) -> None:
        self.model = model
        self.groups = tuple(groups)
        self.tap = tap
        self.left_out = tuple(left_out)

    @classmethod
    def from_model(
        cls,
        model: "keras.Model | FeatureModel | str | os.PathLike[str]",
        groups: Sequence[Sequence[str]] | None = None,
        tap: Tap | None = None,
    ) -> "FeatureModel":
        """Finds the layer groups of a classifier.

        Args:
            model: a Functional or Sequential model from images `[B, H, W, C]` to logits `[B, num_classes]`, or the path of its `.keras`
                file. It may contain models, such as a network of keras.applications under a head, and may end in a softmax, which is
                removed. A FeatureModel is returned as it is, or with the given tap.
            groups: names of the blocks' layers by group, from shallow to deep, including layers of nested models; None finds them in
                the graph.
            tap: `"pre_activation"` (default), the tensor that enters the next ReLU, or `"output"`, the
                block's output.

        Raises:
            UserError: if the model is of a kind that cannot be read, or a name is unknown.

        Examples:
            >>> layers = keras.layers
            >>> network = keras.Sequential([
            ...     layers.Input((8, 8, 3)), layers.Conv2D(4, 3, padding="same"), layers.ReLU(name="first"),
            ...     layers.Conv2D(8, 3, 2, padding="same"), layers.ReLU(name="second"),
            ...     layers.GlobalAveragePooling2D(), layers.Dense(10),
            ... ])
            >>> FeatureModel.from_model(network).block_names()
            [['first'], ['second']]
        """
        tap = tap or (model.tap if isinstance(model, FeatureModel) else "pre_activation")
        if tap not in TAPS:
            raise UserError(f"a tap is one of {TAPS}. Received: {tap!r}. {nearest(tap, TAPS)}")
        if isinstance(model, FeatureModel):
            if groups is None:
                return model if tap == model.tap else cls(model.model, model.groups, tap, model.left_out)
            model = model.model
        if not isinstance(model, keras.Model):
            model = load_model(model)
        model = flat_classifier(model)
        if groups is not None:
            return cls(model, name_groups(Graph(model), groups), tap)
        found, left_out = find_groups(Graph(model))
        return cls(model, found, tap, left_out)

    def with_model(self, model: keras.Model) -> "FeatureModel":
        """The blocks of the same names at the same tap of another model, a copy of this one."""
        return FeatureModel.from_model(model, self.block_names(), self.tap)

    @property
    def num_classes(self) -> int:
        return int(self.model.outputs[0].shape[-1])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width, channels."""
        return tuple(self.model.inputs[0].shape[1:])

    def block_names(self) -> list[list[str]]:
        """The names of the blocks by group."""
        return [[block.name for block in group.blocks] for group in self.groups]

    def extractor(self, taps: Collection[Tap] = (), layers: Collection[str] = (), *, up_to_group: int | None = None) -> Extractor:
        """A callable that returns logits, block outputs and embedding in one forward pass.

        Args:
            taps: taps to read beside the model's own.
            layers: names of layers whose outputs to read.
            up_to_group: index of the last group that is read. The network is cut after it and returns no logits. None does not cut.

        Raises:
            UserError: if the model has no layer of that name.
        """
        return Extractor(self.model, self.groups, self.tap, taps=taps, layers=layers, up_to_group=up_to_group)

    def embedding_width(self, reader: str) -> int:
        """D of the embedding `[B, D]`.

        Raises:
            UserError: if there is none; the message names the method that reads it.
        """
        embedding = Graph(self.model).embedding
        if embedding is None:
            raise UserError(
                f"{reader} reads the embedding, the input of the last Dense layer. Received: {self.model.name!r}, which has none"
            )
        return int(embedding.shape[-1])

    def tail(self, group: int) -> keras.Model:
        """The part of the model after a group, with shared weights: the teacher-to-student path enters here.

        Args:
            group: index of the group.

        Returns:
            A model from the group's last block output `[B, H, W, C]` (the `"output"` tap, whatever the model's own) to logits
            `[B, num_classes]`. A call with `training=True` updates the model's BatchNorm statistics.

        Raises:
            UserError: if a skip connection crosses the cut.
        """
        block = self.groups[group].blocks[-1]
        cut = block.taps["output"].tensor
        try:
            return keras.Model(cut, self.model.outputs[0], name=f"{self.model.name}_tail{group + 1}")
        except ValueError as error:
            raise UserError(f"a group must end where the graph can be cut: all paths pass through {block.name!r}. ({error})") from None
