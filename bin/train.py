"""Trains the teacher and the plain student, the baseline of the distilled one.

    python bin/train.py --config=configs/bundled.py --workdir=runs/bundled

Writes teacher/ and distil/plain/ in the run directory. With teacher.path the teacher is taken from that file.
"""

from dfa_tf.bin import command


def main() -> None:
    """The binary `train`."""
    command.start(__doc__, command.stages("train_teacher", "train_plain"), sections=("data", "teacher", "student", "train"))


if __name__ == "__main__":
    main()
