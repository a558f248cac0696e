"""Stage 2: distils the student, with the aggregation weights that bin/search.py has found where they are asked for.

    python bin/distil.py --config=configs/bundled.py --workdir=runs/bundled --set 'distil.methods={"kd": 0.9}'

Writes distil/METHOD/ in the run directory.
"""

from dfa_tf.bin import command


def main() -> None:
    """The binary `distil`."""
    command.start(__doc__, command.stages("distil"), sections=("distil",))


if __name__ == "__main__":
    main()
