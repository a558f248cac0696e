"""Stage 1: searches the aggregation weights, for a teacher that bin/train.py has made.

    python bin/search.py --config=configs/bundled.py --workdir=runs/bundled

Writes search/alphas.json, search/trajectory.csv and search/alphas.png in the run directory.
"""

from dfa_tf.bin import command


def main() -> None:
    """The binary `search`."""
    command.start(__doc__, command.stages("search"), sections=("search",))


if __name__ == "__main__":
    main()
