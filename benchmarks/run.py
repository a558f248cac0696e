"""Speed and memory of the whole program, as ratios measured side by side in one run, with their targets.

    python benchmarks/run.py [--data_dir=DIR] [--only=PART] [--output=benchmarks/results.md]

Times are medians of several repetitions in turns; a step has 64 images of 32x32x3. T is the teacher's forward pass alone, S the
student's plain training step alone. A run takes half an hour on two idle cores.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from dfa_tf.process import startup

startup.load_tensorflow()

import keras  # noqa: E402
import processes  # noqa: E402
import steps  # noqa: E402
import teacher_cache  # noqa: E402
import tensorflow as tf  # noqa: E402
from timing import Row, compared, print_table, write_table  # noqa: E402

TITLE = "Ratios beside their targets"
HEADINGS = ("what", "of", "found", "target", "met")


def second_stage() -> Iterator[Row]:
    yield steps.second_stage("wrn_28_4", "wrn_16_4", most=1.15)
    yield steps.second_stage("wrn_28_2", "wrn_10_1", most=1.3)


def first_stage() -> Iterator[Row]:
    yield from steps.first_stage("wrn_28_4", "wrn_16_4", most=1.25)
    yield from steps.first_stage("wrn_28_2", "wrn_10_1", most=1.25)


def keras_distiller() -> Iterator[Row]:
    yield from steps.against_keras()
    yield steps.as_each_comes()


def cache() -> Iterator[Row]:
    for found in teacher_cache.measure_all():
        what = f"{found['pair']}, {found['method']}: step / step with the teacher's outputs on disk"
        size, pays = found["bytes_per_image"] / 1024, found["epochs_until_it_pays"]
        value = f"{size:.1f} KiB an image and view, pays after {pays:.1f} epochs a view"
        yield compared(what, value, found["step_without"] / found["step_with"])


def execution() -> Iterator[Row]:
    yield from steps.execution("wrn_10_1")


def parts(data_dir: str | None) -> dict[str, Callable[[], Iterator[Row]]]:
    return {
        "keras": keras_distiller,
        "second_stage": second_stage,
        "first_stage": first_stage,
        "start_up": lambda: processes.start_up(data_dir),
        "memory": processes.memory,
        "cache": cache,
        "execution": execution,
    }


def cells(row: Row) -> tuple[str, ...]:
    return row.name, row.value, row.ratio, row.target, {None: "", True: "yes", False: "no"}[row.met]


def main() -> None:
    """Prints the table, and writes it if --output is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="TFDS's data directory that holds CIFAR-100")
    parser.add_argument("--only", action="append", choices=list(parts(None)), help="only this part; may be repeated")
    parser.add_argument("--output", type=Path, help="Markdown file that the table is written to")
    chosen = parser.parse_args()
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)
    rows = []
    for name, part in parts(chosen.data_dir).items():
        if chosen.only and name not in chosen.only:
            continue
        for row in part():
            rows.append(cells(row))
            print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
            write_table(TITLE, HEADINGS, rows, chosen.output)  # so far, because a run takes long
        keras.backend.clear_session()
    print_table(TITLE, HEADINGS, rows)


if __name__ == "__main__":
    main()
