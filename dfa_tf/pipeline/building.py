"""Builds the splits and the networks of a configuration."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import keras

from dfa_tf import plugins
from dfa_tf.config import GIVEN, Config, DataConfig, NetworkConfig, StudentConfig
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Splits, split
from dfa_tf.networks.copying import copy_of
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.precision import computing_in, precision
from dfa_tf.process.status import doing


def check_options(config: Config) -> None:
    """Raises UserError, naming the nearest right ones, unless each plug-in has the options that it is given."""
    given: list[tuple[str, str, Mapping[str, Any]]] = [
        *([("data", config.data.name, config.data.options)] if config.data.name != GIVEN else []),
        ("models", config.teacher.name, config.teacher.options),
        ("models", config.student.name, config.student.options),
        *(("losses", method, options) for method, options in config.distil.options.items()),
    ]
    for kind, name, options in given:
        plugins.check_options(kind, name, options)


def build_splits(config: Config) -> Splits:
    """The splits. The last ones are cached, because the students of a process share them and reading takes long.

    Raises:
        UserError: if the images were given in Python: a configuration does not hold them.
    """
    if config.data.name == GIVEN:
        raise UserError("the images of this run were handed over in Python: call dfa_tf.compress with them, or set data.name")
    return _splits(config.data.model_dump_json(), config.data_seed)


@functools.lru_cache(maxsize=1)
def _splits(text: str, seed: int) -> Splits:
    data = DataConfig.model_validate_json(text)
    options: dict[str, Any] = dict(data.options)
    if "data_dir" in plugins.arguments("data", data.name):
        options["data_dir"] = data.data_dir
    with doing("reading the images"):
        return split(plugins.build("data", data.name, **options), data, seed=seed)


def has_own_images(config: Config) -> bool:
    """Whether the images are the user's own, in the folder `data.data_dir`, so that name and options do not identify them."""
    module = inspect.getmodule(plugins.builder("data", config.data.name).func)
    return bool(getattr(module, "OWN_IMAGES", False))


def build_network(settings: NetworkConfig, config: Config, splits: Splits) -> FeatureModel:
    """A network, initialised by the seed of the configuration, or with the weights of its file where `student.start` asks for them.

    Args:
        settings: its plug-in, or the `.keras` file whose architecture it takes.
        config: has the precision and the seed.
        splits: the data: its images and classes are the network's.
    """
    keras.utils.set_random_seed(config.seed)
    with precision(config.train.precision):
        if settings.path is not None:
            given = computing_in(config.train.precision, FeatureModel.from_model(settings.path, settings.groups, settings.tap))
            if isinstance(settings, StudentConfig) and settings.start == "file":
                return given
            return given.with_model(copy_of(given.model, weights=False))
        return build_named(settings, splits.image_shape, splits.num_classes, **splits.normalisation)


def build_named(settings: NetworkConfig, image_shape: tuple[int, ...], num_classes: int, **normalisation: Any) -> FeatureModel:
    """A network of the plug-in that the settings name.

    Args:
        settings: its plug-in, with the options, the groups and the tap.
        image_shape: height, width, channels.
        num_classes: number of logits.
        **normalisation: `mean` and `std`, for the networks that take them.
    """
    known = plugins.arguments("models", settings.name)
    options: dict[str, Any] = {key: value for key, value in normalisation.items() if key in known}
    model = plugins.build("models", settings.name, image_shape=image_shape, num_classes=num_classes, **(options | settings.options))
    return FeatureModel.from_model(model, settings.groups, settings.tap)
