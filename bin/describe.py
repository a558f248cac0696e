"""Describes a network, or a teacher and its student: layer groups, sizes, how they pair, what a search would weigh, memory.

    python bin/describe.py --model=wrn_28_4 --student=wrn_16_2 --image_shape=32,32,3 --num_classes=100
    python bin/describe.py --model=teacher.keras --student=mobilenet_v2 --batch_size=64 --output=networks.png
    python bin/describe.py --config=configs/bundled.py

Networks are .keras files or names of networks, as in a configuration. Nothing is trained; a file needs no data, and brings the shape
of the images and the number of classes for a name. --set says the rest, as teacher.groups, student.tap, student.options or
train.precision, with --config and without.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from dfa_tf import plugins
from dfa_tf.bin import command
from dfa_tf.config import Config, NetworkConfig, experiments
from dfa_tf.errors import UserError, nearest

_STUDENT = flags.DEFINE_string("student", None, "The network to distil --model into: a .keras file or a name.")
_IMAGE_SHAPE = flags.DEFINE_string("image_shape", None, "Height, width and channels for networks given by name.")
_NUM_CLASSES = flags.DEFINE_integer("num_classes", None, "Number of classes for networks given by name.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images that memory is estimated for. Default: data.batch_size.", lower_bound=1)


def main() -> None:
    """The binary `describe`."""
    own = [(command.MODEL, "=FILE_OR_NAME"), (_STUDENT, "=FILE_OR_NAME"), (_IMAGE_SHAPE, "=HEIGHT,WIDTH,CHANNELS"), (_NUM_CLASSES, "=N")]
    more = [
        (_BATCH_SIZE, "=N"),
        (command.OUTPUT, "=FILE.png"),
        (command.JSON, ""),
        (command.CONFIG, "=FILE"),
        (command.SET, "=KEY.PATH=VALUE"),
    ]
    command.start_alone(__doc__, _work, [*own, *more])


def _work(rest: Sequence[str]) -> None:
    if rest:
        raise UserError(f"there are no arguments beside flags. Received: {rest[0]!r}")
    if command.OUTPUT.value is not None and Path(command.OUTPUT.value).suffix != ".png":
        raise UserError(f"--output must be a .png file. Received: {command.OUTPUT.value}")
    config = _config()
    command.load_tensorflow()
    logging.get_absl_handler().setLevel("ERROR")  # what is left out, which would be a warning, stands in the description
    from dfa_tf.reporting.description import describe  # noqa: PLC0415 (these load TensorFlow)
    from dfa_tf.reporting.description_picture import draw  # noqa: PLC0415
    from dfa_tf.reporting.description_tables import print_description  # noqa: PLC0415

    description = describe(*_networks(config), batch_size=_BATCH_SIZE.value or config.data.batch_size, train=config.student_train)
    if command.OUTPUT.value is not None:
        draw(description, Path(command.OUTPUT.value))
    if command.JSON.value:
        print(json.dumps(description.to_json(), indent=2))
        return
    print_description(description)
    if command.OUTPUT.value is not None:
        print(f"  {command.OUTPUT.value}")


def _config() -> Config:
    """The configuration that the flags name or stand for."""
    given = {"teacher": command.MODEL.value, "student": _STUDENT.value}
    if command.CONFIG.value is not None:
        if any(given.values()):
            raise UserError("--config brings both networks: replace one with --set teacher.name=... and not with --model or --student")
        return experiments.load(command.CONFIG.value, command.SET.value)
    if given["teacher"] is None:
        raise UserError("--model is needed, a .keras file or the name of a network; or --config")
    return Config().override([*(_named(who, network) for who, network in given.items() if network is not None), *command.SET.value])


def _named(who: str, network: str) -> str:
    """The field of the configuration that names a network."""
    if network in plugins.names("models"):
        return f"{who}.name={json.dumps(network)}"
    if Path(network).suffix == ".keras" or Path(network).exists():
        return f"{who}.path={json.dumps(network)}"
    flag = {"teacher": "--model", "student": "--student"}[who]
    raise UserError(
        f"{flag} must be a .keras file or the name of a network. Received: {network!r}. {nearest(network, plugins.names('models'))}"
    )


def _networks(config: Config) -> list[Any]:
    """The FeatureModels: the teacher, and the student where there is one."""
    from dfa_tf.networks.features import FeatureModel  # noqa: PLC0415
    from dfa_tf.networks.precision import precision  # noqa: PLC0415
    from dfa_tf.pipeline.building import build_named  # noqa: PLC0415 (these load TensorFlow)

    alone = command.CONFIG.value is None and _STUDENT.value is None
    settings: list[NetworkConfig] = [config.teacher] if alone else [config.teacher, config.student]
    with precision(config.train.precision):
        files = [None if part.path is None else FeatureModel.from_model(part.path, part.groups, part.tap) for part in settings]
        if None not in files:
            return files
        images = _images(config, next((file for file in files if file is not None), None))
        return [file or build_named(part, *images) for file, part in zip(files, settings, strict=True)]


def _images(config: Config, file: Any) -> tuple[tuple[int, ...], int]:
    """Image shape and number of classes: of the flags, or else of the network that a file brings, or else of the configuration's data."""
    sides, classes = (_IMAGE_SHAPE.value or "").split(","), _NUM_CLASSES.value
    if _IMAGE_SHAPE.value is not None and not (len(sides) == 3 and all(side.isdecimal() and int(side) for side in sides)):
        raise UserError(f"--image_shape must be height,width,channels, as 32,32,3. Received: {_IMAGE_SHAPE.value!r}")
    shape = tuple(map(int, sides)) if _IMAGE_SHAPE.value is not None else None
    if shape is None or classes is None:
        if file is None and command.CONFIG.value is None:
            raise UserError("a network given by name needs the data's shape: --image_shape and --num_classes, as 32,32,3 and 100")
        from dfa_tf.pipeline.building import build_splits  # noqa: PLC0415 (it loads TensorFlow)

        known = file or build_splits(config)
        shape, classes = shape or known.image_shape, classes or known.num_classes
    return shape, classes


if __name__ == "__main__":
    main()
