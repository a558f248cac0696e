"""TensorFlow loads late and quietly, and shows what went wrong."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

Process = Callable[..., subprocess.CompletedProcess[str]]


def test_the_configuration_loads_without_tensorflow(fresh_process: Process) -> None:
    done = fresh_process("import sys, dfa_tf.config as c; c.Config(); sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_loading_writes_nothing_and_leaves_stderr_open(fresh_process: Process) -> None:
    done = fresh_process(
        "import os, sys\n"
        "from dfa_tf.process import startup\n"
        "startup.load_tensorflow()\n"
        "assert {'keras', 'tensorflow'} <= set(sys.modules)\n"
        "os.write(2, b'after')"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "after")


def test_a_failing_import_shows_what_was_held_back(tmp_path: Path, fresh_process: Process) -> None:
    """By a package `keras` that writes past Python, as C++ does, and then fails."""
    (tmp_path / "keras.py").write_text(
        "import os\nos.write(2, b'no such library\\n')\nraise ImportError('broken keras')\n", encoding="utf-8"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = fresh_process("from dfa_tf.process import startup; startup.load_tensorflow()", PYTHONPATH=path)
    assert done.returncode == 1
    assert done.stderr.count("no such library\n") == 1
    assert "ImportError: broken keras" in done.stderr


def test_another_backend_of_keras_is_refused(fresh_process: Process) -> None:
    done = fresh_process("from dfa_tf.process import startup; startup.load_tensorflow()", KERAS_BACKEND="jax")
    assert done.returncode == 1
    assert done.stderr.endswith("UserError: dfa_tf runs on Keras' TensorFlow backend. Received: KERAS_BACKEND=jax\n")
