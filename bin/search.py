"""Stage 1: searches the aggregation weights, for the teacher of bin/train.py.

    python bin/search.py --config=configs/bundled.py --workdir=runs/bundled

Writes search/alphas.json, search/trajectory.csv and search/alphas.png in the run directory.
"""

from dfa_tf.bin import command
from dfa_tf.config import Config
from dfa_tf.storage.run_directory import RunDir


def main() -> None:
    """The binary `search`."""
    command.start(__doc__, _work, sections=("search",))


def _work(config: Config, directory: RunDir, options: command.Options) -> None:
    from dfa_tf.pipeline.pipeline import run_stages  # noqa: PLC0415 (they load TensorFlow)
    from dfa_tf.pipeline.stages import SearchStage  # noqa: PLC0415

    run_stages(config, directory, [SearchStage], **options)


if __name__ == "__main__":
    main()
