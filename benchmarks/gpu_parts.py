"""The parts of `gpu.py`. Each prints its rows as lines of JSON, as soon as they are known.

    python benchmarks/gpu_parts.py PART [--small]

T is the teacher's forward pass alone, S the student's plain training step alone. Times are medians of works taken in turns.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from dfa_tf.process import startup

startup.load_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import timing  # noqa: E402
from steps import keras_distiller  # noqa: E402
from timing import STEPS, distiller, in_turns, milliseconds, network, passes_of, steps_of  # noqa: E402

from dfa_tf.aggregation.search import search  # noqa: E402
from dfa_tf.config import Config, experiments  # noqa: E402
from dfa_tf.distillation.distil import distil  # noqa: E402
from dfa_tf.distillation.distiller import Distiller  # noqa: E402
from dfa_tf.export.formats import write_all  # noqa: E402
from dfa_tf.export.parity import check  # noqa: E402
from dfa_tf.export.student import read_student  # noqa: E402
from dfa_tf.images.augmentation import augment  # noqa: E402
from dfa_tf.images.splits import Source, Split, Splits  # noqa: E402
from dfa_tf.networks.precision import fast_precision  # noqa: E402
from dfa_tf.training.context import StageContext  # noqa: E402
from dfa_tf.training.strategies import strategy  # noqa: E402

ROOT = Path(__file__).parent.parent
SMALL = "--small" in sys.argv
Row = tuple[str, str, str]


class Setting(NamedTuple):
    """Networks and sizes: those of the paper's configuration (1), or tiny ones."""

    teacher: str
    student: str
    batch: int
    repetitions: int
    images: int
    seconds: float


SETTING = Setting("wrn_16_1", "wrn_10_1", 8, 1, 64, 3.0) if SMALL else Setting("wrn_28_4", "wrn_16_4", 128, 10, 50_000, 15.0)


def gpu_names() -> list[str]:
    return [device.name for device in tf.config.list_logical_devices("GPU")]


def splits_of(count: int) -> Splits:
    """Random images of CIFAR's shape, in two halves."""
    data = timing.random_split(count)
    source = Source(data.images, None, [str(number) for number in range(timing.CLASSES)], [127.0] * 3, [64.0] * 3, "random")
    half = count // 2
    nothing = Split(data.images, data.indices[:0])
    return Splits(Split(data.images, data.indices[:half]), Split(data.images, data.indices[half:]), nothing, nothing, source)


def ratio(value: float) -> str:
    return f"{value:.2f}"


def per_second(seconds: float, steps: int = STEPS) -> str:
    return f"{steps / seconds:.1f} steps/s, {steps * SETTING.batch / seconds:,.0f} images/s"


def found() -> Iterator[Row]:
    """What there is: devices, driver, build, memory growth."""
    for gpu in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpu)
        capability = ".".join(map(str, details.get("compute_capability", ())))
        growth = "on" if tf.config.experimental.get_memory_growth(gpu) else "off"
        yield gpu.name, str(details.get("device_name", "?")), f"compute capability {capability}, memory growth {growth}"
    if not gpu_names():
        yield "devices", "no GPU", ", ".join(device.name for device in tf.config.list_physical_devices())
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
        yield "driver, memory", subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip(), "nvidia-smi"
    build = tf.sysconfig.get_build_info()
    cuda = ", ".join(f"{name} {build[key]}" for name, key in (("CUDA", "cuda_version"), ("cuDNN", "cudnn_version")) if key in build)
    yield "TensorFlow", tf.__version__, f"built for {cuda or 'processors alone'}; keras {keras.__version__}"
    if gpu_names():
        tf.matmul(tf.ones([1024, 1024]), tf.ones([1024, 1024])).numpy()
        used = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
        yield "memory growth", f"{used:.0f} MiB after a product of two matrices of 4 MiB", "what the process has asked for so far"


