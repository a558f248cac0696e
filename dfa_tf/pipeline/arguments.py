"""The arguments of `dfa_tf.compress` as a configuration, with defaults for small and middle-sized data."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dfa_tf import plugins
from dfa_tf.config import GIVEN, Config, DataConfig, DistilConfig, SearchConfig, TrainConfig
from dfa_tf.config.overrides import parse
from dfa_tf.errors import UserError

_EPOCHS, _LEARNING_RATE, _BATCH_SIZE, _BATCHES = 30, 0.05, 64, 16
_FIELDS = {
    "seed": "seed",
    "batch_size": "data.batch_size",
    "validation_share": "data.validation_fraction",
    "aggregation": "distil.aggregation",
    "epochs": "distil.epochs",
    "learning_rate": "distil.learning_rate",
    "choose_best": "train.choose_best",
}  # the field that each argument sets

Methods = str | Sequence[str] | Mapping[str, float | None]


def configure(config: Config | str | Sequence[str], count: int, *, methods: Methods | None = None, **arguments: Any) -> Config:
    """The configuration of a call.

    Args:
        config: a whole configuration, or fields that replace the defaults, `"key.path=value"` each.
        count: of the training images.
        methods: the methods of stage 2, in any of the forms that `compress` takes.
        **arguments: values by the names of `_FIELDS`; None leaves a field as it is.

    Raises:
        UserError: naming the field, what was received, and the nearest right one.
    """
    values = {_FIELDS[name]: _plain(value) for name, value in arguments.items() if value is not None}
    if isinstance(config, Config):
        return config.replace(values | _methods(config, methods))
    changes, base = _changes(config, arguments.get("validation_share")), _defaults(arguments.get("epochs"), count)
    values |= _methods(base, methods)
    chosen = base.replace({key: value for key, value in changes.items() if key not in values} | values)
    if "dfa" in chosen.distil.methods and "dfa" not in chosen.distil.options:
        chosen = chosen.replace({"distil.options.dfa": {"distance": "l2_normalised"}})
    return chosen


def _changes(config: str | Sequence[str], validation_share: Any) -> dict[str, Any]:
    """The fields that replace the defaults, by dotted name."""
    texts = [config] if isinstance(config, str) else list(config)
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"config must be a dfa_tf.Config or a list of 'key.path=value'. Received: {texts}")
    held_out = isinstance(validation_share, float) and 0 < validation_share < 1
    # The two halves of the search stay equal.
    halves = {"data.search_fraction": (1 - validation_share) / 2} if held_out else {}
    return halves | parse(texts)


def _defaults(epochs: Any, count: int) -> Config:
    searching = max(1, (epochs if isinstance(epochs, int) and epochs > 0 else _EPOCHS) // 3)
    return Config(
        data=DataConfig(name=GIVEN, batch_size=max(1, min(_BATCH_SIZE, count // _BATCHES))),
        train=TrainConfig(epochs=_EPOCHS, learning_rate=_LEARNING_RATE),
        search=SearchConfig(mode="joint", epochs=searching, warmup_epochs=searching // 4, beta_learning_rate=2e-2),
        distil=DistilConfig(methods={"dfa": 2.0, "kd": 1.0}),
    )


def _methods(base: Config, methods: Methods | None) -> dict[str, Any]:
    """The fields that the methods of a call set: their weights, None for the recommended one; options of other methods go."""
    if methods is None:
        return {}
    named = [methods] if isinstance(methods, str) else methods
    wanted: dict[str, float | None] = dict(named) if isinstance(named, Mapping) else dict.fromkeys(named)
    for name in wanted:
        plugins.check("losses", name)
    values = {"distil.methods": _plain(wanted)}
    for field in ("options", "warmup_epochs"):
        before = getattr(base.distil, field)
        kept = {name: value for name, value in before.items() if name in wanted}
        if kept != before:
            values[f"distil.{field}"] = kept
    return values


def _plain(value: Any) -> Any:
    """A value as JSON has it: paths as text, numbers of NumPy as Python's."""
    convert = lambda each: os.fspath(each) if isinstance(each, os.PathLike) else np.asarray(each).tolist()  # noqa: E731
    return json.loads(json.dumps(value, default=convert))
