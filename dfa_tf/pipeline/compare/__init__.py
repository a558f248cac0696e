"""Several ways to train one student, over several seeds: a grid of students of one teacher, and the table of it."""

from collections.abc import Sequence
from pathlib import Path

from dfa_tf.config import Config
from dfa_tf.pipeline.compare.grid import Comparison
from dfa_tf.pipeline.compare.rows import Row
from dfa_tf.storage.run_directory import RunDir


def compare(
    config: Config,
    directory: RunDir,
    rows: Sequence[str],
    seeds: Sequence[int],
    *,
    baseline: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Trains a student for each row and seed, and writes the tables.

    Args:
        config: what all rows share.
        directory: of the comparison, held by this process.
        rows: as `Row.parse` reads them.
        seeds: of each row.
        baseline: name of the row that the others are compared with; the first one where None.
        overwrite: replace cells of another configuration.
        quiet: show no progress.

    Returns:
        The folder of `cells.csv`, `alphas.csv`, `table.csv`, `table.md` and `table.html`.
    """
    parsed = [Row.parse(text) for text in rows]
    chosen = baseline if baseline is not None else (parsed[0].name if parsed else "")
    Comparison(config, directory, parsed, seeds, baseline=chosen, overwrite=overwrite, quiet=quiet).run()
    return directory.path / "comparison"
