"""The arguments of `dfa_tf.compress` as a configuration, with defaults for small and middle-sized data."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dfa_tf import plugins
from dfa_tf.config import GIVEN, Config, DataConfig, DistilConfig, SearchConfig, TrainConfig
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
}  # by argument, the field that it stands for

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
    values = {_FIELDS[name]: value for name, value in arguments.items() if value is not None}
    if isinstance(config, Config):
        base, changes = config, []
    else:
        base, changes = _defaults(arguments.get("epochs"), count), [config] if isinstance(config, str) else list(config)
        if not all(isinstance(change, str) for change in changes):
            raise UserError(f"config must be a dfa_tf.Config or a list of 'key.path=value'. Received: {changes}")
        share = arguments.get("validation_share")
        if isinstance(share, float) and 0 < share < 1:
            changes.insert(0, f"data.search_fraction={(1 - share) / 2}")  # the halves of the search stay halves of what is left
    if methods is not None:
        wanted = _weights(methods)
        values["distil.methods"] = wanted
        for field in ("options", "warmup_epochs"):
            kept = {name: value for name, value in getattr(base.distil, field).items() if name in wanted}
            if kept != getattr(base.distil, field):
                values[f"distil.{field}"] = kept
    base = base.override([*changes, *(f"{field}={json.dumps(value, default=_plain)}" for field, value in values.items())])
    if not isinstance(config, Config) and "dfa" in base.distil.methods and "dfa" not in base.distil.options:
        base = base.override([f"distil.options={json.dumps({**base.distil.options, 'dfa': {'distance': 'l2_normalised'}})}"])
    return base


def _defaults(epochs: Any, count: int) -> Config:
    searching = max(1, (epochs if isinstance(epochs, int) and epochs > 0 else _EPOCHS) // 3)
    return Config(
        data=DataConfig(name=GIVEN, batch_size=max(1, min(_BATCH_SIZE, count // _BATCHES))),
        train=TrainConfig(epochs=_EPOCHS, learning_rate=_LEARNING_RATE),
        search=SearchConfig(mode="joint", epochs=searching, warmup_epochs=searching // 4, beta_learning_rate=2e-2),
        distil=DistilConfig(methods={"dfa": 2.0, "kd": 1.0}),
    )


def _weights(methods: Methods) -> dict[str, float | None]:
    """Methods by name with their weights; None for the recommended one."""
    named = [methods] if isinstance(methods, str) else methods
    wanted: dict[str, float | None] = dict(named) if isinstance(named, Mapping) else dict.fromkeys(named)
    for name in wanted:
        plugins.check("losses", name)
    return wanted


def _plain(value: Any) -> Any:
    """What JSON has no form for: paths, and numbers of NumPy."""
    return os.fspath(value) if isinstance(value, os.PathLike) else np.asarray(value).tolist()
