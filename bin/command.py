"""What all binaries share: starting, loading the configuration and TensorFlow, and the exit status.

0: done. 2: the user's input is wrong (one line on stderr). 75: stopped by a signal, or another worker is lost; run it again.
"""

import logging as python_logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from absl import app, flags, logging

from dfa_tf.bin.shared_flags import CONFIG, HELP, OVERWRITE, QUIET, RUN_FLAGS, SET, WORKDIR, Shown, parse, usage
from dfa_tf.config import Config, experiments
from dfa_tf.display.progress import Reporter
from dfa_tf.errors import LostWorkerError, UserError
from dfa_tf.process import interruption, startup, workers
from dfa_tf.process.status import doing
from dfa_tf.storage.run_directory import RunDir

USER_ERROR, STOPPED = 2, 75


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
        work: called after flags and configuration are checked and TensorFlow is loaded.
        own: flags of this binary alone.
        sections: of the configuration, whose fields `--help` lists.
    """
    start_alone(doc, lambda rest: _work_in_run_directory(work, rest), [*own, *RUN_FLAGS], sections)


def start_alone(doc: str | None, work: AloneWork, shown: Sequence[Shown], sections: Sequence[str] = ()) -> None:
    """Runs a binary that needs neither a configuration nor a run directory, and exits with its status.

    Args:
        doc: its module's docstring, shown by `--help`.
        work: called after the flags are checked; it checks its arguments itself, and then calls `load_tensorflow`.
        shown: all of its flags.
        sections: of the configuration, whose fields `--help` lists.
    """

    def read(arguments: Sequence[str]) -> Sequence[str]:
        if set(arguments[1:]) & set(HELP):
            print(usage(doc or "", shown, sections, (__doc__ or "").strip().partition("\n\n")[2]))
            sys.exit(0)
        try:
            return parse(arguments, shown)
        except flags.Error as error:
            _complain(error)
            sys.exit(USER_ERROR)

    app.run(lambda arguments: sys.exit(_main(work, arguments[1:])), flags_parser=read)


def _complain(error: Exception) -> None:
    print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)


def _work_in_run_directory(work: Work, rest: Sequence[str]) -> None:
    if rest:
        raise UserError(f"there are no arguments beside flags. Received: {rest[0]!r}")
    if CONFIG.value is None:
        raise UserError("--config is needed: a file, or the name of a shipped config as bundled")
    if WORKDIR.value == "":
        raise UserError("--workdir must name a directory. Received: nothing")
    config = experiments.load(CONFIG.value, SET.value)
    run_dir = RunDir(WORKDIR.value or Path("runs") / Path(CONFIG.value).stem)
    workers.begin(config.strategy)
    with run_dir.lock():
        with Reporter(quiet=QUIET.value), doing("loading TensorFlow"):
            load_tensorflow()
            import dfa_tf.pipeline.pipeline  # noqa: F401, PLC0415 (what every work imports; it takes a while, as TensorFlow does)
        work(config, run_dir, {"overwrite": OVERWRITE.value, "quiet": QUIET.value})


def load_tensorflow() -> None:
    """Loads TensorFlow without its start-up output. Mistakes that can be found without TensorFlow are found before."""
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
        print(f"{Path(sys.argv[0]).name}: stopped. Finished work is kept: run the same command again to resume", file=sys.stderr)
        return STOPPED
    return 0
