"""Compares ways to train one student with one teacher: a table over several seeds.

    python bin/compare.py --config=configs/bundled.py --methods=plain,kd,dfa,dfa+kd --seeds=0,1,2
    python bin/compare.py --config=configs/bundled.py --methods=plain,dfa --seeds=0 --row='last: dfa; distil.aggregation=last'

Every student has the same schedule, and with the same seed the same order of the images. Finished students are never trained
again, also after a kill. Writes comparison/cells.csv, alphas.csv, table.csv, table.md and table.html in the run directory.
"""

from absl import flags

from dfa_tf.bin import command
from dfa_tf.config import Config
from dfa_tf.errors import UserError
from dfa_tf.process import workers
from dfa_tf.storage.run_directory import RunDir

_METHODS = flags.DEFINE_list("methods", ["plain", "dfa"], "Rows of the table: methods, joined by + where several, or plain.")
_ROW = flags.DEFINE_multi_string("row", [], "A further row with overrides, for example 'last: dfa; distil.aggregation=last'. Repeatable.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of each row.")
_BASELINE = flags.DEFINE_string("baseline", None, "The row that differences are to. Default: the first.")


def main() -> None:
    """The binary `compare`."""
    command.start(
        __doc__, _work, [(_METHODS, "=A,B+C,..."), (_ROW, "=NAME: METHODS; KEY=VALUE"), (_SEEDS, "=0,1,..."), (_BASELINE, "=ROW")]
    )


def _work(config: Config, directory: RunDir, options: command.Options) -> None:
    from dfa_tf.pipeline.compare import compare  # noqa: PLC0415 (it loads TensorFlow)

    if not all(seed.isdecimal() for seed in _SEEDS.value):
        raise UserError(f"--seeds must be whole numbers, such as 0,1,2. Received: {','.join(_SEEDS.value)!r}")
    rows, seeds = [*_METHODS.value, *_ROW.value], [int(seed) for seed in _SEEDS.value]
    folder = compare(config, directory, rows, seeds, baseline=_BASELINE.value, **options)
    if workers.is_chief():
        print(f"  {folder / 'table.md'}\n  {folder / 'table.html'}")


if __name__ == "__main__":
    main()
