"""Shared by the tests of the report: a run directory of which every number is made up, and so known."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dfa_tf.aggregation.weights import AggregationWeights, GroupWeights
from dfa_tf.config import Config
from dfa_tf.reporting.predictions import Answers, Predictions
from dfa_tf.storage.files import write_csv, write_json
from dfa_tf.storage.reading import digest
from dfa_tf.storage.run_directory import RunDir

NAMES = ("cat", "<b>dog</b>", "$x$")
"""Of the classes: the second would be markup, the third a formula."""
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
PREDICTED = {
    "teacher": [0, 0, 0, 0, 1, 1, 1, 1, 2, 2],
    "plain": [0, 0, 1, 1, 1, 1, 0, 2, 2, 0],
    # Of the dogs one of four is right, of the cats three of four, of the last class all.
    "dfa": [0, 0, 0, 1, 0, 2, 0, 1, 2, 2],
}
PROBABILITY = [0.9, 0.9, 0.9, 0.3, 0.25, 0.125, 0.0625, 0.9, 0.9, 0.9]
PICTURED = {3: 30, 4: 40, 5: 50, 6: 60}
"""The grey of the pictures that are kept, by position."""
VERSIONS = {"tensorflow": "2.21.0", "keras": "3.15.0"}
PARITY = {
    "images": 10, "agreement": 0.9, "max_difference": 0.015625, "accuracy": 0.6, "accuracy_images": 10, "bytes": 2048, "milliseconds": 0.25,
}  # fmt: skip


def predictions() -> Predictions:
    """The answers of all three networks."""
    answers = {name: Answers(np.array(each), np.array(PROBABILITY, np.float16)) for name, each in PREDICTED.items()}
    return Predictions(NAMES, LABELS, answers, {place: np.full((8, 8), grey, np.uint8) for place, grey in PICTURED.items()})


def result(accuracy: float, **more: Any) -> dict[str, Any]:
    """The `result.json` of a network."""
    return {
        "test_accuracy": accuracy, "test_accuracy_best": min(1.0, accuracy + 0.05), "test_loss": 1.5, "parameters": 1234, "seed": 0,
        "steps": 80, "seconds": 12.5, "examples_per_second": 640.0, "peak_memory_mb": 900.0, "config_hash": "0123456789abcdef",
        "versions": VERSIONS,
        **more,
    }  # fmt: skip


def write_run(path: Path, *overrides: str) -> RunDir:
    """Writes a run directory in which every stage is done."""
    run, config = RunDir(path), Config().override(["train.epochs=2", *overrides])
    write_network(run.teacher, "model.keras", 1.0)
    write_network(run.student("plain"), "student.keras", 0.6)
    write_network(run.student("dfa"), "student.keras", 0.6)
    run.config.write_text(config.to_json())
    weights = AggregationWeights(
        teacher="wrn_16_2",
        groups=(GroupWeights(blocks=("a", "b"), alpha=(0.25, 0.75)), GroupWeights(blocks=("c",), alpha=(1.0,))),
    )
    weights.save(run.search / "alphas.json")
    weights.save(run.student("dfa") / "alphas.json")
    rows = [(1, "a", 0.5), (1, "b", 0.5), (2, "c", 1.0)], [(1, "a", 0.25), (1, "b", 0.75), (2, "c", 1.0)]
    write_csv(
        run.search / "trajectory.csv",
        [
            {"epoch": epoch, "group": group, "block": block, "beta": 0.0, "alpha": alpha}
            for epoch, each in enumerate(rows, start=1)
            for group, block, alpha in each
        ],
    )
    write_json(
        run.search / "result.json", {"seed": 0, "steps": 40, "seconds": 3.5, "config_hash": "fedcba9876543210", "versions": VERSIONS}
    )
    write_evaluation(run)
    file = digest(run.student("dfa") / "student.keras")
    write_json(run.export / "parity.json", {"student": PARITY, "saved_model": {**PARITY, "bytes": 10240}})
    write_json(run.export / "result.json", {"student": "dfa", "source": config.stage_hash("export", file), "formats": ["saved_model"]})
    return run


def write_network(directory: Path, file: str, accuracy: float) -> None:
    """A network of which only the numbers are there; its file is no network."""
    write_json(directory / "result.json", result(accuracy))
    (directory / file).write_text(f"{directory.name} of accuracy {accuracy}")
    rows = [
        {"epoch": 1, "cross_entropy": 2.0, "total_loss": 2.5, "accuracy": 0.5},
        {"epoch": 2, "cross_entropy": 1.0, "total_loss": 1.5, "accuracy": 0.75, "test_accuracy": accuracy, "test_loss": 1.5},
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_evaluation(run: RunDir) -> None:
    """The evaluation of the networks that are there."""
    files = {"teacher": run.teacher / "model.keras", **{name: run.student(name) / "student.keras" for name in ("plain", "dfa")}}
    rows = [
        {
            "name": "teacher wrn_16_2" if name == "teacher" else f"{name} student wrn_10_1",
            "method": None if name == "teacher" else name,
            "test_accuracy": 1.0, "test_accuracy_best": 1.0, "parameters": 1234, "macs": 5678901, "bytes": 4096,
            "images_per_second": 2500.0, "digest": digest(file),
        }
        for name, file in files.items()
    ]  # fmt: skip
    write_json(run.evaluation / "result.json", {"rows": rows, "description": "made-up images", "test_images": len(LABELS)})
    predictions().save(run.evaluation / "predictions.npz")