def strategies() -> Iterator[Row]:
    """The weights after 20 steps under each strategy, beside those of one device: at most 1e-4 apart."""
    tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    data = splits_of(16 * 20)
    config = Config().override(["data.batch_size=16", "train.epochs=1", "train.learning_rate=0.01", "distil.aggregation=last"])

    def weights(chosen: tf.distribute.Strategy | None) -> list[np.ndarray]:
        # Made anew from one seed: under a strategy of several devices copies of them are trained.
        keras.utils.set_random_seed(0)
        teacher, student = network("wrn_16_1"), network("wrn_10_1")
        trained = distil(teacher, student, data, config.override(['distil.methods={"kd": 1.0}']), context=StageContext(strategy=chosen))
        return trained.student.get_weights()

    usual = weights(tf.distribute.OneDeviceStrategy(f"/{'GPU' if gpu_names() else 'CPU'}:0"))
    for name in ("auto", "gpu", "mirrored"):
        if name == "gpu" and not gpu_names():
            yield f"strategy={name}", "no GPU", ""
            continue
        made = strategy(name)
        apart = max(float(np.max(np.abs(one - other))) for one, other in zip(usual, weights(made), strict=True))
        devices = f"{type(made).__name__}, {made.num_replicas_in_sync} of {max(1, len(gpu_names()))} devices"
        yield f"strategy={name}: weights after 20 steps", f"{apart:.1e} apart, {'agrees' if apart <= 1e-4 else 'DIFFERS'}", devices


def _pair(policy: str = "float32", **options: object) -> Distiller:
    return distiller(SETTING.teacher, SETTING.student, policy, **options)


def step() -> Iterator[Row]:
    """A step of stage 2 beside T + S and its rivals; peak memory."""
    batch = SETTING.batch
    models = {"S": distiller(None, SETTING.student), "step": _pair()}
    works = {"T": passes_of(SETTING.teacher, batch)} | {name: steps_of(model, batch) for name, model in models.items()}
    works["keras"] = steps_of(keras_distiller(SETTING.teacher, SETTING.student), batch)
    times = in_turns(works, SETTING.repetitions)
    about = f"stage 2, {SETTING.teacher} to {SETTING.student}, batch {batch}, float32 with TF32"
    yield about, per_second(times["step"]), milliseconds(times)
    yield f"{about}: step / (T + S)", ratio(times["step"] / (times["T"] + times["S"])), milliseconds(times)
    yield "keras.distillation.Distiller, a feature loss for each group / step", ratio(times["keras"] / times["step"]), milliseconds(times)
    if gpu_names():
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
        yield "peak GPU memory of these four", f"{peak:,.0f} MiB", f"batch {batch}, float32"
    if find_spec("torch") is None:
        yield "PyTorch's step / step", "not measured", "torch is not installed"
        return
    command = [sys.executable, str(Path(__file__).with_name("torch_step.py")), SETTING.teacher, SETTING.student, str(batch)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    others = json.loads(run.stdout.splitlines()[-1])
    shown = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in others.items() if name != "device")
    yield (
        "PyTorch's step of the same pair / step",
        ratio(others["step"] / (times["step"] / STEPS)),
        f"PyTorch on {others['device']}: {shown}",
    )


def precision() -> Iterator[Row]:
    """A step in each precision. TF32 is a switch that the kernels ask for when they run."""
    chosen, why = fast_precision()
    yield "train.precision=auto", chosen, why
    models = {name: _pair(name) for name in ("float32", "mixed_float16", "mixed_bfloat16")}
    works = {name: steps_of(model, SETTING.batch) for name, model in models.items()}

    def switched(on: bool) -> Callable[[], None]:
        def work() -> None:
            tf.config.experimental.enable_tensor_float_32_execution(on)
            works["float32"]()

        return work

    timed = {"float32": switched(False), "TF32": switched(True), "mixed_float16": works["mixed_float16"]}
    times = in_turns(timed | {"mixed_bfloat16": works["mixed_bfloat16"]}, SETTING.repetitions)
    for name, seconds in times.items():
        yield f"step in {name}", f"{ratio(times['float32'] / seconds)} times the speed of float32", per_second(seconds)
    scale = float(models["mixed_float16"].optimizer.dynamic_scale)
    yield "loss scale of float16 in the end", f"{scale:g}", "it halves at an overflow, and doubles after 2,000 steps without one"


def determinism() -> Iterator[Row]:
    """A step with deterministic operations, as the stages run, beside one without: two processes, since there is no way back."""
    seconds = {}
    for switch in ("off", "on"):
        environment = {**os.environ, "DFA_TF_BENCHMARK_DETERMINISM": switch}
        run = subprocess.run(
            [sys.executable, __file__, "one_step", *sys.argv[2:]], capture_output=True, text=True, check=True, env=environment
        )
        seconds[switch] = float(run.stdout.splitlines()[-1])
    yield "step with determinism / step without", ratio(seconds["on"] / seconds["off"]), milliseconds(seconds)


def one_step() -> Iterator[Row]:
    """Prints the seconds of a step, of what the environment variable asks for."""
    if os.environ.get("DFA_TF_BENCHMARK_DETERMINISM") == "on":
        tf.config.experimental.enable_op_determinism()
    print(in_turns({"step": steps_of(_pair(), SETTING.batch)}, SETTING.repetitions)["step"])
    yield from ()


