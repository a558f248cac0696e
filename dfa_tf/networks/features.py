"""A Keras classifier seen through its layer groups: block outputs in one forward pass, and tails.

A layer group is the run of layers that share one spatial size; its blocks are the candidates of the
feature aggregation. Both are read from the model's graph.
"""

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from dfa_tf.config import Tap
from dfa_tf.errors import UserError, nearest
from dfa_tf.networks.flatten import flat_classifier
from dfa_tf.networks.graph import Graph, LayerGroup
from dfa_tf.networks.groups import LeftOut, find_groups, name_groups
from dfa_tf.networks.keras_file import check_keras_file, refusal

_LOG = logging.getLogger(__name__)

TAPS: tuple[Tap, ...] = ("pre_activation", "output")


class Features(NamedTuple):
    """What one forward pass gives.

    Attributes:
        logits: `[B, num_classes]`; None of a network that is cut.
        groups: block outputs at the model's own tap; `groups[i][j]` is block j of group i, `[B, H, W, C]`.
        embedding: input of the last Dense layer, `[B, D]`; None where the model has none, or is cut.
        taps: by name of the tap, the groups at the model's own tap and at those that were asked for.
        layers: by name of the layer, the outputs that were asked for.
    """

    logits: tf.Tensor
    groups: tuple[tuple[tf.Tensor, ...], ...]
    embedding: tf.Tensor | None
    taps: dict[Tap, tuple[tuple[tf.Tensor, ...], ...]] = {}  # noqa: RUF012 (nothing is ever put into it)
    layers: dict[str, tf.Tensor] = {}  # noqa: RUF012 (likewise)

    def at(self, tap: Tap) -> tuple[tuple[tf.Tensor, ...], ...]:
        """The groups at a tap that the extractor was made for.

        Raises:
            UserError: if it was not.
        """
        if tap not in self.taps:
            raise UserError(f"features are read at {sorted(self.taps)}. Received: {tap!r}; a method names its taps in `taps`")
        return self.taps[tap]


