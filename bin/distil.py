"""Stage 2: distils the student, with the aggregation weights of bin/search.py where the configuration asks for them.

    python bin/distil.py --config=configs/bundled.py --workdir=runs/bundled --set 'distil.methods={"kd": 0.9}'

Writes distil/METHOD/ in the run directory.
"""

from dfa_tf.bin import command
from dfa_tf.config import Config
from dfa_tf.storage.run_directory import RunDir


def main() -> None:
    """The binary `distil`."""
    command.start(__doc__, _work, sections=("distil",))


def _work(config: Config, directory: RunDir, options: command.Options) -> None:
    from dfa_tf.pipeline.pipeline import run_stages  # noqa: PLC0415 (they load TensorFlow)
    from dfa_tf.pipeline.stages import student_stages  # noqa: PLC0415

    run_stages(config, directory, student_stages(config)[-1:], **options)


if __name__ == "__main__":
    main()
