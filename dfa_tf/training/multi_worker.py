"""TensorFlow's strategy over several workers: how it is made, how they communicate, and the error where one is lost."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from dfa_tf.errors import LostWorkerError, UserError
from dfa_tf.process import interruption, workers

_HALF = 16  # bits of a length that are sent as one number, because float32 holds no more than 24


def multi_worker_strategy() -> tf.distribute.Strategy:
    """The MultiWorkerMirroredStrategy over the workers that TF_CONFIG names, once all of them have come; from here on they can talk.

    Raises:
        UserError: if TF_CONFIG does not name them, some do not come, or TensorFlow has computed anything before.
    """
    workers.begin("multi_worker")
    workers.gather_all()
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError:
        raise UserError(
            "strategy=multi_worker must be made before TensorFlow computes anything: make the strategy first. "
            "Received: a process in which it has"
        ) from None
    interruption.renew()
    workers.connect(_exchange_by(strategy))
    return strategy


def _exchange_by(strategy: tf.distribute.Strategy) -> Callable[[bytes], list[bytes]]:
    """What `workers.exchange` does, by a collective operation on numbers: a length in two parts, and the bytes."""

    # Traced once, because a trace takes a quarter of a second; of float32, because all devices gather that.
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def gather(numbers: tf.Tensor) -> tf.Tensor:
        # A copy, because a collective operation goes by the device of what it is given, and an argument has none.
        gathered = strategy.run(lambda: tf.distribute.get_replica_context().all_gather(tf.identity(numbers), axis=0))
        return strategy.experimental_local_results(gathered)[0]

    def exchange(content: bytes) -> list[bytes]:
        length = [len(content) >> _HALF, len(content) % (1 << _HALF)]
        with lost_workers_reported():
            rest = gather(np.concatenate([length, np.frombuffer(content, np.uint8)]).astype(np.float32)).numpy()
        contents = []
        while len(rest):
            end = 2 + (int(rest[0]) << _HALF) + int(rest[1])
            contents.append(rest[2:end].astype(np.uint8).tobytes())
            rest = rest[end:]
        return contents[:: len(contents) // workers.count()]  # every replica of a worker has given the same

    return exchange


@contextlib.contextmanager
def lost_workers_reported() -> Iterator[None]:
    """Raises LostWorkerError in place of what TensorFlow raises where another worker does not answer any more."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.InternalError) as error:
        if workers.count() == 1:
            raise
        raise LostWorkerError(
            "another worker of this training has ended, or cannot be reached. What is done is kept up to the last checkpoint: "
            "run the same commands again, at all workers, to resume"
        ) from error
