"""Speed of the input pipeline alone, compared with the training step that it feeds.

    python benchmarks/input_pipeline.py

Both are measured in turns in one run on random images of 32x32x3, batch 128; medians of several repetitions. Target: the input pipeline
delivers at least 10 times as many images per second as the step uses.
"""

import statistics
import time
from collections.abc import Callable, Iterator

from dfa_tf.process import startup

startup.load_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from dfa_tf import plugins  # noqa: E402
from dfa_tf.distillation.distiller import Distiller  # noqa: E402
from dfa_tf.images.splits import Images, Split  # noqa: E402
from dfa_tf.networks.features import FeatureModel  # noqa: E402

BATCH, IMAGES, REPETITIONS, BATCHES, TARGET = 128, 10_000, 5, 30, 10
VARIATIONS = {"crop and flip": {"crop_padding": 4, "flip": True}, "resized crop and flip": {"resized_crop": 0.08, "flip": True}}
# The fastest step of the shipped experiments, and a plain one with the smallest network: the hardest to feed.
STUDENTS = {
    "distil wrn_28_4 to wrn_16_2": ("wrn_28_4", "wrn_16_2"),
    "plain wrn_16_2": (None, "wrn_16_2"),
    "plain wrn_10_1": (None, "wrn_10_1"),
}


def network(name: str) -> FeatureModel:
    return FeatureModel.from_model(plugins.build("models", name, image_shape=(32, 32, 3), num_classes=100))


def stepper(teacher: str | None, student: str, batches: Iterator[dict[str, tf.Tensor]]) -> Callable[[], None]:
    """A training step that repeats one batch, without the input pipeline."""
    ours, theirs = network(student), None if teacher is None else network(teacher)
    methods = {} if theirs is None else {"dfa": plugins.build("losses", "dfa", ours, theirs)}
    distiller = Distiller(ours, theirs, methods)
    distiller.compile(optimizer=keras.optimizers.SGD(0.01))
    batch = next(batches)
    step = tf.function(lambda: distiller.train_step(batch)["total_loss"])
    return lambda: step().numpy()


def images_per_second(work: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        work()
    return count * BATCH / (time.perf_counter() - start)


def main() -> None:
    """Prints the table."""
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (IMAGES, 32, 32, 3)).astype(np.uint8), random.integers(0, 100, IMAGES)
    split = Split(Images(pixels, labels.astype(np.int32)), np.arange(IMAGES))
    pipelines = {name: iter(split.batches(BATCH, seed=0, **options)) for name, options in VARIATIONS.items()}
    works: dict[str, tuple[Callable[[], object], int]] = {
        name: ((lambda batches=batches: next(batches)), BATCHES) for name, batches in pipelines.items()
    }
    works |= {name: (stepper(*pair, iter(split.batches(BATCH, seed=1))), 2) for name, pair in STUDENTS.items()}
    for work, _ in works.values():
        work()  # traces, and fills the prefetched batches
    speeds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPETITIONS):
        for name, (work, count) in works.items():
            speeds[name].append(images_per_second(work, count))
    median = {name: statistics.median(values) for name, values in speeds.items()}
    table = Table(title=f"images/s, medians of {REPETITIONS}; target {TARGET} times the step", title_justify="left")
    for heading in ("input pipeline", "training step"):
        table.add_column(heading)
        table.add_column("images/s", justify="right")
    table.add_column("times", justify="right")
    for pipeline in pipelines:
        for step in STUDENTS:
            table.add_row(pipeline, f"{median[pipeline]:,.0f}", step, f"{median[step]:,.0f}", f"{median[pipeline] / median[step]:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
