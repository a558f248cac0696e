"""Evaluates every network of a run directory side by side and prints the table.

    python bin/evaluate.py --config=configs/bundled.py --workdir=runs/bundled

Writes evaluation/ in the run directory: result.json, and predictions.npz, what each network answers on the test set.
"""

from dfa_tf.bin import command


def main() -> None:
    """The binary `evaluate`."""
    command.start(__doc__, command.stages("evaluate", "table"))


if __name__ == "__main__":
    main()
