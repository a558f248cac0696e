"""Time, speed and memory of a stage."""

import resource
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def peak_memory() -> float:
    """Peak memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not from getrusage, where a process begins with the peak of the one that started it.
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Stopwatch:
    """Time, speed and memory of a stage, as `result.json` holds them."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def result(self, steps: int, batch_size: int, seconds_before: float = 0.0) -> dict[str, Any]:
        """Steps, seconds (with those before an interruption), examples a second; the peak is of the whole process so far, in MiB."""
        seconds = seconds_before + time.perf_counter() - self._start
        return {
            "steps": steps,
            "seconds": round(seconds, 3),
            "examples_per_second": round(steps * batch_size / seconds, 1),
            "peak_memory_mb": round(peak_memory(), 1),
            "versions": {name: version(name) for name in ("tensorflow", "keras", "numpy")},
        }
