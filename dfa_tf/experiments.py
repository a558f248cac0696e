"""Experiments: files that hold a configuration, and the names of those that come with the package."""

import runpy
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pydantic

from dfa_tf.config import Config, explain
from dfa_tf.errors import UserError, nearest


def load(file: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration that the `get_config()` of a Python file returns, or that a JSON file holds.

    Args:
        file: a path, or the name of a configuration that comes with the package, as `"bundled"`.
        overrides: `"key.path=value"` each.

    Raises:
        UserError: if the file is not there, does not run, or holds a mistake.
    """
    path = _find(file)
    if path.suffix == ".json":
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"--config must be a readable text file. Received: {file} ({error})") from None
        return Config.from_json(text).override(overrides)
    try:
        config = runpy.run_path(str(path)).get("get_config", lambda: None)()
    except pydantic.ValidationError as error:
        raise UserError(f"{file}: {explain(error)}") from None
    except Exception as error:  # the file is the user's own code: whatever it raises is a mistake in it
        raise UserError(f"{file} must be a Python file that runs. Received: {type(error).__name__}: {error}") from None
    if not isinstance(config, Config):
        raise UserError(f"{file} must define get_config() that returns a Config. Received: {type(config).__name__}")
    return config.override(overrides)


def _find(file: str) -> Path:
    path = Path(file)
    if path.is_file():
        return path
    spec = find_spec("dfa_tf.configs")
    folder = Path(spec.origin).parent if spec and spec.origin else Path("configs")
    shipped = {entry.stem: entry for entry in sorted(folder.glob("[!_]*.py"))}
    if file in shipped:
        return shipped[file]
    beside = [str(entry) for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
    raise UserError(f"--config must be a file or the name of a shipped config. Received: {file!r}. {nearest(file, [*shipped, *beside])}")
