"""Searches over fields of the configuration for the best student on the validation split, by KerasTuner.

    python bin/tune.py --config=configs/bundled_tune.py --workdir=runs/tune
    python bin/tune.py --config=configs/bundled_tune.py --workdir=runs/tune --set tune.tuner=random --set tune.trials=20

The fields and their values are `tune.space` of the configuration, the tuner (random, bayesian, hyperband) is `tune.tuner`. One
teacher serves all trials; no trial sees the test set. After a stop at any point the same command resumes and ends with the same
table. Writes tuning/trials.csv, table.md, tuning.png and best.json, a file for --config, in the run directory.
"""

from dfa_tf.bin import command
from dfa_tf.config import Config
from dfa_tf.process import workers
from dfa_tf.storage.run_directory import RunDir


def main() -> None:
    """The binary `tune`."""
    command.start(__doc__, _work, sections=("tune",))


def _work(config: Config, directory: RunDir, options: command.Options) -> None:
    from dfa_tf.pipeline.tune import tune  # noqa: PLC0415 (it loads TensorFlow)

    best = tune(config, directory, **options)
    if workers.is_chief():
        print(f"  {best.parent / 'table.md'}\n  {best.parent / 'tuning.png'}")
        print(f"To run the best trial: bin/run.py --config={best} --workdir={directory.path}-best")


if __name__ == "__main__":
    main()
