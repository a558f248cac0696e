"""Where the outputs of a teacher are cached: names of files, made of all that the values depend on."""

import hashlib
import json
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path

import keras
import tensorflow as tf

from dfa_tf.config import Config
from dfa_tf.images.sources import digest_of
from dfa_tf.images.splits import Splits
from dfa_tf.networks.frozen_teacher import FrozenTeacher
from dfa_tf.networks.graph import Graph
from dfa_tf.training.cached_files import CachedFile


def cached_files(folder: Path, teacher: FrozenTeacher, read: Collection[str], splits: Splits, config: Config) -> dict[str, CachedFile]:
    """The file of each output, for every view of the training images.

    Args:
        folder: of the files.
        teacher: frozen.
        read: names of the outputs, as in `Extractor.outputs`.
        splits: the data.
        config: its `data` is read.
    """
    content, places = _content(teacher, splits, config)
    rows = len(splits.train + splits.search) * config.augmentation["views"]
    files = {}
    for name, output in zip(teacher.extractor.outputs, teacher.extractor.model.outputs, strict=True):
        if name in read:
            own = hashlib.sha256(content + places[id(output)].encode())
            files[name] = CachedFile(folder / f"{own.hexdigest()[:32]}.npy", rows, output)
    return files


def _content(teacher: FrozenTeacher, splits: Splits, config: Config) -> tuple[bytes, dict[int, str]]:
    """A hash of all that the outputs depend on; and by id of a tensor, its place in the graph."""
    network = teacher.extractor.classifier
    graph, places = _described(network)
    data, content = splits.train + splits.search, hashlib.sha256(graph.encode())
    for array in (*network.get_weights(), data.indices):
        content.update(array.tobytes())
    content.update((splits.source.digest or digest_of(data.images)).encode())
    about = {
        "data": {**config.stage_fields("plain")["data"], "seed": config.data_seed},
        "devices": sorted({device.device_type for device in tf.config.list_logical_devices()}),
        "versions": {name: version(name) for name in ("tensorflow", "keras")},
    }
    content.update(json.dumps(about, sort_keys=True).encode())
    return content.digest(), places


def _described(network: keras.Model) -> tuple[str, dict[int, str]]:
    """A network's graph without names, which count up in a process; and by id of a tensor, its place in the graph."""
    nodes = Graph(network).nodes
    places = {id(tensor): f"{number}:{output}" for number, node in enumerate(nodes) for output, tensor in enumerate(node.outputs)}
    lines = []
    for node in nodes:
        called = keras.tree.map_structure(lambda value: places.get(id(value), repr(value)), [node.arguments.args, node.arguments.kwargs])
        config = {**node.operation.get_config(), "name": ""}
        lines.append(json.dumps([type(node.operation).__name__, config, called], sort_keys=True, default=repr))
    return "\n".join(lines), places
