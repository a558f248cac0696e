"""Experiments: files with a configuration, and the names of those that come with the package.

A Python file is executed, so run only files that you trust. A JSON file is only read: use it for configurations from elsewhere.
"""

import os
import runpy
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pydantic

from dfa_tf.config.configuration import Config
from dfa_tf.config.overrides import explain
from dfa_tf.errors import UserError, nearest, shortened
from dfa_tf.storage.reading import read_json


def load(file: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration that the `get_config()` of a Python file returns, or that a JSON file holds.

    Args:
        file: the path of a `.py` file, which is executed, or of a `.json` file, which is read; or the name of a configuration
            that comes with the package, such as `"bundled"`.
        overrides: `"key.path=value"` each.

    Raises:
        UserError: if the file does not exist, does not run, or has a mistake.
    """
    path = _find(file)
    if path.suffix == ".json":
        config: Config = read_json(path, "--config", Config.from_json)
        return config.override(overrides)
    if path.suffix != ".py":
        raise UserError(f"--config must be a .py or a .json file. Received: {shortened(file)}")
    try:
        config = runpy.run_path(str(path)).get("get_config", lambda: None)()
    except pydantic.ValidationError as error:
        raise UserError(f"{file}: {explain(error)}") from None
    except (Exception, SystemExit) as error:  # the file is the user's own code: whatever it raises is a mistake in it
        raise UserError(f"{file} must be a Python file that runs. Received: {type(error).__name__}: {str(error)[:200]}") from None
    if not isinstance(config, Config):
        raise UserError(f"{file} must define get_config() that returns a Config. Received: {type(config).__name__}")
    return config.override(overrides)


def _find(file: str) -> Path:
    path = Path(file)
    if os.path.isfile(path):  # and not path.is_file(), which raises an error for a name that is too long
        return path
    spec = find_spec("dfa_tf.configs")
    folder = Path(spec.origin).parent if spec and spec.origin else Path("configs")
    shipped = {entry.stem: entry for entry in sorted(folder.glob("[!_]*.py")) if entry.stem != "families"}
    if file in shipped:
        return shipped[file]
    beside = [str(entry) for entry in path.parent.glob("*.py")] if os.path.isdir(path.parent) else []
    raise UserError(
        f"--config must be a file or the name of a shipped config. Received: {shortened(file)}. {nearest(file, [*shipped, *beside])}"
    )
