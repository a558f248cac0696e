"""Describes a network, or a teacher and its student: layer groups, sizes, how the groups pair, the candidates of a search, memory.

    python bin/describe.py --model=wrn_28_4 --student=wrn_16_2 --image_shape=32,32,3 --num_classes=100
    python bin/describe.py --model=teacher.keras --student=mobilenet_v2 --batch_size=64 --output=networks.png
    python bin/describe.py --config=configs/bundled.py

Networks are .keras files or names of networks, as in a configuration. Nothing is trained. A file needs no data; a network given by
name takes image shape and number of classes from the file of the other. --set changes other fields, such as teacher.groups,
student.tap, student.options or train.precision, with --config and without.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from dfa_tf.bin import command, shared_flags
from dfa_tf.config import Config, experiments
from dfa_tf.errors import UserError
from dfa_tf.pipeline.network_arguments import config_of, image_shape_of

_STUDENT = flags.DEFINE_string("student", None, "The network to distil --model into: a .keras file or a name.")
_IMAGE_SHAPE = flags.DEFINE_string("image_shape", None, "Height, width and channels for networks given by name.")
_NUM_CLASSES = flags.DEFINE_integer("num_classes", None, "Number of classes for networks given by name.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images that memory is estimated for. Default: data.batch_size.", lower_bound=1)


_FLAGS = [
    *((shared_flags.MODEL, "=FILE_OR_NAME"), (_STUDENT, "=FILE_OR_NAME"), (_IMAGE_SHAPE, "=HEIGHT,WIDTH,CHANNELS"), (_NUM_CLASSES, "=N")),
    *((_BATCH_SIZE, "=N"), (shared_flags.OUTPUT, "=FILE.png"), (shared_flags.JSON, "")),
    *((shared_flags.CONFIG, "=FILE"), (shared_flags.SET, "=KEY.PATH=VALUE")),
]


def main() -> None:
    """The binary `describe`."""
    command.start_alone(__doc__, _work, _FLAGS)


def _work(rest: Sequence[str]) -> None:
    if rest:
        raise UserError(f"there are no arguments beside flags. Received: {rest[0]!r}")
    output = None if shared_flags.OUTPUT.value is None else Path(shared_flags.OUTPUT.value)
    if output is not None and output.suffix != ".png":
        raise UserError(f"--output must be a .png file. Received: {output}")
    config, image_shape = _config(), image_shape_of(_IMAGE_SHAPE.value)
    command.load_tensorflow()
    logging.get_absl_handler().setLevel("ERROR")  # the description itself says what is left out
    from dfa_tf.pipeline.untrained import untrained_networks  # noqa: PLC0415 (these load TensorFlow)
    from dfa_tf.reporting.description import describe  # noqa: PLC0415
    from dfa_tf.reporting.description_picture import draw  # noqa: PLC0415
    from dfa_tf.reporting.description_tables import print_description  # noqa: PLC0415

    whole = shared_flags.CONFIG.value is not None
    student = whole or _STUDENT.value is not None
    networks = untrained_networks(config, student=student, data=whole, image_shape=image_shape, num_classes=_NUM_CLASSES.value)
    description = describe(*networks, batch_size=_BATCH_SIZE.value or config.data.batch_size, train=config.student_train)
    if output is not None:
        draw(description, output)
    if shared_flags.JSON.value:
        print(json.dumps(description.to_json(), indent=2))
        return
    print_description(description)
    if output is not None:
        print(f"  {output}")


def _config() -> Config:
    """The configuration that `--config` names, or that stands for `--model` and `--student`."""
    teacher, student = shared_flags.MODEL.value, _STUDENT.value
    if shared_flags.CONFIG.value is not None:
        if teacher or student:
            raise UserError("--config brings both networks: replace one with --set teacher.name=... and not with --model or --student")
        return experiments.load(shared_flags.CONFIG.value, shared_flags.SET.value)
    if teacher is None:
        raise UserError("--model is needed, a .keras file or the name of a network; or --config")
    return config_of(teacher, student, shared_flags.SET.value)


if __name__ == "__main__":
    main()