def xla() -> Iterator[Row]:
    """Both stages with and without XLA."""
    batch = SETTING.batch
    usual, compiled = _pair(), _pair()
    compiled.train_step = tf.function(functools.partial(Distiller.train_step, compiled), jit_compile=True)
    start = time.perf_counter()
    works = {"usual": steps_of(usual, batch)}
    traced = time.perf_counter() - start
    start = time.perf_counter()
    works["jit_compile"] = steps_of(compiled, batch)
    both = time.perf_counter() - start
    times = in_turns(works, SETTING.repetitions)
    yield "stage 2: step / step with jit_compile", ratio(times["usual"] / times["jit_compile"]), milliseconds(times)
    yield "stage 2: first steps with jit_compile", f"{both:.1f} s", f"{traced:.1f} s without"
    timed = {on: _search_step(jit_compile=on) for on in (False, True)}
    yield (
        "stage 1, joint: step / step with jit_compile", ratio(timed[False][0] / timed[True][0]),
        ", ".join(f"{'jit_compile' if on else 'usual'} {1000 * seconds:.0f} ms" for on, (seconds, _) in timed.items()),
    )  # fmt: skip
    yield "stage 1: first step with jit_compile", f"{timed[True][1]:.1f} s", f"{timed[False][1]:.1f} s without"


def _search_step(*, jit_compile: bool, count: int = 12, warm: int = 3) -> tuple[float, float]:
    """Median seconds of a step of the joint search, and seconds up to the end of its first step."""
    batch, moments = SETTING.batch, [time.perf_counter()]
    config = Config().override(
        [
            f"data.batch_size={batch}",
            "search.mode=joint",
            "search.epochs=1",
            "search.warmup_epochs=0",
            f"train.jit_compile={str(jit_compile).lower()}",
        ]
    )

    def report(done: int, total: int, numbers: dict[str, float]) -> None:
        moments.append(time.perf_counter())

    search(network(SETTING.teacher), network(SETTING.student), splits_of(2 * batch * count), config, context=StageContext(report=report))
    laps = np.diff(moments)
    return float(np.median(laps[warm:])), float(laps[0])


