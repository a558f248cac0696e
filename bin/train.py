"""Trains the teacher and the plain student, the baseline of the distilled one.

    python bin/train.py --config=configs/bundled.py --workdir=runs/bundled

Writes teacher/ and distil/plain/ in the run directory. With teacher.path the teacher is taken from that file.
"""

from dfa_tf.bin import command
from dfa_tf.config import Config
from dfa_tf.storage.run_directory import RunDir


def main() -> None:
    """The binary `train`."""
    command.start(__doc__, _work, sections=("data", "teacher", "student", "train"))


def _work(config: Config, directory: RunDir, options: command.Options) -> None:
    from dfa_tf.pipeline.pipeline import run_stages  # noqa: PLC0415 (they load TensorFlow)
    from dfa_tf.pipeline.stages import PlainStage, TeacherStage  # noqa: PLC0415

    run_stages(config, directory, [TeacherStage, PlainStage], **options)


if __name__ == "__main__":
    main()
