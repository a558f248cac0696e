"""Kills runs with SIGKILL at random moments, and checks that they end as runs that nobody killed.

    python3 tests/stress/kill_resume.py --kills=5 --stages=all

Each stage is run once undisturbed. Then it is begun anew, killed so many times, at steps drawn from all that it makes and a
moment later, also while it writes a checkpoint, and run to its end: weights, aggregation weights, trajectory and the numbers of
each epoch must be the same, bit for bit.
Exits with 1 where one is not.
"""

import argparse
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
if importlib.util.find_spec("dfa_tf") is None and (installed := ROOT / ".venv/bin/python").exists():
    os.execv(installed, [installed, *sys.argv])  # what `dev.py` has installed

from dfa_tf.storage.reading import digest  # noqa: E402 (where it may not be found)

STEPS_BETWEEN = 3
USUAL = (
    "teacher.name=wrn_16_1", "train.epochs=20", "train.ema=0.9", "train.mixup=0.2", "search.epochs=8", "search.warmup_epochs=2",
    f"checkpoints.every={STEPS_BETWEEN}",
)  # fmt: skip


class Stage(NamedTuple):
    """A stage to be killed: its binary, its title in the display, the files that must not differ, and what is set."""

    binary: str
    title: str
    results: tuple[str, ...]
    settings: tuple[str, ...] = ()

    @property
    def directory(self) -> str:
        return str(Path(self.results[0]).parent)

    @property
    def flags(self) -> list[str]:
        return ["--config=bundled", *(f"--set={setting}" for setting in (*USUAL, *self.settings))]


_SEARCH = ("search/alphas.json", "search/trajectory.csv")
STAGES = {
    "teacher": Stage("train", "teacher", ("teacher/model.keras", "teacher/metrics.jsonl")),
    "plain": Stage("train", "plain", ("distil/plain/student.keras", "distil/plain/metrics.jsonl")),
    "search_joint": Stage("search", "search", _SEARCH, ("search.mode=joint",)),
    "search_group_wise": Stage("search", "search", _SEARCH, ("search.mode=group_wise", "search.epochs=4", "search.repetitions=2")),
    "search_second_order": Stage("search", "search", _SEARCH, ("search.mode=joint", "search.order=second")),
    "distil": Stage(
        "distil",
        "crd+dfa",
        ("distil/crd+dfa/student.keras", "distil/crd+dfa/metrics.jsonl"),
        ('distil.methods={"dfa": 1, "crd": 0.5}', "distil.aggregation=average"),
    ),
}


def begin(stage: Stage, run: Path) -> tuple[subprocess.Popen[str], bool]:
    """Starts the binary and waits until the stage begins; False where it ends before."""
    command = [sys.executable, f"bin/{stage.binary}.py", *stage.flags, f"--workdir={run}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if f"{stage.title}: starting" in line:
            return process, True
    if process.wait():
        sys.exit("".join(said))
    return process, False


def finish(stage: Stage, run: Path) -> None:
    """Runs a stage to its end."""
    process, _ = begin(stage, run)
    _, said = process.communicate()
    if process.returncode:
        sys.exit(said)


def steps_saved(run: Path, stage: Stage) -> int:
    """The steps up to the newest checkpoint: of each repetition of a search, added up."""
    newest: dict[Path, int] = {}
    for file in (run / stage.directory).rglob("checkpoints/**/[0-9]*.npz"):
        if file.parent.name.startswith("."):  # it is still being written
            continue
        newest[file.parent] = max(newest.get(file.parent, 0), int(file.name.partition("-")[0]))
    return sum(newest.values())


def differing(run: Path, reference: Path, stage: Stage) -> list[str]:
    """The results that are not the same."""
    return [name for name in stage.results if digest(run / name) != digest(reference / name)]


def torment(stage: Stage, folder: Path, kills: int, draw: random.Random) -> tuple[list[int], list[str]]:
    """Kills a stage, and lets it end.

    Args:
        stage: to be killed.
        folder: holds `reference`, where the stages before it are done; its run directories are made here.
        kills: how many.
        draw: of the moments.

    Returns:
        The step of the newest checkpoint after each kill, and the results that are not the same in the end.
    """
    reference, run = folder / f"{stage.title}-undisturbed", folder / f"{stage.title}-killed"
    for copy in (reference, run):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder / "reference", copy)
        shutil.rmtree(copy / stage.directory, ignore_errors=True)
    finish(stage, reference)
    steps, saved = json.loads((reference / stage.directory / "result.json").read_text())["steps"], []
    for step in sorted(draw.sample(range(steps - STEPS_BETWEEN), kills)):
        process, begun = begin(stage, run)
        while begun and process.poll() is None and steps_saved(run, stage) < step:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:  # and not at its end already
            saved.append(steps_saved(run, stage))
    finish(stage, run)
    return saved, differing(run, reference, stage)


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="of each stage")
    parser.add_argument("--stages", default="all", help=f"all, or some of {','.join(STAGES)}")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    chosen = parser.parse_args(arguments)
    names = list(STAGES) if chosen.stages == "all" else chosen.stages.split(",")
    draw, failed = random.Random(chosen.seed), False
    with tempfile.TemporaryDirectory() as folder:
        if set(names) != {"teacher"}:
            finish(STAGES["teacher"], Path(folder) / "reference")
            shutil.rmtree(Path(folder) / "reference/distil", ignore_errors=True)
        else:
            (Path(folder) / "reference").mkdir()
        for name in names:
            saved, wrong = torment(STAGES[name], Path(folder), chosen.kills, draw)
            failed = failed or bool(wrong)
            verdict = f"DIFFERENT: {', '.join(wrong)}" if wrong else "the same, bit for bit"
            print(
                f"{name}: killed {len(saved)} times, with the newest checkpoint at step {', '.join(map(str, saved))}: {verdict}", flush=True
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
