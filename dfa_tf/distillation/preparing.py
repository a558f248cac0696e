"""Builds stage 2 from a configuration: its methods, and the Distiller that trains with them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import Config, TrainConfig
from dfa_tf.distillation.distiller import Distiller, as_method
from dfa_tf.images.splits import Split
from dfa_tf.methods import Method
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.pairing import keep_paired_groups
from dfa_tf.networks.precision import computing_in
from dfa_tf.process.status import doing
from dfa_tf.training.strategies import in_scope

KerasLosses = Mapping[str, tuple[keras.distillation.DistillationLoss, float]]
"""Keras' distillation losses by name, each with its weight."""


def takes_aggregation(config: Config) -> bool:
    """Whether a method of the configuration takes aggregation weights."""
    return any("aggregation" in plugins.arguments("losses", name) for name in config.distil.methods)


def needs_search(config: Config) -> bool:
    """Whether stage 2 reads searched weights."""
    return takes_aggregation(config) and config.distil.aggregation == "searched"


def build_methods(
    config: Config, student: FeatureModel, teacher: FeatureModel, aggregation: AggregationWeights | None
) -> dict[str, Method]:
    """The methods of a configuration by name, for these networks.

    Raises:
        UserError: if an option or the networks do not fit a method.
    """
    methods = {}
    for name in config.distil.methods:
        options: dict[str, Any] = dict(config.distil.options.get(name, {}))
        if "aggregation" in plugins.arguments("losses", name):
            if aggregation is not None and config.distil.discretise:
                aggregation = aggregation.discretised()
            options["aggregation"] = aggregation
        methods[name] = plugins.build("losses", name, student, teacher, **options)
    return methods


def placed(
    student: FeatureModel, teacher: FeatureModel | None, config: Config, strategy: tf.distribute.Strategy
) -> tuple[FeatureModel, FeatureModel | None]:
    """Both networks in the scope of the strategy, with paired layer groups; seeds Keras for the layers built after them."""
    student = in_scope(strategy, student)
    if teacher is not None:
        teacher = computing_in(config.teacher_precision, in_scope(strategy, teacher))
    # Here and not before: copying the networks draws random numbers, and connectors must not depend on that.
    keras.utils.set_random_seed(config.seed)
    return (student, None) if teacher is None else keep_paired_groups(student, teacher)


def all_methods(
    config: Config, student: FeatureModel, teacher: FeatureModel, aggregation: AggregationWeights | None, keras_losses: KerasLosses
) -> dict[str, Method]:
    """The methods of the configuration, and Keras' losses as methods."""
    methods = build_methods(config, student, teacher, aggregation)
    return methods | {name: as_method(name, loss, student, teacher) for name, (loss, _) in keras_losses.items()}


def prepare(methods: Mapping[str, Method], teacher: FeatureModel, data: Split, config: Config, folder: Path | None) -> None:
    """Calls `Method.prepare`; each method keeps its result in its own folder, if a folder is given."""
    for name, method in methods.items():
        with doing(f"preparing {name}"):
            method.prepare(teacher, data, None if folder is None else folder / _folder_name(config, name, teacher))


def _folder_name(config: Config, method: str, teacher: FeatureModel) -> str:
    """A name that differs if the teacher's weights differ, or any field that the stage reads."""
    weights = hashlib.sha256(b"".join(weight.tobytes() for weight in teacher.model.get_weights())).hexdigest()
    return f"{method}-{config.stage_hash('distil', weights)}"


def build_distiller(
    student: FeatureModel,
    teacher: FeatureModel | None,
    methods: Mapping[str, Method],
    config: Config,
    *,
    train: TrainConfig,
    keras_losses: KerasLosses,
    steps: int,
) -> Distiller:
    """The Distiller of a configuration; without methods it trains plainly.

    Args:
        student: the network that is trained.
        teacher: of the methods.
        methods: prepared.
        config: its `distil`, `teacher.batchnorm` and `seed` are read.
        train: the schedule.
        keras_losses: their weights are read.
        steps: of an epoch.
    """
    settings = config.distil
    keras_weights = {name: weight for name, (_, weight) in keras_losses.items()}
    return Distiller(
        student,
        teacher,
        methods,
        weights={**settings.methods, **keras_weights} if methods else {},
        ce_weight=settings.ce_weight if methods else 1.0,
        weight_decay=train.weight_decay,
        clip_norm=train.clip_norm,
        label_smoothing=train.label_smoothing,
        mixup=train.mixup,
        seed=config.seed,
        warmup_steps={name: epochs * steps for name, epochs in settings.warmup_epochs.items()} if methods else {},
        teacher_batchnorm=config.teacher.batchnorm,
    )