class FeatureModel:
    """A stock Keras classifier with its layer groups; made by `from_model`.

    Attributes:
        model: the classifier itself, unchanged, where it is flat and gives logits; else such a one of the same layers
            and weights (see `dfa_tf.networks.flatten`), so that training the one trains the other.
        groups: its layer groups, from the image to the logits.
        tap: where block outputs are read unless another tap is asked for.
        left_out: what looked like a block and is none; empty where the user named the groups.
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
            model: a Functional or Sequential model of images `[B, H, W, C]` to logits `[B, num_classes]`, or the path
                of its `.keras` file. It may have models inside, as a network of keras.applications under a head, and
                a softmax at its end, which is taken off. A FeatureModel is handed back, with another tap where given.
            groups: names of the blocks' layers by group, from shallow to deep, also of layers of models inside; read
                from the graph where None.
            tap: `"pre_activation"` (default), the tensor that enters the next ReLU, or `"output"`, what the
                block hands on.

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

    def extractor(self, taps: Collection[Tap] = (), layers: Collection[str] = (), *, through: int | None = None) -> "Extractor":
        """A callable that gives logits, block outputs and embedding in one forward pass.

        Args:
            taps: taps to read beside the model's own.
            layers: names of layers whose outputs to read.
            through: index of the last group that is read: the network is cut behind it, and gives no logits. None cuts nothing.

        Raises:
            UserError: if the model has no layer of such a name.
        """
        return Extractor(self, taps, layers, through)

    def embedding_width(self, reader: str) -> int:
        """D of the embedding `[B, D]`.

        Raises:
            UserError: if there is none; it names the method that reads it.
        """
        embedding = Graph(self.model).embedding
        if embedding is None:
            raise UserError(
                f"{reader} reads the embedding, the input of the last Dense layer. Received: {self.model.name!r}, which has none"
            )
        return int(embedding.shape[-1])

    def tail(self, group: int) -> keras.Model:
        """The part of the model behind a group, sharing its weights: the teacher-to-student path enters here.

        Args:
            group: index of the group.

        Returns:
            A model of the group's last block output `[B, H, W, C]` (what it hands on, whatever the tap) to
            logits `[B, num_classes]`. Called with `training=True` it moves the model's BatchNorm statistics.

        Raises:
            UserError: if a skip connection crosses the cut.
        """
        block = self.groups[group].blocks[-1]
        cut = block.taps["output"].tensor
        try:
            return keras.Model(cut, self.model.outputs[0], name=f"{self.model.name}_tail{group + 1}")
        except ValueError as error:
            raise UserError(f"a group must end where the graph can be cut: all paths pass through {block.name!r}. ({error})") from None


class Extractor:
    """One forward pass of a FeatureModel, read at several places.

    Attributes:
        model: the `keras.Model` behind it, with a flat list of outputs.
        classifier: the model that it reads.
    """

    def __init__(
        self, feature_model: FeatureModel, taps: Collection[Tap] = (), layers: Collection[str] = (), through: int | None = None
    ) -> None:
        self._tap, self.classifier = feature_model.tap, feature_model.model
        self._index: dict[int, int] = {}
        outputs: list[keras.KerasTensor] = []

        def place(tensor: keras.KerasTensor) -> int:
            if id(tensor) not in self._index:
                self._index[id(tensor)] = len(outputs)
                outputs.append(tensor)
            return self._index[id(tensor)]

        source = feature_model.model
        graph = Graph(source)
        self._logits = place(source.outputs[0]) if through is None else None
        embedding = graph.embedding if through is None else None
        self._embedding = None if embedding is None else place(embedding)
        end = None if through is None else through + 1
        self._taps = {
            tap: tuple(tuple(place(block.taps[tap].tensor) for block in group.blocks) for group in feature_model.groups[:end])
            for tap in dict.fromkeys([feature_model.tap, *taps])
        }
        self._layers = {name: place(graph.output_of(name)) for name in layers}
        self.model = keras.Model(source.inputs[0], outputs, name=f"{source.name}_features")

    def __call__(self, images: tf.Tensor, training: bool = False) -> Features:
        """Features of a batch of raw pixels, `[B, H, W, C]`."""
        return self.features(self.model(images, training=training))

    def symbolic(self) -> Features:
        """The same as symbolic tensors: shapes and dtypes without a forward pass."""
        return self.features(self.model.outputs)

    def features(self, outputs: Any) -> Features:
        """The features that outputs of the model are."""
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        taps = {tap: tuple(tuple(outputs[at] for at in group) for group in groups) for tap, groups in self._taps.items()}
        logits, embedding = (None if at is None else outputs[at] for at in (self._logits, self._embedding))
        layers = {name: outputs[at] for name, at in self._layers.items()}
        return Features(logits, taps[self._tap], embedding, taps, layers)


class Frozen:
    """A network that teaches: features without a gradient, weights and statistics that never change.

    Made by `frozen`.

    Attributes:
        extractor: reads its features.
    """

    def __init__(self, network: FeatureModel, extractor: Extractor, training: bool) -> None:
        self._network, self.extractor, self._training = network, extractor, training

    def __call__(self, images: tf.Tensor, records: Mapping[str, tf.Tensor] | None = None) -> Features:
        """Features of a batch.

        Args:
            images: raw pixels, `[B, H, W, C]`.
            records: outputs of the extractor's model that are known already, by their place among them, `"0"` for the first.
                The network is not called then, and all other outputs are NaN.
        """
        if records is None:
            return self.extractor.features(self.outputs(images))
        known = [records.get(str(place)) for place in range(len(self.extractor.model.outputs))]
        outputs = zip(known, self.extractor.model.outputs, strict=True)
        return self.extractor.features([_unknown(images, output) if value is None else value for value, output in outputs])

    def outputs(self, images: tf.Tensor) -> list[tf.Tensor]:
        """The outputs of the extractor's model for a batch of raw pixels, `[B, H, W, C]`."""
        return [tf.stop_gradient(output) for output in keras.tree.flatten(self.extractor.model(images, training=self._training))]

    def symbolic(self) -> Features:
        """As `Extractor.symbolic`."""
        return self.extractor.symbolic()

    def through(self, group: int) -> "Frozen":
        """The same network, read at its own tap and cut behind a group, as `FeatureModel.extractor` does it."""
        return Frozen(self._network, self._network.extractor(through=group), self._training)


def _unknown(images: tf.Tensor, output: keras.KerasTensor) -> tf.Tensor:
    return tf.fill([tf.shape(images)[0], *output.shape[1:]], tf.constant(math.nan, output.dtype))


