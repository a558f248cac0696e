"""Checks and measures the library on a GPU: one command, one table, at most ten minutes.

    python benchmarks/gpu.py [--minutes=10] [--only=PART] [--small] [--output=benchmarks/gpu.md]

Each part runs in a process of its own (`gpu_parts.py`), because determinism, TF32 and memory are settings of a whole process. A part
that fails or runs out of time gives a row that says so, and the next one runs. On a machine without a GPU every part gives a row
"no GPU". `--small` runs all parts on tiny networks on any device: it checks the program, and its times mean nothing.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dfa_tf.process import startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402
from timing import print_table, write_table  # noqa: E402

FOLDER = Path(__file__).parent
TITLE = "On a GPU"
HEADINGS = ("part", "what", "found", "of")
PARTS = {
    "found": "the device, its driver, TensorFlow's build",
    "strategies": "auto, gpu and mirrored agree with one device",
    "steps": "a step of either stage beside T + S, keras.distillation and PyTorch",
    "precision": "float32, TF32, float16, bfloat16, auto",
    "determinism": "its cost",
    "input": "whether the step is fed",
    "resume": "killed and resumed, bit for bit",
    "export": "formats and their parity",
    "protocol": "the time of a configuration of the paper",
    "xla": "jit_compile of either stage, and its compile time",
}
LONGEST = 120
"""Seconds that a part may take, so that one that hangs leaves time for the others."""
ALWAYS = ("found",)
"""Parts that have something to say without a GPU too."""


def rows_of(part: str, *, seconds: float, small: bool) -> Iterator[tuple[str, ...]]:
    """The rows of a part, run in a process of its own."""
    command = [sys.executable, str(FOLDER / "gpu_parts.py"), part, *(["--small"] if small else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, errors = process.communicate()
            last = f"stopped after {seconds:.0f} s"
        else:
            last = next((line for line in reversed(errors.splitlines()) if line.strip()), "no message")[:200]
    yield from ((part, *json.loads(line.removeprefix("row "))) for line in out.splitlines() if line.startswith("row "))
    if process.returncode:
        yield part, PARTS[part], "not finished" if process.returncode == -signal.SIGKILL else "failed", last


def main() -> None:
    """Prints the table, and writes it after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="time that all parts may take together")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="this part alone; may be repeated")
    parser.add_argument("--small", action="store_true", help="tiny networks, on any device: to check the program")
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    chosen = parser.parse_args()
    has_gpu, end = bool(tf.config.list_physical_devices("GPU")), time.monotonic() + 60 * chosen.minutes
    rows: list[tuple[str, ...]] = []
    for part in chosen.only or PARTS:
        left = end - time.monotonic()
        if not has_gpu and not chosen.small and part not in ALWAYS:
            new = [(part, PARTS[part], "no GPU", "")]
        elif left < 1:
            new = [(part, PARTS[part], "not run", "no time left")]
        else:
            new = list(rows_of(part, seconds=min(left, LONGEST), small=chosen.small))
        for row in new:
            print(*row, sep=" | ", file=sys.stderr, flush=True)
        rows += new
        write_table(TITLE, HEADINGS, rows, chosen.output)
    print_table(TITLE, HEADINGS, rows)


if __name__ == "__main__":
    main()
