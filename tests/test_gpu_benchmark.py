"""The GPU benchmark runs to its end on a machine without a GPU, and says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def rows_of(output: Path, *flags: str) -> list[list[str]]:
    """The rows of the table that a run of the benchmark writes."""
    command = [sys.executable, "benchmarks/gpu.py", f"--output={output}", *flags]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line for line in output.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_part_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "gpu.md")
    found = [row for row in rows if row[0] == "found"]
    assert [row[1] for row in found] == ["devices", "TensorFlow"]
    assert found[0][2] == "no GPU"
    others = [row for row in rows if row[0] != "found"]
    parts = ["strategies", "steps", "precision", "determinism", "input", "resume", "export", "protocol", "xla"]
    assert [(row[0], row[2]) for row in others] == [(part, "no GPU") for part in parts]


@pytest.mark.slow
def test_small_networks_run_on_any_device(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "gpu.md", "--small", "--only=strategies", "--only=resume", "--only=export")
    found = {row[1]: row[2] for row in rows}
    assert found["strategy=mirrored: weights after 20 steps"].endswith("agrees")
    assert found["killed by SIGKILL, and resumed"] == "equal, bit for bit"
    assert found["export, saved_model"] == "parity kept"
