"""What stages write to `result.json` about networks; `dfa_tf.reporting.results` reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from dfa_tf.distillation.distil import Distilled
from dfa_tf.errors import UserError
from dfa_tf.networks.cost import count_parameters, macs_by_type
from dfa_tf.storage.reading import digest, read_result

_FINAL = ("test_accuracy", "test_loss", "validation_accuracy", "validation_loss")


def network_result(trained: Distilled, seed: int, measured: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a training: accuracy is that of the saved network, with the best epoch's beside it.

    Without a test set or a validation split its keys are missing.

    Args:
        trained: the network and its epochs.
        seed: of the run.
        measured: steps, seconds and the rest of `Stopwatch.result`.
    """
    best = [row["test_accuracy"] for row in trained.history if "test_accuracy" in row]
    return {
        **{name: trained.final[name] for name in _FINAL if name in trained.final},
        **({"test_accuracy_best": max(best)} if best else {}),
        "seed": seed,
        "parameters": count_parameters(trained.student),
        **measured,
    }


def evaluated_network(name: str, file: Path, model: keras.Model, tested: Mapping[str, float], speed: float) -> dict[str, Any]:
    """A row of the evaluation.

    Args:
        name: teacher, or the student's methods.
        file: of the network, beside the `result.json` of its stage.
        model: loaded from it.
        tested: accuracy and loss on the test set; empty without a test set.
        speed: images a second.
    """
    best = {"test_accuracy_best": read_result(file.parent).get("test_accuracy_best", tested["test_accuracy"])} if tested else {}
    return {
        "name": f"{name if name == 'teacher' else f'{name} student'} {model.name}",
        "method": None if name == "teacher" else name,
        **tested,
        **best,
        "parameters": count_parameters(model),
        "macs": _macs(model),
        "bytes": file.stat().st_size,
        "digest": digest(file),
        "images_per_second": round(speed, 1),
    }


def _macs(model: keras.Model) -> int | None:
    """Multiply-accumulates of one image; None where some of them are not known."""
    try:
        counts, not_counted = macs_by_type(model)
    except UserError:
        return None
    return None if not_counted else sum(counts.values())
