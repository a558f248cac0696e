"""Growth of a stage 2 step's time and memory with images, networks, blocks, groups and replicas, measured and computed.

    python benchmarks/scaling.py [--output=benchmarks/scaling.md]

Each row has its own process, on random images, in float32. The computed time is that of the teacher's MACs plus three times the
student's, at the rate of the first row. The computed memory is the estimate of bin/describe.py plus the remaining memory of the first
row's process.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from dfa_tf.process import startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402
import timing  # noqa: E402

from dfa_tf import plugins  # noqa: E402
from dfa_tf.distillation.distiller import Distiller  # noqa: E402
from dfa_tf.networks.features import FeatureModel  # noqa: E402
from dfa_tf.reporting.description import describe  # noqa: E402
from dfa_tf.training.measuring import peak_memory  # noqa: E402
from dfa_tf.training.strategies import in_scope, strategy  # noqa: E402

HEADINGS = ("what grows", "setting", "step, measured", "step, computed", "peak memory, measured", "peak memory, computed")
TITLE = "How time and memory of a step of stage 2 grow"
MIB, STEPS = 1 << 20, 4


@dataclasses.dataclass(frozen=True)
class Setting:
    """A pair of networks and the settings of a step; `reach` is False if the row is only computed, `groups` None for all."""

    what: str
    teacher: str = "wrn_28_2"
    student: str = "wrn_16_2"
    batch_size: int = 64
    side: int = 32
    groups: int | None = None
    replicas: int = 1
    reach: bool = True

    def shown(self) -> str:
        more = [f"{self.groups} of the groups"] * (self.groups is not None) + [f"{self.replicas} replicas"] * (self.replicas > 1)
        return ", ".join([f"{self.teacher} to {self.student}", f"batch {self.batch_size}", f"{self.side}x{self.side}", *more])


SETTINGS = [
    *(Setting("images in a batch", batch_size=size) for size in (64, 16, 32, 128, 256)),
    *(Setting("pixels", side=side, batch_size=16) for side in (32, 64, 128)),
    *(Setting("width of the teacher", teacher=name) for name in ("wrn_28_1", "wrn_28_2", "wrn_28_4")),
    *(Setting("blocks: 1, 2, 4, 6 a group", teacher=f"wrn_{depth}_2", student="wrn_10_2") for depth in (10, 16, 28, 40)),
    *(Setting("groups", groups=count) for count in (1, 2, 3)),
    Setting("replicas, on the same two cores", replicas=2),
    Setting("beyond this machine's reach", teacher="wrn_28_4", student="wrn_16_4", batch_size=128, reach=False),
    Setting("beyond this machine's reach", teacher="wrn_40_4", student="wrn_16_4", batch_size=1024, reach=False),
    Setting("beyond this machine's reach", teacher="resnet50", student="mobilenet_v2", side=224, reach=False),
]


def pair(setting: Setting) -> tuple[FeatureModel, FeatureModel]:
    """Teacher and student; with only the first groups if fewer are requested."""
    networks = []
    for name in (setting.teacher, setting.student):
        model = plugins.build("models", name, image_shape=(setting.side, setting.side, 3), num_classes=timing.CLASSES)
        network = FeatureModel.from_model(model)
        networks.append(FeatureModel.from_model(model, network.block_names()[: setting.groups], network.tap))
    return networks[0], networks[1]


def measure(setting: Setting) -> None:
    """Prints seconds of a step and the peak of this process's memory in MiB, as JSON."""
    if setting.replicas > 1:
        processor = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * setting.replicas)
    replicated = strategy("mirrored" if setting.replicas > 1 else "auto")
    with replicated.scope():
        teacher, student = (in_scope(replicated, network) for network in pair(setting))
        distiller = Distiller(student, teacher, {"dfa": plugins.build("losses", "dfa", student, teacher)}, weight_decay=5e-4)
        distiller.compile(optimizer=timing.optimizer())
    step = timing.steps_of(distiller, setting.batch_size, side=setting.side)
    seconds = timing.in_turns({"step": step}, STEPS)["step"] / timing.STEPS
    print(json.dumps({"seconds": seconds, "mib": peak_memory()}))


def computed(setting: Setting) -> tuple[float, float]:
    """MACs of a step, and MiB of its tensors."""
    description = describe(*pair(setting), batch_size=setting.batch_size)
    students = 0 if description.student is None else description.student.macs
    return setting.batch_size * (description.teacher.macs + 3 * students), description.memory.total / MIB


def rows(output: Path | None) -> list[tuple[str, ...]]:
    """The table, measured in one process a row, and written after each row."""
    made, rate, rest = [], 0.0, 0.0
    for number, setting in enumerate(SETTINGS):
        macs, tensors = computed(setting)
        measured = ("", "")
        if setting.reach:
            run = subprocess.run([sys.executable, __file__, f"--row={number}"], check=True, capture_output=True, text=True)
            found = json.loads(run.stdout.splitlines()[-1])
            if not made:
                rate, rest = macs / found["seconds"], found["mib"] - tensors
            measured = (f"{1000 * found['seconds']:,.0f} ms", f"{found['mib']:,.0f} MiB")
        expected = (f"{1000 * macs / rate:,.0f} ms", f"{rest + tensors:,.0f} MiB")
        made.append((setting.what, setting.shown(), measured[0], expected[0], measured[1], expected[1]))
        print(*made[-1], sep=" | ", file=sys.stderr, flush=True)
        timing.write_table(TITLE, HEADINGS, made, output)
    return made


def main() -> None:
    """Prints the table, and writes it if --output is given; with --row measures one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", type=int, choices=range(len(SETTINGS)), help="measure only this row, in this process")
    parser.add_argument("--output", type=Path, help="Markdown file that the table is written to")
    chosen = parser.parse_args()
    tf.config.experimental.enable_op_determinism()
    if chosen.row is None:
        timing.print_table(TITLE, HEADINGS, rows(chosen.output))
    else:
        measure(SETTINGS[chosen.row])


if __name__ == "__main__":
    main()
