"""The networks of a configuration as they are before any training, to be described."""

from dfa_tf.config import Config, NetworkConfig
from dfa_tf.errors import UserError
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.precision import precision
from dfa_tf.pipeline.building import build_named, build_splits


def untrained_networks(
    config: Config, *, student: bool = True, data: bool = True, image_shape: tuple[int, ...] | None = None, num_classes: int | None = None
) -> list[FeatureModel]:
    """The teacher and the student: read from their files, or built by their plug-ins.

    A plug-in needs the shape of the images and the number of classes: from the arguments, or else from the other network's file,
    or else from the data.

    Args:
        config: names the networks and the data.
        student: whether there is one.
        data: whether the data that the configuration names may be read.
        image_shape: height, width, channels.
        num_classes: number of logits.

    Raises:
        UserError: if a network cannot be read or built, or the shape is not known.
    """
    settings: list[NetworkConfig] = [config.teacher, config.student] if student else [config.teacher]
    with precision(config.train.precision):
        files = [None if part.path is None else FeatureModel.from_model(part.path, part.groups, part.tap) for part in settings]
        found = [file for file in files if file is not None]
        if len(found) == len(files):
            return found
        if image_shape is None or num_classes is None:
            if not found and not data:
                raise UserError("a network given by name needs the data's shape: --image_shape and --num_classes, as 32,32,3 and 100")
            known = found[0] if found else build_splits(config)
            image_shape, num_classes = image_shape or known.image_shape, num_classes or known.num_classes
        return [file or build_named(part, image_shape, num_classes) for file, part in zip(files, settings, strict=True)]
