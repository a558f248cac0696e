"""Writes one page that shows a run, or several side by side: results, aggregation weights, curves, mistakes, configuration.

    python bin/report.py runs/bundled
    python bin/report.py runs/seed0 runs/seed1 --output=both.html

The page contains everything that it shows, and fetches nothing. A run may be unfinished or in progress: the page shows what is there
and lists what is missing. Without --output it is report/index.html of the first run, with the figures beside it.
"""

from collections.abc import Sequence
from pathlib import Path

from dfa_tf.bin import command, shared_flags
from dfa_tf.errors import UserError


def main() -> None:
    """The binary `report`."""
    command.start_alone(__doc__, _work, [(shared_flags.OUTPUT, "=FILE.html")])


def _work(paths: Sequence[str]) -> None:
    if not paths or "" in paths:
        raise UserError("the directory of a run is needed, or several: report.py RUN [RUN ...]")
    output = None if shared_flags.OUTPUT.value is None else Path(shared_flags.OUTPUT.value)
    if output is not None and output.suffix != ".html":
        raise UserError(f"--output must be an .html file. Received: {shared_flags.OUTPUT.value}")
    command.load_tensorflow()
    from dfa_tf.reporting.report import write  # noqa: PLC0415 (it loads TensorFlow)

    print(f"  {write(list(map(Path, paths)), output)}")


if __name__ == "__main__":
    main()
