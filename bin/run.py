"""Runs every stage: teacher, plain student, search, distilled student, evaluation, export, report; then prints the table.

    python bin/run.py --config=configs/bundled.py --workdir=runs/bundled

Finished stages are skipped: called again, it only prints."""

from dfa_tf.bin import command
from dfa_tf.config import Config
from dfa_tf.storage.run_directory import RunDir


def main() -> None:
    """The binary `run`."""
    command.start(__doc__, _work)


def _work(config: Config, directory: RunDir, options: command.Options) -> None:
    from dfa_tf.pipeline.pipeline import run_all  # noqa: PLC0415 (it loads TensorFlow)

    run_all(config, directory, **options)


if __name__ == "__main__":
    main()
