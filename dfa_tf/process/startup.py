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
    """Holds back what is written to file descriptor 2, by C++ too; shows it all the same if an error is raised."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:  # whatever it was, also an interrupt: it is raised again, with what was held back shown
            os.dup2(before, 2)
            held.seek(0)
            os.write(2, held.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)


def load_tensorflow() -> None:
    """Imports TensorFlow and Keras and finds the devices, with nothing written to the terminal.

    Without any GPU, TensorFlow reports that it found no driver as errors; other errors that it logs later
    are shown.

    Raises:
        ImportError: if one of them cannot be loaded; what they wrote is then shown.
        UserError: if another backend of Keras is asked for.
    """
    if os.environ.setdefault("KERAS_BACKEND", "tensorflow") != "tensorflow":
        raise UserError(f"dfa_tf runs on Keras' TensorFlow backend. Received: KERAS_BACKEND={os.environ['KERAS_BACKEND']}")
    # Of several workers TensorFlow logs many errors where one is lost, which is told in one line.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if workers.count() == 1 else "3")
    # TensorFlow leaves them off on processors without AVX512_VNNI, where a training step is a quarter faster with them too.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with silent_stderr():
        import keras  # noqa: F401, PLC0415 (this function is what loads them)
        import tensorflow as tf  # noqa: PLC0415

        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)  # or the first process would take all of its memory
    tf.get_logger().setLevel("WARNING")
