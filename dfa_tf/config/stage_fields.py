"""The fields that each stage reads, and their hash: a stage runs again when one of them changes.

Paths are left out: the content behind them counts, as a digest among the inputs of the hash.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from dfa_tf.config.schema import Fields
from dfa_tf.errors import UserError, nearest

_VIEW = {"tap", "groups"}
"""Fields of a network that only distillation and the search read."""


def stage_fields(config: Fields, stage: str) -> dict[str, Any]:
    """The fields that a stage reads, as JSON values.

    Args:
        config: of the run.
        stage: one of `STAGES`.

    Raises:
        UserError: if there is no such stage.
    """
    if stage not in _READ:
        raise UserError(f"unknown stage. Received: {stage!r}. {nearest(stage, STAGES)}")
    return _READ[stage](config)


def stage_hash(config: Fields, stage: str, *inputs: str) -> str:
    """Sixteen hexadecimal digits of a stage's fields and of the digests of its input artifacts."""
    text = json.dumps([stage, stage_fields(config, stage), inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _images(config: Fields) -> dict[str, Any]:
    """The search split is part of every training set but that of the search."""
    return {"seed": config.seed, "data": _data(config, "search_fraction")}


def _teacher(config: Fields) -> dict[str, Any]:
    if config.teacher.path is not None:
        return _images(config)
    network = config.teacher.model_dump(mode="json", include={"name", "options"})
    return {**_images(config), "student": {}, "train": config.train.model_dump(mode="json"), "teacher": network}


def _plain(config: Fields) -> dict[str, Any]:
    return {**_images(config), "student": _student(config, *_VIEW), "train": config.student_train.model_dump(mode="json")}


def _search(config: Fields) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "data": _data(config),
        "teacher": _teaching(config),
        "student": _student(config),
        "train": config.train.model_dump(mode="json", include={"precision", "jit_compile"}),
        "search": config.search.model_dump(mode="json"),
    }


def _distil(config: Fields) -> dict[str, Any]:
    distil = config.distil.model_dump(mode="json", exclude={"epochs", "learning_rate"})
    if config.distil.aggregation_file is not None:
        distil["aggregation"] = "file"
    return {
        **_plain(config),
        "student": _student(config),
        "teacher": _teaching(config),
        "distil": distil,
        "search": {"standardise": config.search.standardise},
    }


def _data(config: Fields, *unread: str) -> dict[str, Any]:
    return config.data.model_dump(mode="json", exclude={"data_dir": True, "options": {"archive"}, **dict.fromkeys(unread, True)})


def _student(config: Fields, *unread: str) -> dict[str, Any]:
    """The name and options of a network from a file do not count: nothing is built from them."""
    unbuilt = {"name", "options"} if config.student.path else set()
    return config.student.model_dump(mode="json", exclude={"path", *unbuilt, *unread})


def _teaching(config: Fields) -> dict[str, Any]:
    return {**config.teacher.model_dump(mode="json", include=_VIEW | {"batchnorm"}), "precision": config.teacher_precision}


_READ: dict[str, Callable[[Fields], dict[str, Any]]] = {
    "teacher": _teacher,
    "plain": _plain,
    "search": _search,
    "distil": _distil,
    "evaluate": _images,
    "export": _images,
    "report": _images,
}
STAGES = tuple(_READ)
