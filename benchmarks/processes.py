"""Measurements of whole processes: the time from a command to its first step, and the memory of a run."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from timing import Row, compared

from dfa_tf.storage.reading import read_json

ROOT = Path(__file__).parent.parent
FEW, SIDE, BATCH = 2000, 32, 100


def start_up(cifar: str | None) -> Iterator[Row]:
    """Seconds from the command to the first training step.

    Args:
        cifar: TFDS's data directory that holds CIFAR-100; None leaves CIFAR-100 out.
    """
    yield compared(
        "bundled data: command to first step", "bin/run.py --config=bundled", _seconds_to_step(["--config=bundled"]), most=20, unit=" s"
    )
    if cifar is not None:
        flags = ["--config=cifar100_small", f"--set=data.data_dir={cifar}"]
        yield compared(
            "CIFAR-100: command to first step", "bin/run.py --config=cifar100_small", _seconds_to_step(flags), most=40, unit=" s"
        )


def _seconds_to_step(flags: Sequence[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "bin/run.py", *flags, f"--workdir={folder}/run"]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            lines = []
            for line in process.stderr or ():
                lines.append(line)
                if ": step " in line:
                    seconds = time.perf_counter() - start
                    process.send_signal(signal.SIGTERM)
                    process.wait()
                    return seconds
        raise RuntimeError("".join(lines))


def memory() -> Iterator[Row]:
    """Peak memory of trainings with ten times the images (at as many steps) and five times the epochs, relative to few images."""
    with tempfile.TemporaryDirectory() as folder:
        few, many = (_pictures(Path(folder), count) for count in (FEW, 10 * FEW))
        usual = _peak(few, epochs=10, folder=folder)
        for name, peak in {
            f"{10 * FEW} pictures in place of {FEW}, as many steps": _peak(many, epochs=1, folder=folder),
            "50 epochs in place of 10": _peak(few, epochs=50, folder=folder),
        }.items():
            yield compared(f"peak memory: {name}", f"{usual:.0f} MiB, then {peak:.0f} MiB", peak / usual, most=1.05)


def _pictures(folder: Path, count: int) -> Path:
    """A folder of random pictures of ten classes."""
    random, root = np.random.default_rng(0), folder / f"pictures{count}"
    for label in range(10):
        directory = root / f"class{label}"
        directory.mkdir(parents=True)
        for number in range(count // 10):
            Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(directory / f"{number}.png")
    return root


def _peak(pictures: Path, *, epochs: int, folder: str) -> float:
    """Peak memory in MiB of the training of one small network."""
    workdir = Path(tempfile.mkdtemp(dir=folder))
    settings = {
        "data.data_dir": pictures,
        "data.batch_size": BATCH,
        "data.options.image_size": f"[{SIDE},{SIDE}]",
        "teacher.name": "wrn_10_1",
        "train.epochs": epochs,
        "train.evaluate_every": epochs,
    }
    overrides = [f"--set={key}={value}" for key, value in settings.items()]
    command = [sys.executable, "bin/train.py", "--config=image_folder", "--quiet", f"--workdir={workdir}", *overrides]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    return float(read_json(workdir / "teacher" / "result.json", "the result")["peak_memory_mb"])
