"""The search over fields of the configuration: trials of one teacher, each a student, ranked on the validation split."""

from pathlib import Path

from dfa_tf.config import Config
from dfa_tf.pipeline.tune.tuning import Tuning
from dfa_tf.storage.run_directory import RunDir


def tune(config: Config, directory: RunDir, *, overwrite: bool = False, quiet: bool = False) -> Path:
    """Tries values of the fields of `tune.space`, and writes the tables.

    Args:
        config: what all trials share, and the space.
        directory: of the tuning, held by this process.
        overwrite: replace a teacher of another configuration.
        quiet: show no progress.

    Returns:
        The best configuration, a file for --config, beside `trials.csv`, `table.md` and `tuning.png`.

    Raises:
        UserError: if the space or the configuration is mistaken, or every trial fails.
    """
    return Tuning(config, directory, overwrite=overwrite, quiet=quiet).run()
