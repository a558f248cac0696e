"""Time of a step of either stage, compared with its parts and with Keras' own Distiller.

    python benchmarks/steps.py keras | ours

prints the seconds of a step of one of the two, for a separate process.
"""

import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

from dfa_tf.process import startup

if __name__ != "__main__" or sys.argv[1:] == ["ours"]:
    startup.load_tensorflow()

import keras
import tensorflow as tf
import timing
from timing import (
    STEPS,
    Row,
    Work,
    compared,
    distiller,
    in_turns,
    milliseconds,
    network,
    passes_of,
    steps_of,
)

from dfa_tf.aggregation.search import search
from dfa_tf.config import Config
from dfa_tf.distillation.distiller import Distiller
from dfa_tf.images.splits import Source, Split, Splits
from dfa_tf.networks.precision import fast_precision
from dfa_tf.training.context import StageContext

SEARCH_STEPS, WARM = 6, 2
TEACHER, STUDENT = "wrn_28_2", "wrn_16_2"


def second_stage(teacher: str, student: str, *, most: float, batch_size: int = 64, repetitions: int = 5) -> Row:
    """A step with the losses of DFA beside T, the teacher's forward pass alone, and S, the student's plain step alone."""
    works = {"T": passes_of(teacher, batch_size), "S": steps_of(distiller(None, student), batch_size)}
    times = in_turns({**works, "step": steps_of(distiller(teacher, student), batch_size)}, repetitions)
    ratio = times["step"] / (times["T"] + times["S"])
    return compared(f"stage 2, {teacher} to {student}: step / (T + S)", milliseconds(times), ratio, most=most)


def first_stage(teacher: str, student: str, *, most: float, batch_size: int = 64) -> Iterator[Row]:
    """A step on beta and one on the weights beside 2 T + 3 S, in both modes; the group-wise mode has a row for each group.

    T and S are measured between the steps of one real search.
    """
    alone = {"T": passes_of(teacher, batch_size), "S": steps_of(distiller(None, student), batch_size)}
    for mode in ("joint", "group_wise"):
        steps, others = _searched(teacher, student, mode, batch_size, alone)
        unit = 2 * others["T"] + 3 * others["S"]
        for group, seconds in enumerate(steps, start=1):
            where = "joint search" if mode == "joint" else f"search of group {group} alone"
            shown = milliseconds(others) + f", step {1000 * seconds:.0f} ms"
            yield compared(
                f"{where}, {teacher} to {student}: step / (2 T + 3 S)",
                shown,
                STEPS * seconds / unit,
                most=most if mode == "joint" else None,
            )
        if mode == "group_wise":
            whole = STEPS * sum(steps) / unit
            yield compared(f"search of all groups one after the other, {teacher} to {student}: steps / (2 T + 3 S)", "their sum", whole)


def _searched(teacher: str, student: str, mode: str, batch_size: int, alone: Mapping[str, Work]) -> tuple[list[float], dict[str, float]]:
    """Median seconds of a step of each pass, and of the works measured in between."""
    data = timing.random_split(2 * batch_size * SEARCH_STEPS)
    half = len(data) // 2
    names = [str(number) for number in range(timing.CLASSES)]
    source = Source(data.images, None, names, [127.0] * 3, [64.0] * 3, "random")
    halves = [Split(data.images, data.indices[part]) for part in (slice(half), slice(half, None))]
    nothing = Split(data.images, data.indices[:0])
    splits = Splits(halves[0], halves[1], nothing, nothing, source)
    config = Config().override([f"data.batch_size={batch_size}", f"search.mode={mode}", "search.epochs=1", "search.warmup_epochs=0"])
    steps: dict[int, list[float]] = {}
    others: dict[str, list[float]] = {name: [] for name in alone}
    for work in alone.values():
        work()
    begun = time.perf_counter()

    def report(done: int, total: int, numbers: dict[str, float]) -> None:
        nonlocal begun
        number, step = divmod(done - 1, SEARCH_STEPS)
        if step >= WARM:  # after the steps that are traced
            steps.setdefault(number, []).append(time.perf_counter() - begun)
            for name, work in alone.items():
                start = time.perf_counter()
                work()
                others[name].append(time.perf_counter() - start)
        begun = time.perf_counter()

    search(network(teacher), network(student), splits, config, context=StageContext(report=report))
    return [statistics.median(times) for times in steps.values()], {name: statistics.median(times) for name, times in others.items()}


