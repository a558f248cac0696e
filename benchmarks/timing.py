"""Shared by the benchmarks: networks and batches, works measured in turns, a row of a table with its target, and the table."""

import datetime
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from dfa_tf import plugins
from dfa_tf.distillation.distiller import Distiller
from dfa_tf.images.splits import Images, Split
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.frozen_teacher import frozen
from dfa_tf.networks.precision import computing_in, precision
from dfa_tf.storage.files import write_text
from dfa_tf.training.replicas import distributed
from dfa_tf.training.updates import loss_scaled

SHAPE, CLASSES, STEPS = (32, 32, 3), 100, 2
Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """A measurement beside its target.

    Attributes:
        name: what is measured.
        value: in words, the times that the ratio is computed from.
        ratio: the measured ratio.
        target: such as `"at most 1.15"`; empty without one.
        met: whether the target is met; None without one.
    """

    name: str
    value: str
    ratio: str
    target: str = ""
    met: bool | None = None


def compared(name: str, value: str, ratio: float, *, most: float | None = None, least: float | None = None, unit: str = "") -> Row:
    """A row with at most one target."""
    if most is not None:
        return Row(name, value, f"{ratio:.2f}{unit}", f"at most {most:g}{unit}", ratio <= most)
    if least is not None:
        return Row(name, value, f"{ratio:.2f}{unit}", f"at least {least:g}{unit}", ratio >= least)
    return Row(name, value, f"{ratio:.2f}{unit}")


def in_turns(works: Mapping[str, Work], repetitions: int) -> dict[str, float]:
    """Median seconds of each work. All are measured in turns, so that a busy machine slows them equally."""
    for work in works.values():
        work()  # traces
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def random_split(count: int, shape: tuple[int, ...] = SHAPE) -> Split:
    """Random images of random classes."""
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (count, *shape)).astype(np.uint8), np.arange(count) % CLASSES
    return Split(Images(pixels, labels.astype(np.int32)), np.arange(count))


def network(name: str, policy: str = "float32") -> FeatureModel:
    with precision(policy):
        return FeatureModel.from_model(plugins.build("models", name, image_shape=SHAPE, num_classes=CLASSES))


def optimizer() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True)


def distiller(teacher: str | None, student: str, policy: str = "float32", method: str = "dfa", **options: object) -> Distiller:
    """A compiled Distiller with one method, or for plain training without a teacher."""
    ours = network(student, policy)
    if teacher is None:
        made = Distiller(ours, weight_decay=5e-4)
    else:
        theirs = computing_in(policy, network(teacher))
        made = Distiller(ours, theirs, {method: plugins.build("losses", method, ours, theirs)}, weight_decay=5e-4)
    made.compile(optimizer=loss_scaled(optimizer(), policy), **options)
    return made


def steps_of(model: keras.Model, batch_size: int, side: int = SHAPE[0]) -> Work:
    """Some training steps of a compiled model as `fit` makes them, repeated on one batch."""
    split = random_split(batch_size, (side, side, 3))
    batch = next(iter(split.once(batch_size).map(lambda data: (data["images"], data["labels"]))))
    data = tf.data.Dataset.from_tensors(batch).repeat()
    model.fit(data, steps_per_epoch=STEPS, shuffle=False, verbose=0)
    step, batches = model.train_function, iter(distributed(data, model.distribute_strategy))

    def work() -> None:
        logs = [step(batches) for _ in range(STEPS // model.steps_per_execution)][-1]
        tf.nest.map_structure(lambda value: value.numpy(), logs)  # waits for the device

    return work


def passes_of(name: str, batch_size: int, policy: str = "float32") -> Work:
    """As many forward passes of a teacher as `steps_of` makes steps."""
    images = next(iter(random_split(batch_size).once(batch_size)))["images"]
    teach = frozen(computing_in(policy, network(name)))
    forward = tf.function(lambda: teach(images).logits)

    def work() -> None:
        for _ in range(STEPS):
            logits = forward()
        logits.numpy()

    return work


def milliseconds(seconds: Mapping[str, float], steps: int = STEPS) -> str:
    return ", ".join(f"{name} {1000 * value / steps:.0f} ms" for name, value in seconds.items())


def machine() -> str:
    """The machine and versions of the measurements."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    gpus = [tf.config.experimental.get_device_details(gpu)["device_name"] for gpu in tf.config.list_physical_devices("GPU")]
    onednn = "without" if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0" else "with"
    versions = ", ".join(f"{name} {version(name)}" for name in ("tensorflow", "keras"))
    return f"{model}, {os.cpu_count()} cores, {', '.join(gpus) or 'no GPU'}; {versions} {onednn} oneDNN"


def write_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], output: Path | None) -> None:
    """Writes a table as Markdown, with command and machine, if an output is given."""
    if output is not None:
        lines = ["| " + " | ".join(line) + " |" for line in (headings, ["---"] * len(headings), *rows)]
        command = shlex.join(["python", *sys.argv])
        write_text(output, f"# {title}\n\n`{command}` on {datetime.date.today()}: {machine()}.\n\n" + "\n".join(lines) + "\n")


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    Console(width=180).print(table)
