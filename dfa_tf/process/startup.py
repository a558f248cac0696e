"""Loading TensorFlow without its start-up noise, and without hiding a failure."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from dfa_tf.errors import UserError
from dfa_tf.process import workers


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Captures output to file descriptor 2, including that of C++; prints it only if an error is raised."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:  # also an interrupt: it is raised again after the captured output
            os.dup2(before, 2)
            held.seek(0)
            os.write(2, held.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)


def load_tensorflow() -> None:
    """Imports TensorFlow and Keras and detects the devices, without output on the terminal.

    On a machine without a GPU, TensorFlow logs the missing driver as errors. Errors that it logs later are shown.

    Raises:
        ImportError: if one of them cannot be imported; their output is then shown.
        UserError: if KERAS_BACKEND is not tensorflow.
    """
    if os.environ.setdefault("KERAS_BACKEND", "tensorflow") != "tensorflow":
        raise UserError(f"dfa_tf runs on Keras' TensorFlow backend. Received: KERAS_BACKEND={os.environ['KERAS_BACKEND']}")
    # With several workers, TensorFlow logs many errors when one is lost; dfa_tf reports that in one line.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if workers.count() == 1 else "3")
    # TensorFlow turns oneDNN off on CPUs without AVX512_VNNI, where a training step is a quarter faster with it too.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with silent_stderr():
        import keras  # noqa: F401, PLC0415 (this function loads them)
        import tensorflow as tf  # noqa: PLC0415

        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)  # otherwise the first process takes all of its memory
    tf.get_logger().setLevel("WARNING")