def against_keras(*, repetitions: int = 5, batch_size: int = 64) -> Iterator[Row]:
    """A step with the losses of DFA beside one of keras.distillation.Distiller with a feature loss for each group, on the same pair."""
    works = {
        "keras": _step("keras", batch_size),
        "ours": _step("ours", batch_size),
        "T": passes_of(TEACHER, batch_size),
        "S": steps_of(distiller(None, STUDENT), batch_size),
    }
    name, why = fast_precision()
    if name != "float32":
        works["auto"] = steps_of(distiller(TEACHER, STUDENT, name), batch_size)
    times = in_turns(works, repetitions)
    about = f"keras.distillation.Distiller / step, {TEACHER} to {STUDENT}"
    yield compared(f"{about}, float32", milliseconds(times), times["keras"] / times["ours"], least=1.7)
    yield compared(f"{about}: if ours took no more than T and S", "its step / (T + S)", times["keras"] / (times["T"] + times["S"]))
    if name == "float32":
        yield Row(f"{about} in float32 / precision=auto", f"auto is float32 here: {why}", "-", "at least 2.4 with AVX512_BF16")
    else:
        yield compared(f"{about} in float32 / {name}", why, times["keras"] / times["auto"], least=2.4)


def _step(who: str, batch_size: int = 64) -> Work:
    """The steps of `keras` or `ours`."""
    return steps_of(keras_distiller(TEACHER, STUDENT) if who == "keras" else distiller(TEACHER, STUDENT), batch_size)


def as_each_comes(*, repetitions: int = 3) -> Row:
    """The two in separate processes, in turns: Keras' with TensorFlow's defaults, ours with the settings of dfa_tf."""
    usual = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    seconds: dict[str, list[float]] = {"keras": [], "ours": []}
    for _ in range(repetitions):
        for who, times in seconds.items():
            run = subprocess.run([sys.executable, __file__, who], check=True, capture_output=True, text=True, env=usual)
            times.append(float(run.stdout.splitlines()[-1]))
    times = {who: statistics.median(values) for who, values in seconds.items()}
    about = f"keras.distillation.Distiller / step, {TEACHER} to {STUDENT}, float32, each with its own default of oneDNN"
    return compared(about, milliseconds(times, 1), times["keras"] / times["ours"])


def keras_distiller(teacher: str, student: str) -> keras.Model:
    """A compiled keras.distillation.Distiller with a feature loss for each group."""
    theirs, ours = network(teacher), network(student)
    pairs = zip(theirs.block_names(), ours.block_names(), strict=True)
    losses = [
        keras.distillation.FeatureDistillation(loss="mse", teacher_layer_name=blocks[-1], student_layer_name=own[-1])
        for blocks, own in pairs
    ]
    model = keras.distillation.Distiller(
        teacher=theirs.model, student=ours.model, distillation_losses=losses, distillation_loss_weights=[1.0] * 3, student_loss_weight=0.5
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=timing.optimizer(), loss=loss, jit_compile=False)  # as ours
    return model


def execution(student: str, *, batch_size: int = 64, repetitions: int = 5) -> Iterator[Row]:
    """The gain of train.jit_compile and train.steps_per_execution on this device, the reason for their defaults."""
    compiled = distiller(None, student)
    compiled.train_step = tf.function(functools.partial(Distiller.train_step, compiled), jit_compile=True)
    models = {"usual": distiller(None, student), "jit_compile": compiled}
    models["steps_per_execution"] = distiller(None, student, steps_per_execution=STEPS)
    times = in_turns({name: steps_of(model, batch_size) for name, model in models.items()}, repetitions)
    for name in list(models)[1:]:
        yield compared(f"plain {student}: step as usual / step with {name}", milliseconds(times), times["usual"] / times[name])


if __name__ == "__main__":
    print(in_turns({"step": _step(sys.argv[1])}, 5)["step"] / STEPS)
