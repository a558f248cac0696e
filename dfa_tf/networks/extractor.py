"""One forward pass of a network, read at several layers; each reader gets the outputs that it declared."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, overload

import keras
import tensorflow as tf

from dfa_tf.config import Tap
from dfa_tf.errors import UserError, nearest
from dfa_tf.networks.blocks import LayerGroup
from dfa_tf.networks.graph import Graph

Blocks = Sequence[tf.Tensor]


class _Outputs(NamedTuple):
    logits: Any
    groups: Any
    embedding: Any
    taps: Any = {}  # noqa: RUF012 (never modified)
    layers: Any = {}  # noqa: RUF012 (never modified)
    refused: dict[str, dict[str, None]] = {}  # noqa: RUF012 (never modified)


class Features(_Outputs):
    """The outputs of one forward pass.

    Attributes:
        logits: `[B, num_classes]`; None if the network is cut.
        groups: block outputs at the model's own tap; `groups[i][j]` is block j of group i, `[B, H, W, C]`.
        embedding: input of the last Dense layer, `[B, D]`; None if the model has none, or is cut.
        taps: by name of the tap, the groups at the model's own tap and at the requested ones; read them through `at`.
        layers: by name of the layer, the requested outputs.
        refused: by reader, the attributes that it must not read because it did not declare them. They are the keys of a dict because
            Keras lets only tensors and None through as values. Reading one raises UserError.
    """

    __slots__ = ()

    @property
    def logits(self) -> tf.Tensor:
        return self._read("logits", self[0])

    @property
    def groups(self) -> Sequence[Blocks]:
        return self._groups("groups", self[1])

    @property
    def embedding(self) -> tf.Tensor | None:
        return self._read("embedding", self[2])

    @property
    def layers(self) -> Mapping[str, tf.Tensor]:
        return _Declared(self[4], lambda name, value: self._read(f"layers[{name!r}]", value)) if self.refused else self[4]

    def at(self, tap: Tap) -> Sequence[Blocks]:
        """The groups at a tap that the extractor was built for.

        Raises:
            UserError: if it was not built for this tap, or a block was not declared.
        """
        if tap not in self.taps:
            raise UserError(f"features are read at {sorted(self.taps)}. Received: {tap!r}; a method names its taps in `taps`")
        return self._groups(f"at({tap!r})", self.taps[tap])

    def _groups(self, attribute: str, groups: tuple[tuple[tf.Tensor, ...], ...]) -> Sequence[Blocks]:
        if not self.refused:
            return groups
        refused = {attribute for attributes in self.refused.values() for attribute in attributes}

        def checked(group: str, blocks: tuple[tf.Tensor, ...]) -> Blocks:
            if refused.isdisjoint(f"{group}[{j}]" for j in range(len(blocks))):
                return blocks
            return _DeclaredBlocks(blocks, lambda j, value: self._read(f"{group}[{j}]", value))

        return tuple(checked(f"{attribute}[{i}]", blocks) for i, blocks in enumerate(groups))

    def _read(self, attribute: str, value: Any) -> Any:
        for reader, refused in self.refused.items():
            if attribute in refused:
                raise UserError(
                    f"{reader} must declare every output of the teacher that it reads. Received: teacher.{attribute}, "
                    "which is not declared in `reads`, `taps` and `teacher_layers` (see dfa_tf.methods.Method)"
                )
        return value


class _Declared(dict[str, tf.Tensor]):
    """Outputs by name; each is checked when it is read."""

    def __init__(self, values: Mapping[str, tf.Tensor], read: Callable[[str, tf.Tensor], tf.Tensor]) -> None:
        super().__init__(values)
        self._read = read

    def __getitem__(self, name: str) -> tf.Tensor:
        return self._read(name, super().__getitem__(name))


class _DeclaredBlocks(Sequence[tf.Tensor]):
    """The blocks of a group; each is checked when it is read."""

    def __init__(self, blocks: Sequence[tf.Tensor], read: Callable[[int, tf.Tensor], tf.Tensor]) -> None:
        self._blocks, self._read = blocks, read

    def __len__(self) -> int:
        return len(self._blocks)

    @overload
    def __getitem__(self, index: int) -> tf.Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[tf.Tensor]: ...

    def __getitem__(self, index: int | slice) -> tf.Tensor | Sequence[tf.Tensor]:
        places = range(len(self._blocks))[index]
        if isinstance(places, int):
            return self._read(places, self._blocks[places])
        return [self[place] for place in places]


class Extractor:
    """One forward pass of a FeatureModel, read at several layers.

    Outputs have readable names: `"logits"`, `"embedding"`, `"pre_activation/group1/block2"` (tap, group and block from 1) and
    `"layer/NAME"`. Several names may stand for one tensor.

    Args:
        source: the classifier.
        layer_groups: its groups.
        tap: its own tap.
        taps: taps to read beside its own.
        layers: names of layers whose outputs to read.
        up_to_group: index of the last group that is read, where the network is cut; None does not cut.

    Attributes:
        model: the `keras.Model` behind it, with a flat list of outputs.
        classifier: the model that it reads.
        outputs: one name for each output of the model, in order: the first if there are several.
    """

    def __init__(
        self,
        source: keras.Model,
        layer_groups: Sequence[LayerGroup],
        tap: Tap,
        *,
        taps: Collection[Tap] = (),
        layers: Collection[str] = (),
        up_to_group: int | None = None,
    ) -> None:
        self._tap = tap
        graph, whole = Graph(source), up_to_group is None
        groups = layer_groups if up_to_group is None else layer_groups[: up_to_group + 1]
        self._sizes = [len(group.blocks) for group in groups]
        self._taps = list(dict.fromkeys([tap, *taps]))
        tensors: dict[str, keras.KerasTensor] = {}
        if whole:
            tensors["logits"] = source.outputs[0]
        if whole and graph.embedding is not None:
            tensors["embedding"] = graph.embedding
        for each in self._taps:
            for i, group in enumerate(groups):
                tensors |= {_block_name(each, i, j): block.taps[each].tensor for j, block in enumerate(group.blocks)}
        tensors |= {f"layer/{name}": graph.output_of(name) for name in layers}
        firsts: dict[int, str] = {}
        self._first_name = {name: firsts.setdefault(id(tensor), name) for name, tensor in tensors.items()}
        self.outputs = tuple(firsts.values())
        self.classifier = source
        self.model = keras.Model(source.inputs[0], [tensors[name] for name in self.outputs], name=f"{source.name}_features")

    def __call__(self, images: tf.Tensor, training: bool = False) -> Features:
        """Features of a batch of raw pixels, `[B, H, W, C]`."""
        return self.features(self.model(images, training=training))

    def symbolic(self) -> Features:
        """The same as symbolic tensors: shapes and dtypes without a forward pass."""
        return self.features(self.model.outputs)

    def features(self, outputs: Any) -> Features:
        """The features from the outputs of the model."""
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        return self._arranged(dict(zip(self.outputs, outputs, strict=True)))

    def from_some(self, outputs: Mapping[str, tf.Tensor]) -> Features:
        """The features from some outputs by name; reading another one raises UserError."""
        here = {name for name, first in self._first_name.items() if first in outputs}
        return self.declared(self._arranged(outputs), here, "a reader of cached outputs")

    def _arranged(self, outputs: Mapping[str, tf.Tensor]) -> Features:
        def value(name: str) -> Any:
            return outputs.get(self._first_name.get(name, ""))

        def blocks(tap: Tap) -> tuple[tuple[Any, ...], ...]:
            return tuple(tuple(value(_block_name(tap, i, j)) for j in range(size)) for i, size in enumerate(self._sizes))

        taps = {tap: blocks(tap) for tap in self._taps}
        layers = {name.partition("/")[2]: value(name) for name in self._first_name if name.startswith("layer/")}
        return Features(value("logits"), taps[self._tap], value("embedding"), taps, layers)

    def names_read(self, reads: Collection[str] | None, taps: Collection[Tap] = (), layers: Collection[str] = ()) -> set[str]:
        """The names of the outputs that a reader declares, as `dfa_tf.methods.Method` does: all names if `reads` is None.

        Raises:
            UserError: if a declaration is unknown.
        """
        if reads is None:
            return set(self._first_name)
        names = {f"layer/{name}" for name in layers} | ({"logits", "embedding"} & {*reads})
        for read in {*reads} - {"logits", "embedding"}:
            names |= {_block_name(tap, i, j) for tap in taps or [self._tap] for i, j in self._blocks(read)}
        return names & {*self._first_name}

    def _blocks(self, read: str) -> list[tuple[int, int]]:
        """The group and block of each block that a declaration names."""
        known = {f"group{i + 1}/block{j + 1}": [(i, j)] for i, size in enumerate(self._sizes) for j in range(size)}
        known |= {f"group{i + 1}/last_block": [(i, size - 1)] for i, size in enumerate(self._sizes)}
        known["groups"] = [(i, j) for i, size in enumerate(self._sizes) for j in range(size)]
        known["last_blocks"] = [(i, size - 1) for i, size in enumerate(self._sizes)]
        if read not in known:
            names = ["logits", "embedding", *known]
            raise UserError(f"`reads` names outputs of the teacher. Received: {read!r}. {nearest(read, names)}")
        return known[read]

    def outputs_of(self, names: Collection[str]) -> set[str]:
        """The outputs of the model that these names stand for."""
        return {self._first_name[name] for name in names}

    def declared(self, features: Features, names: Collection[str], reader: str) -> Features:
        """The same features, limited to the names that a reader declared."""
        refused: dict[str, None] = {}
        for name in self._first_name:
            if name not in names:
                refused |= dict.fromkeys(self._attributes(name))
        return features._replace(refused={**features.refused, reader: refused}) if refused else features

    def _attributes(self, name: str) -> list[str]:
        """Where features hold the output of this name."""
        kind, _, rest = name.partition("/")
        if kind in ("logits", "embedding"):
            return [kind]
        if kind == "layer":
            return [f"layers[{rest!r}]"]
        i, j = (int(part.removeprefix(what)) - 1 for part, what in zip(rest.split("/"), ("group", "block"), strict=True))
        return [f"at({kind!r})[{i}][{j}]", *([f"groups[{i}][{j}]"] if kind == self._tap else [])]


def _block_name(tap: Tap, group: int, block: int) -> str:
    return f"{tap}/group{group + 1}/block{block + 1}"
