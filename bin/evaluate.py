"""Evaluates every network of a run directory side by side and prints the table.

    python bin/evaluate.py --config=configs/bundled.py --workdir=runs/bundled

Writes evaluation/ in the run directory: result.json, and predictions.npz with the answers of each network on the test set.
"""

from dfa_tf.bin import command
from dfa_tf.config import Config
from dfa_tf.storage.run_directory import RunDir


def main() -> None:
    """The binary `evaluate`."""
    command.start(__doc__, _work)


def _work(config: Config, directory: RunDir, options: command.Options) -> None:
    from dfa_tf.pipeline.pipeline import run_stages  # noqa: PLC0415 (they load TensorFlow)
    from dfa_tf.pipeline.stages import EvaluateStage  # noqa: PLC0415

    run_stages(config, directory, [EvaluateStage], table=True, **options)


if __name__ == "__main__":
    main()
