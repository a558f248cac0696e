"""Networks named on a command line, as a configuration. This module loads no TensorFlow, so that a mistake is found at once."""

from collections.abc import Sequence
from pathlib import Path

from dfa_tf import plugins
from dfa_tf.config import Config
from dfa_tf.config.overrides import parse
from dfa_tf.errors import UserError, nearest


def config_of(teacher: str, student: str | None, changes: Sequence[str]) -> Config:
    """The configuration of one or two networks.

    Args:
        teacher: of `--model`: a `.keras` file or the name of a network.
        student: the same of `--student`.
        changes: of `--set`.

    Raises:
        UserError: naming the flag, if one is neither; or if a change does not fit.
    """
    fields = _field("teacher", "--model", teacher) | ({} if student is None else _field("student", "--student", student))
    return Config().replace(fields | parse(changes))


def _field(who: str, flag: str, network: str) -> dict[str, str]:
    """The field of the configuration that names a network, and its value."""
    if network in (known := plugins.names("models")):
        return {f"{who}.name": network}
    if Path(network).suffix == ".keras" or Path(network).exists():
        return {f"{who}.path": network}
    raise UserError(f"{flag} must be a .keras file or the name of a network. Received: {network!r}. {nearest(network, known)}")


def image_shape_of(text: str | None) -> tuple[int, ...] | None:
    """Height, width and channels of `--image_shape`; None where it is not given.

    Raises:
        UserError: if it is no such shape.
    """
    if text is None:
        return None
    sides = text.split(",")
    if not (len(sides) == 3 and all(side.isdecimal() and int(side) for side in sides)):
        raise UserError(f"--image_shape must be height,width,channels, such as 32,32,3. Received: {text!r}")
    return tuple(map(int, sides))
