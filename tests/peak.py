"""Prints the memory that one step of stage 2 takes, as a share of what was estimated: peak.py TEACHER STUDENT SIDE BATCH_SIZE."""

import ctypes
import gc
import sys
from pathlib import Path

from dfa_tf.process import startup

startup.load_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from dfa_tf import plugins  # noqa: E402
from dfa_tf.distillation.distiller import Distiller  # noqa: E402
from dfa_tf.networks.features import FeatureModel  # noqa: E402
from dfa_tf.networks.pairing import keep_paired_groups  # noqa: E402
from dfa_tf.reporting.description import describe  # noqa: E402

M_MMAP_THRESHOLD = -3


def resident(key: str) -> int:
    """Bytes of this process that Linux counts under this key: VmRSS now, VmHWM at the peak."""
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(key))


def share(teacher: str, student: str, side: int, batch_size: int) -> float:
    """Of the step alone: weights and momentum are there before it."""
    # Lets the C library give every large tensor back to the system at once, so that what is resident is in use.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    shape = (side, side, 3)
    ours, theirs = (
        FeatureModel.from_model(plugins.build("models", name, image_shape=shape, num_classes=10)) for name in (student, teacher)
    )
    memory = describe(theirs, ours, batch_size=batch_size).memory
    ours, theirs = keep_paired_groups(ours, theirs)
    distiller = Distiller(ours, theirs, {"dfa": plugins.build("losses", "dfa", ours, theirs)})
    distiller.compile(optimizer=keras.optimizers.SGD(0.01, momentum=0.9))
    distiller.optimizer.build(distiller.trainable_variables)
    signature = [tf.TensorSpec([None, *shape]), tf.TensorSpec([None], tf.int32)]
    step = tf.function(lambda images, labels: distiller.train_step((images, labels)), input_signature=signature)
    step(tf.zeros([2, *shape]), tf.zeros([2], tf.int32))
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    step(tf.random.uniform([batch_size, *shape], 0, 255), tf.zeros([batch_size], tf.int32))
    return (resident("VmHWM") - before) / (memory.total - memory.weights - memory.optimizer)


if __name__ == "__main__":
    print(share(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
