"""Runs every stage: teacher, plain student, search, distilled student, evaluation, export, report; then prints the table.

    python bin/run.py --config=configs/bundled.py --workdir=runs/bundled

Finished stages are skipped: called again, it only prints."""

from dfa_tf.bin import command


def main() -> None:
    """The binary `run`."""
    command.start(__doc__, lambda pipeline, config, run_dir, options: pipeline.run(config, run_dir, **options))


if __name__ == "__main__":
    main()
