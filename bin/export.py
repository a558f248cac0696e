"""Exports the distilled student as a SavedModel and compares it with the Keras file.

    python bin/export.py --config=configs/bundled.py --workdir=runs/bundled

Writes export/saved_model/ and export/parity.json in the run directory.
"""

from dfa_tf.bin import command


def main() -> None:
    """The binary `export`."""
    command.start(__doc__, command.stages("export"))


if __name__ == "__main__":
    main()
