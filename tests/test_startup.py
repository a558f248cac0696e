"""The package loads quietly, lazily, and says what went wrong."""

import subprocess
import sys

import dfa_tf


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


def test_configuration_loads_without_tensorflow() -> None:
    done = run("import sys, dfa_tf.config as c; c.Config(); sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)")
    assert done.returncode == 0, done.stderr
