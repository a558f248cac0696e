"""The speed and the memory of the whole, as ratios taken side by side in one run, beside their targets.

    python benchmarks/run.py [--data_dir=DIR] [--only=PART] [--output=benchmarks/results.md]

Times are medians of several repetitions taken in turns; a step is of 64 images of 32x32x3. T is the teacher's forward pass alone, S
the student's plain training step alone. It takes half an hour on two cores, which should be idle.
"""

import argparse
import datetime
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from dfa_tf import startup

startup.load_tensorflow()

import keras  # noqa: E402
import processes  # noqa: E402
import steps  # noqa: E402
import tensorflow as tf  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from timing import Row  # noqa: E402

from dfa_tf.runs import write_text  # noqa: E402

HEADINGS = ("what", "of", "found", "target", "met")


def second_stage() -> Iterator[Row]:
    yield steps.second_stage("wrn_28_4", "wrn_16_4", most=1.15)
    yield steps.second_stage("wrn_28_2", "wrn_10_1", most=1.3)


def first_stage() -> Iterator[Row]:
    yield from steps.first_stage("wrn_28_4", "wrn_16_4", most=1.25)
    yield from steps.first_stage("wrn_28_2", "wrn_10_1", most=1.25)


def execution() -> Iterator[Row]:
    yield from steps.execution(None, "wrn_10_1")
    yield from steps.execution("wrn_28_2", "wrn_16_2")


def parts(data_dir: str | None) -> dict[str, Callable[[], Iterator[Row]]]:
    return {
        "start_up": lambda: processes.start_up(data_dir),
        "memory": processes.memory,
        "keras": steps.against_keras,
        "second_stage": second_stage,
        "first_stage": first_stage,
        "execution": execution,
    }


def cells(row: Row) -> tuple[str, ...]:
    return row.name, row.value, row.ratio, row.target, {None: "", True: "yes", False: "no"}[row.met]


def machine() -> str:
    """What the times were taken on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ""
    )
    gpus = ", ".join(tf.config.experimental.get_device_details(gpu)["device_name"] for gpu in tf.config.list_physical_devices("GPU"))
    versions = ", ".join(f"{name} {version(name)}" for name in ("tensorflow", "keras"))
    onednn = "on" if os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0" else "off"
    return f"{model or platform.processor()}, {os.cpu_count()} cores; {gpus or 'no GPU'}; {versions}, oneDNN {onednn}; {platform.system()}"


def markdown(rows: list[Row]) -> str:
    lines = [HEADINGS, ("---",) * len(HEADINGS), *map(cells, rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    command = shlex.join(["python", *sys.argv])
    return f"# Benchmarks\n\n`{command}` on {datetime.date.today()}: {machine()}.\n\n{table}\n"


def main() -> None:
    """Prints the table, and writes it where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="TFDS's data directory that holds CIFAR-100")
    parser.add_argument("--only", action="append", choices=list(parts(None)), help="this part alone; may be given again")
    parser.add_argument("--output", type=Path, help="Markdown file that the table is written to")
    chosen = parser.parse_args()
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)
    table, rows = Table(title="ratios beside their targets", title_justify="left"), []
    for heading in HEADINGS:
        table.add_column(heading)
    for name, part in parts(chosen.data_dir).items():
        if chosen.only and name not in chosen.only:
            continue
        for row in part():
            print(*cells(row), sep=" | ", file=sys.stderr, flush=True)
            table.add_row(*cells(row))
            rows.append(row)
        keras.backend.clear_session()
    Console(width=180).print(table)
    if chosen.output is not None:
        write_text(chosen.output, markdown(rows))


if __name__ == "__main__":
    main()