def input_() -> Iterator[Row]:
    """Images a second of the input pipeline, in several forms, beside those that the step uses."""
    batch, varied = SETTING.batch, {"crop_padding": 4, "flip": True}
    split = timing.random_split(max(SETTING.images // 5, 2 * batch))
    device = "/GPU:0" if gpu_names() else "/CPU:0"
    moved = split.batches(batch, seed=0, **varied).apply(tf.data.experimental.prefetch_to_device(device))
    pixels = (
        tf.data.Dataset.from_tensor_slices(split.images.pixels)
        .cache()
        .shuffle(len(split), seed=0)
        .repeat()
        .batch(batch, drop_remainder=True)
    )
    on_device = pixels.prefetch(2).apply(tf.data.experimental.prefetch_to_device(device))
    vary = tf.function(lambda images, number: augment(tf.cast(images, tf.float32), seed=(0, number), **varied))
    sources = {
        "as it is: crop and flip on the processor, float32": iter(split.batches(batch, seed=0, **varied)),
        "the same with prefetch_to_device": iter(moved),
        "uint8 from memory, crop and flip on the device": iter(on_device),
    }

    def taker(name: str, batches: Iterator[object]) -> Callable[[], None]:
        def work() -> None:
            for number in range(STEPS * 10):
                value = next(batches)
                if name.startswith("uint8"):
                    with tf.device(device):
                        value = vary(value, tf.constant(number, tf.int64))
            tf.nest.flatten(value)[0].numpy()

        return work

    works: dict[str, Callable[[], object]] = {name: taker(name, batches) for name, batches in sources.items()}
    works["step"] = steps_of(_pair(fast_precision()[0]), batch)
    times = in_turns(works, SETTING.repetitions)
    used = STEPS * batch / times.pop("step")
    for name, seconds in times.items():
        speed = STEPS * 10 * batch / seconds
        fed = f"{speed / used:.1f} times what the step uses"
        yield f"input pipeline, {name}", fed, f"{speed:,.0f} images/s; the step in {fast_precision()[0]} uses {used:,.0f}"


def resume() -> Iterator[Row]:
    """A training that is killed by SIGKILL and resumed, beside an undisturbed one."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ["teacher.name=wrn_10_1", "train.epochs=8", "checkpoints.every=5", "tensorboard=false"]
        command = [sys.executable, str(ROOT / "bin/train.py"), "--config=bundled", *(f"--set={each}" for each in settings)]
        command = [*command, "--quiet"]
        subprocess.run([*command, f"--workdir={folder}/undisturbed"], check=True, capture_output=True)
        killed = Path(folder) / "killed"
        with subprocess.Popen([*command, f"--workdir={killed}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 120
            while len(list(killed.glob("teacher/checkpoints/*.npz"))) < 2 and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            was_running = process.poll() is None
            process.send_signal(signal.SIGKILL)
        subprocess.run([*command, f"--workdir={killed}"], check=True, capture_output=True)
        one, other = (keras.models.load_model(f"{folder}/{name}/teacher/model.keras").get_weights() for name in ("undisturbed", "killed"))
        same = all(np.array_equal(ours, theirs) for ours, theirs in zip(one, other, strict=True))
        yield (
            "killed by SIGKILL, and resumed",
            "equal, bit for bit" if same else "DIFFERS",
            "" if was_running else "it ended before the kill",
        )


def export() -> Iterator[Row]:
    """A student in every format whose packages are here, compared with itself."""
    with tempfile.TemporaryDirectory() as folder:
        data, file = splits_of(200), Path(folder) / "student.keras"
        network(SETTING.student).model.save(file)
        wanted = ["saved_model", "keras", *(["tflite"] if find_spec("ai_edge_litert") else []), *(["onnx"] if find_spec("tf2onnx") else [])]
        student = read_student(file, data, seed=0)
        made, failed = write_all(wanted, student, Path(folder))
        results, refused = check(file, student.model, made, data.train)
        for name in wanted:
            if name in results:
                yield f"export, {name}", "parity kept", ", ".join(f"{key} {value}" for key, value in results[name]._asdict().items())
            else:
                yield f"export, {name}", "refused", str((failed | refused).get(name))


class _EnoughError(Exception):
    """The time of a stage is up."""


def protocol() -> Iterator[Row]:
    """A configuration of the paper as its stages run it, some seconds of each; from their speed the time of the whole protocol."""
    name = "cifar100_wrn_28_4_wrn_16_4"
    config = experiments.load(name, ["data.name=bundled", f"data.batch_size={SETTING.batch}"])
    data = splits_of(SETTING.images)
    tf.config.experimental.enable_op_determinism()
    total = 0.0
    stages: dict[str, Callable[[StageContext], object]] = {
        "teacher": lambda context: distil(None, network(SETTING.teacher), data, config, train=config.train, context=context),
        "plain student": lambda context: distil(None, network(SETTING.student), data, config, context=context),
        "search": lambda context: search(network(SETTING.teacher), network(SETTING.student), data, config, context=context),
        "distil": lambda context: distil(
            network(SETTING.teacher), network(SETTING.student), data, config.override(["distil.aggregation=last"]), context=context,
            aggregation=_last(),
        ),
    }  # fmt: skip
    for stage, run in stages.items():
        moments: list[float] = []
        steps_in_all = 0

        def report(done: int, total: int, numbers: dict[str, float], moments: list[float] = moments) -> None:
            nonlocal steps_in_all
            steps_in_all = total
            moments.append(time.perf_counter())
            if len(moments) > 5 and moments[-1] - moments[4] > SETTING.seconds:
                raise _EnoughError

        with contextlib.suppress(_EnoughError):
            run(StageContext(report=report))
        if len(moments) < 10:
            yield f"{name}, {stage}", "not measured", f"{len(moments)} steps"
            continue
        seconds = (moments[-1] - moments[4]) / (len(moments) - 5)
        total += seconds * steps_in_all
        yield (
            f"{name}, {stage}",
            f"{seconds * steps_in_all / 3600:.2f} h of {steps_in_all:,} steps",
            f"{1000 * seconds:.1f} ms a step, {len(moments)} steps",
        )
    yield (
        f"{name}: the whole protocol, computed",
        f"{total / 3600:.1f} h",
        f"random images of CIFAR-100's shape, {SETTING.images:,} for training, float32",
    )


def _last() -> object:
    from dfa_tf.aggregation.weights import AggregationWeights  # noqa: PLC0415

    return AggregationWeights.by_rule("last", network(SETTING.teacher))


ALL = {
    "found": found, "strategies": strategies, "steps": step, "precision": precision, "determinism": determinism, "xla": xla,
    "input": input_, "resume": resume, "export": export, "protocol": protocol, "one_step": one_step,
}  # fmt: skip

if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    for row in ALL[sys.argv[1]]():
        print("row", json.dumps(row), flush=True)
