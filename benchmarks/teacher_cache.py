"""The gain of reading the teacher's outputs from disk, by student and method, and when writing them pays.

    python benchmarks/teacher_cache.py

Steps with and without the cache, their input pipelines included, are measured in turns in one run on random images of 32x32x3, batch
128; medians of several repetitions. The files are in the system's page cache, as they are whenever it is large enough.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dfa_tf.process import startup

startup.load_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from dfa_tf import plugins  # noqa: E402
from dfa_tf.aggregation.weights import AggregationWeights  # noqa: E402
from dfa_tf.config import Config  # noqa: E402
from dfa_tf.distillation.distiller import Distiller  # noqa: E402
from dfa_tf.images.splits import Images, Source, Splits, split  # noqa: E402
from dfa_tf.networks.features import FeatureModel  # noqa: E402
from dfa_tf.training.teacher_cache import CachedOutputs, TeacherCache  # noqa: E402

BATCH, IMAGES, CLASSES, REPETITIONS, STEPS = 128, 1280, 100, 5, 2
PAIRS = [("wrn_28_2", "wrn_16_2"), ("wrn_28_2", "wrn_10_1")]
METHODS = ("kd", "margin", "dfa")
CONFIG = Config().override([f"data.batch_size={BATCH}", "data.crop_padding=4", "data.flip=true", "data.views=1"])


def network(name: str) -> FeatureModel:
    return FeatureModel.from_model(plugins.build("models", name, image_shape=(32, 32, 3), num_classes=CLASSES))


def random_splits() -> Splits:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (IMAGES, 32, 32, 3)).astype(np.uint8)
    images = Images(pixels, np.arange(IMAGES, dtype=np.int32) % CLASSES)
    names = [str(number) for number in range(CLASSES)]
    return split(Source(images, None, names, [127.5] * 3, [74.0] * 3, "random pixels"), CONFIG.data, seed=0)


def distiller_of(teacher: str, student: str, method: str) -> Distiller:
    """A Distiller of one method; for `dfa` all alphas are equal, so that all blocks are read."""
    ours, theirs = network(student), network(teacher)
    options = {"aggregation": AggregationWeights.by_rule("average", theirs)} if method == "dfa" else {}
    distiller = Distiller(ours, theirs, {method: plugins.build("losses", method, ours, theirs, **options)})
    distiller.compile(optimizer=keras.optimizers.SGD(0.01))
    distiller.optimizer.build(distiller.trainable_variables)
    return distiller


def stepper(distiller: Distiller, splits: Splits, cached_outputs: CachedOutputs | None) -> Callable[[], object]:
    """A training step on the next batch, with the teacher's outputs read or computed."""
    data = splits.train + splits.search
    made = data.batches(BATCH, seed=0, **CONFIG.augmentation)
    batches: Iterator[Any] = iter(made if cached_outputs is None else cached_outputs.join(made, data))
    step = tf.function(lambda batch: distiller.train_step(batch)["total_loss"])
    return lambda: step(next(batches)).numpy()


def seconds(work: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - start) / count


def measure(teacher: str, student: str, method: str, splits: Splits, folder: Path) -> dict[str, Any]:
    """Seconds of a step without and with the cache; seconds and bytes per image to make it; epochs per view until it pays."""
    distiller = distiller_of(teacher, student, method)
    if distiller.teaching is None:
        raise ValueError("without a teacher there is nothing to keep")
    start = time.perf_counter()
    shares: list[float] = []  # the first batch is traced and does not count
    times: list[float] = []

    def report(numbers: dict[str, float]) -> None:
        shares.extend(numbers.values())
        times.append(time.perf_counter() - start)

    cached_outputs = TeacherCache(folder, 64.0).cached_outputs(distiller.teaching, distiller.outputs_read, splits, CONFIG, report=report)
    if cached_outputs is None:
        raise OSError(f"{folder} has no room")
    making = (times[-1] - times[0]) / ((shares[-1] - shares[0]) * IMAGES)
    works = {"without": stepper(distiller, splits, None), "with": stepper(distiller, splits, cached_outputs)}
    for work in works.values():
        work()  # traces, and fills the prefetched batches
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPETITIONS):
        for name, work in works.items():
            taken[name].append(seconds(work, STEPS))
    without, cached = (statistics.median(values) for values in taken.values())
    gained = (without - cached) / BATCH
    return {
        "pair": f"{teacher} to {student}", "method": method, "step_without": without, "step_with": cached,
        "making_per_image": making, "bytes_per_image": sum(file.stat().st_size for file in folder.glob("*.npy")) / IMAGES,
        "epochs_until_it_pays": making / gained if gained > 0 else float("inf"),
    }  # fmt: skip


def measure_all() -> Iterator[dict[str, Any]]:
    """The rows of the table."""
    splits = random_splits()
    for teacher, student in PAIRS:
        for method in METHODS:
            with tempfile.TemporaryDirectory() as folder:
                yield measure(teacher, student, method, splits, Path(folder))
            keras.backend.clear_session()


def main() -> None:
    """Prints the table."""
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)
    table = Table(title=f"batches of {BATCH} images of 32x32x3, medians of {REPETITIONS}", title_justify="left")
    for heading in ("pair", "method"):
        table.add_column(heading)
    for heading in ("step, ms", "with cache, ms", "times as fast", "making, ms a batch", "KiB an image", "pays after epochs, a view"):
        table.add_column(heading, justify="right")
    for row in measure_all():
        without, cached = row["step_without"], row["step_with"]
        numbers = [
            f"{1000 * without:.0f}",
            f"{1000 * cached:.0f}",
            f"{without / cached:.2f}",
            f"{1000 * BATCH * row['making_per_image']:.0f}",
        ]
        size = f"{row['bytes_per_image'] / 1024:.1f}"
        table.add_row(row["pair"], row["method"], *numbers, size, f"{row['epochs_until_it_pays']:.1f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