def frozen(teacher: FeatureModel, taps: Collection[Tap] = (), batchnorm: str = "inference", layers: Collection[str] = ()) -> Frozen:
    """A teacher as it is used: frozen.

    Args:
        teacher: the network.
        taps: taps to read beside its own.
        batchnorm: `"inference"` uses the moving statistics of its BatchNorm; `"training"` those of each batch,
            as OFD does, on a copy whose moving statistics have momentum 1 and so stay what they are. Under a
            strategy of several devices it is called in its scope.
        layers: names of layers whose outputs to read.
    """
    if batchnorm == "inference":
        return Frozen(teacher, teacher.extractor(taps, layers), training=False)
    copy = copy_of(teacher.model)
    for layer in copy._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable, layer.momentum = True, 1.0
            layer.synchronized = tf.distribute.get_strategy().num_replicas_in_sync > 1
        elif hasattr(layer, "rate"):
            layer.rate = 0.0  # dropout is not what the switch asks for
    network = FeatureModel.from_model(copy, teacher.block_names(), teacher.tap)
    return Frozen(network, network.extractor(taps, layers), training=True)


def copy_of(model: keras.Model, *, weights: bool = True, policy: Callable[[keras.layers.Layer], str] | None = None) -> keras.Model:
    """A copy of a model with variables of its own.

    Args:
        model: Functional and flat.
        weights: copy them, or else draw them anew. Normalization layers keep what they were adapted to either way,
            which `keras.models.clone_model` and `set_weights` would lose.
        policy: of a layer the name of the dtype policy that its copy is to have; each keeps its own where None.
    """

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        changed = {} if policy is None or isinstance(layer, keras.layers.InputLayer) else {"dtype": policy(layer)}
        return type(layer).from_config({**layer.get_config(), **changed})

    copy = keras.models.clone_model(model, clone_function=clone)
    if weights:
        copy.set_weights(model.get_weights())
    for ours, theirs in zip(copy.layers, model.layers, strict=True):
        if isinstance(ours, keras.layers.Normalization):
            ours.set_weights(theirs.get_weights())
            ours.finalize_state()
    return copy


def copy_onto(model: keras.Model, tensor: keras.KerasTensor, *, prefix: str) -> keras.KerasTensor:
    """Puts a copy of a model, with variables of its own, behind a symbolic tensor, in the flat graph that it belongs to.

    Args:
        model: Functional and flat, with one input and one output.
        tensor: takes the place of its input.
        prefix: of the names of the copy's layers, so that they differ from others in that graph.

    Returns:
        The copy's output. Normalization layers keep what they were adapted to.
    """
    outputs: list[keras.KerasTensor] = []

    def renamed(operation: Any) -> Any:
        return type(operation).from_config({**operation.get_config(), "name": f"{prefix}{operation.name}"})

    def call(operation: Any, *args: Any, **kwargs: Any) -> keras.KerasTensor:
        outputs.append(operation(*args, **kwargs))
        return outputs[-1]

    inputs = keras.tree.map_structure(lambda _: tensor, model.input)
    copy = keras.models.clone_model(model, inputs, clone_function=renamed, call_function=call)
    copy.set_weights(model.get_weights())
    for layer in copy.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # what it computes with is made of its weights, and set_weights does not make it
    # Not the output of `copy`, to which Keras gives an input of its own where `tensor` is none: the last call makes the output.
    return outputs[-1]


@contextlib.contextmanager
def twice_differentiable(*models: keras.Model) -> Iterator[None]:
    """Lets every BatchNorm inside of these models take its variance as E[x^2] - E[x]^2, where they are called within.

    Otherwise `tf.nn.moments` takes it, which holds the mean fixed within the variance: right for a first derivative and
    wrong for a second one.
    """
    layers = [layer for model in models for layer in model._flatten_layers()]
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized]
    for norm in norms:
        norm.synchronized = True
    try:
        yield
    finally:
        for norm in norms:
            norm.synchronized = False


def save_model(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Saves a model as it is called: without what its owner has compiled it with."""
    keras.Model(model.inputs[0], model.outputs[0], name=model.name).save(path)


def load_model(path: str | os.PathLike[str]) -> keras.Model:
    """Loads a `.keras` file, in safe mode and without its optimizer: nothing in it is run as code.

    Raises:
        UserError: if it is not a readable `.keras` file of layers of Keras.
    """
    check_keras_file(path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            model = keras.models.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # Keras raises what the broken part of the file happens to raise
            raise UserError(f"a model must be a .keras file that Keras loads. Received: {os.fspath(path)} ({refusal(error)})") from None
    if not isinstance(model, keras.Model):
        raise UserError(f"a model must be a .keras file of a model. Received: {os.fspath(path)}, which holds a {type(model).__name__}")
    for warning in told:
        _LOG.warning("%s: %s", os.fspath(path), " ".join(str(warning.message).split()))
    return model
