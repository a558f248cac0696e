"""What all binaries share: their flags, the loading of the configuration, and the exit status.

0: done. 2: the user's input is wrong (one line on stderr). 75: stopped by a signal, or another worker is lost; run it again.
"""

import logging as python_logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from absl import app, flags, logging

from dfa_tf.config import Config, experiments, fields_of
from dfa_tf.display.progress import Reporter
from dfa_tf.errors import LostWorkerError, UserError
from dfa_tf.process import interruption, startup, workers
from dfa_tf.process.status import doing
from dfa_tf.storage.run_directory import RunDir

USER_ERROR, STOPPED = 2, 75

CONFIG = flags.DEFINE_string(
    "config",
    None,
    "The experiment: a Python file with get_config(), which is code and is run; a JSON file, which is data; or a shipped name as bundled.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run directory itself. Default: runs/ and the name of the config.")
SET = flags.DEFINE_multi_string("set", [], "Replace a field of the config, as search.epochs=5. Repeatable.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace results of this run directory that do not fit the config.")
_QUIET = flags.DEFINE_bool("quiet", False, "Show no progress.")
# Flags of several binaries, though not of all.
MODEL = flags.DEFINE_string("model", None, "The network.")
OUTPUT = flags.DEFINE_string("output", None, "The file to write: a PNG that shows the networks (describe), or an .html page (report).")
JSON = flags.DEFINE_bool("json", False, "Print JSON, for machines.")

Shown = tuple[flags.FlagHolder, str]
"""A flag, and how `--help` shows its value."""
_SHARED: list[Shown] = [(CONFIG, "=FILE"), (_WORKDIR, "=DIR"), (SET, "=KEY.PATH=VALUE"), (_OVERWRITE, ""), (_QUIET, "")]


class Options(TypedDict):
    """Flags of every binary with a run directory, as keyword arguments of its work."""

    overwrite: bool
    quiet: bool


Work = Callable[[Config, RunDir, Options], None]
"""What a binary does in a run directory. It imports what loads TensorFlow itself."""
AloneWork = Callable[[Sequence[str]], None]
"""What a binary without a run directory does, given its arguments beside flags."""


def start(doc: str | None, work: Work, own: Sequence[Shown] = (), sections: Sequence[str] = ()) -> None:
    """Runs a binary that works in a run directory, and exits with its status.

    Args:
        doc: its module's docstring, shown by `--help`.
        work: called once flags and configuration are found right and TensorFlow is loaded.
        own: flags of this binary alone.
        sections: of the configuration, whose fields `--help` lists.
    """
    start_alone(doc, lambda rest: _work_in_run_directory(work, rest), [*own, *_SHARED], sections)


def start_alone(doc: str | None, work: AloneWork, shown: Sequence[Shown], sections: Sequence[str] = ()) -> None:
    """Runs a binary that needs neither a configuration nor a run directory, and exits with its status.

    Args:
        doc: its module's docstring, shown by `--help`.
        work: called once flags are found right; it checks its arguments itself, and then calls `load_tensorflow`.
        shown: all of its flags.
        sections: of the configuration, whose fields `--help` lists.
    """

    def parse(arguments: Sequence[str]) -> Sequence[str]:
        if any(argument in ("--help", "-h", "-help", "--helpfull") for argument in arguments[1:]):
            print(_usage(doc or "", shown, sections))
            sys.exit(0)
        return _parse(arguments, shown)

    app.run(lambda arguments: sys.exit(_main(work, arguments[1:])), flags_parser=parse)


def _parse(arguments: Sequence[str], shown: Sequence[Shown]) -> Sequence[str]:
    flags.FLAGS.unparse_flags()  # a main may be called more than once in a process
    try:
        rest = flags.FLAGS(arguments)
        own = {holder.name for holder, _ in shown}
        if foreign := [name for name in flags.FLAGS if flags.FLAGS[name].present and name not in own]:
            raise flags.UnrecognizedFlagError(foreign[0])  # another binary's, or absl's
    except flags.Error as error:
        _complain(error)
        sys.exit(USER_ERROR)
    return rest


def _usage(doc: str, shown: Sequence[Shown], sections: Sequence[str]) -> str:
    lines = [doc.strip(), "", "Flags:"]
    for holder, value in shown:
        text = flags.FLAGS[holder.name].help.partition("\n")[0].removesuffix(";")  # in the next line absl says that a flag repeats
        lines.append(f"  --{holder.name}{value}\n      {text}")
    if sections:
        lines += ["", "Fields of the config for --set, with their defaults:"]
    for name, default, meaning in (field for section in sections for field in fields_of(section)):
        lines.append(f"  {name}={default}\n      {meaning}")
    return "\n".join([*lines, "", "Exit status:", (__doc__ or "").strip().partition("\n\n")[2]])


def _complain(error: Exception) -> None:
    print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)


def _work_in_run_directory(work: Work, rest: Sequence[str]) -> None:
    if rest:
        raise UserError(f"there are no arguments beside flags. Received: {rest[0]!r}")
    if CONFIG.value is None:
        raise UserError("--config is needed: a file, or the name of a shipped config as bundled")
    if _WORKDIR.value == "":
        raise UserError("--workdir must name a directory. Received: nothing")
    config = experiments.load(CONFIG.value, SET.value)
    run_dir = RunDir(_WORKDIR.value or Path("runs") / Path(CONFIG.value).stem)
    workers.begin(config.strategy)
    with run_dir.lock():
        with Reporter(quiet=_QUIET.value), doing("loading TensorFlow"):
            load_tensorflow()
            import dfa_tf.pipeline.pipeline  # noqa: F401, PLC0415 (what every work imports; it takes a while, as TensorFlow does)
        work(config, run_dir, {"overwrite": _OVERWRITE.value, "quiet": _QUIET.value})


def load_tensorflow() -> None:
    """Loads TensorFlow quietly, after the mistakes that can be told without it."""
    startup.load_tensorflow()
    logging.set_verbosity(logging.WARNING)
    flags.FLAGS["logtostderr"].value = True  # to what `sys.stderr` is at the time, which may lead into the live display
    logging.get_absl_handler().setFormatter(python_logging.Formatter("%(levelname)s: %(message)s"))


def _main(work: AloneWork, arguments: Sequence[str]) -> int:
    interruption.listen()
    try:
        work(arguments)
    except UserError as error:
        _complain(error)
        return USER_ERROR
    except LostWorkerError as error:
        _complain(error)
        return STOPPED
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: stopped. What is done is kept: run the same command again to go on", file=sys.stderr)
        return STOPPED
    return 0
