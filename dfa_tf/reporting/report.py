"""The report: one page that shows a run, or several side by side, and needs no other file."""

import functools
import io
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dfa_tf.config import GIVEN, Config, field_names
from dfa_tf.display import page
from dfa_tf.display.run_tables import verdict
from dfa_tf.errors import UserError
from dfa_tf.export.parity import STUDENT
from dfa_tf.reporting.record import Network, Record
from dfa_tf.reporting.report_figures import NAMES, SECTIONS, Drawing, draw, examined, who
from dfa_tf.reporting.results import StageResult
from dfa_tf.reporting.run_reader import read_run
from dfa_tf.storage.files import atomic, write_text
from dfa_tf.storage.run_directory import RunDir

_CONFUSIONS = 8  # pairs of classes in the table of the most frequent ones


class Row(NamedTuple):
    """A network in the table of results; unknown values are None."""

    title: str
    model: str | None
    accuracy: float | None
    best: float | None
    parameters: int | None
    macs: int | None
    bytes: int | None
    exported: str | None
    milliseconds: float | None
    images_per_second: float | None


class Field(NamedTuple):
    """A field of the configuration, with values as JSON.

    Attributes:
        name: with its dots.
        runs: its value in each run, and whether that is another than the default.
        default: of the schema.
        differ: whether the runs have different values.
    """

    name: str
    runs: list[tuple[str, bool]]
    default: str
    differ: bool


def write(paths: Sequence[Path], output: Path | None = None) -> Path:
    """Writes the report of runs.

    Args:
        paths: of the run directories.
        output: of the page; where None it is `report/index.html` of the first run, with the figures of that run as PNGs beside it.

    Returns:
        The path of the page.

    Raises:
        UserError: if one is no run directory, or damaged; or if the page cannot be written.
    """
    if not paths:
        raise UserError("a report is of one run directory or more. Received: none")
    records = [read_run(path) for path in paths]
    drawings = [draw(record) for record in records]
    text = render(records, drawings)
    if output is not None:
        write_text(output, text)
        return output
    folder = RunDir(paths[0]).report
    for drawing in drawings[0]:
        with atomic(folder / f"{drawing.name}.png") as temporary:
            temporary.write_bytes(drawing.png)
    for name in set(NAMES) - {drawing.name for drawing in drawings[0]}:
        (folder / f"{name}.png").unlink(missing_ok=True)  # of the run as it was before
    write_text(folder / "index.html", text)
    return folder / "index.html"


def render(records: Sequence[Record], drawings: Sequence[Sequence[Drawing]]) -> str:
    """The page.

    Args:
        records: of the runs.
        drawings: of each.
    """
    names = [record.name for record in records]
    titles = names if len(set(names)) == len(names) else [str(record.path) for record in records]
    runs = [
        {
            "title": title,
            "record": record,
            "rows": [_row(record, network) for network in record.networks],
            "drawings": {section: [drawing for drawing in drawn if drawing.section == section] for section in SECTIONS},
            "reading": _reading(record),
            "stages": _stages(record),
            "formats": {name: parity for name, parity in record.parity.items() if name != STUDENT},
            "examined": None if (name := examined(record)) is None else who(name),
            "hardest": list(_hardest(record)),
            "confusions": _confusions(record),
            "command": _command(record),
            "given": record.config.data.name == GIVEN,
        }
        for title, record, drawn in zip(titles, records, drawings, strict=True)
    ]
    title = f"Distillation {titles[0]}" if len(runs) == 1 else f"Distillations {', '.join(titles)}"
    fields = list(_fields([record.config for record in records]))
    return page.render("report.html", title=title, runs=runs, fields=fields, image=page.image)


def _row(record: Record, network: Network) -> Row:
    result, seen = network.result, network.evaluated
    mine = record.parity if network.method == record.config.method else {}
    sizes = ", ".join(f"{name} {page.kibibytes(parity.bytes)}" for name, parity in mine.items() if name != STUDENT)
    return Row(
        title=network.title,
        model=None if seen is None else seen.name.removeprefix(network.title).strip(),
        accuracy=None if result is None else result.test_accuracy,
        best=None if result is None else result.test_accuracy_best,
        parameters=None if result is None else result.parameters,
        macs=None if seen is None else seen.macs,
        bytes=None if seen is None else seen.bytes,
        exported=sizes or None,
        milliseconds=mine[STUDENT].milliseconds if STUDENT in mine else None,
        images_per_second=None if seen is None else seen.images_per_second,
    )


def _reading(record: Record) -> str:
    """Whether the distilled student beats the plain one by more than noise; empty where they were not evaluated."""
    tested = [network for network in record.networks if network.result is not None and network.result.test_accuracy is not None]
    if record.evaluation is None or not tested:
        return ""
    rows = [{"method": network.method, "test_accuracy": network.result and network.result.test_accuracy} for network in tested]
    return verdict(rows, record.config.method, record.evaluation.test_images)


def _stages(record: Record) -> list[tuple[str, StageResult, str]]:
    """The finished stages, with the digest of the network that each wrote."""
    stages = [(network.title, network.result, network.digest) for network in record.networks if network.result is not None]
    return [*stages, *([("search", record.search, "")] if record.search is not None else [])]


def _hardest(record: Record) -> Iterator[dict[str, Any]]:
    """The classes with the most mistakes of the student, with pictures of some."""
    predictions, name = record.predictions, examined(record)
    if predictions is None or name is None:
        return
    names, answers = predictions.class_names, predictions.answers[name]
    for hard in predictions.hardest(name):
        pictures = []
        for place in hard.mistakes:
            taken, probability = names[int(answers.predicted[place])], float(answers.probability[place])
            if place in predictions.pictures:
                alt = f"Test image {place}: {names[hard.number]}, taken for {taken}"
                pictures.append((page.image(_png(predictions.pictures[place])), alt, taken, probability))
        taken_for = ", ".join(f"{names[other]} ({count})" for other, count in hard.taken_for[:4])
        yield {
            "name": names[hard.number], "accuracy": hard.accuracy, "images": hard.images, "taken_for": taken_for, "pictures": pictures,
        }  # fmt: skip


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _confusions(record: Record) -> list[tuple[str, str, int, float]]:
    """The most frequent confusions: true class, predicted class, how often, and the share of the true class."""
    predictions, name = record.predictions, examined(record)
    if predictions is None or name is None:
        return []
    counts, names = predictions.confusion(name), predictions.class_names
    wrong = counts - np.diag(counts.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = [divmod(int(place), len(names)) for place in order]
    return [
        (names[row], names[column], int(wrong[row, column]), wrong[row, column] / counts[row].sum())
        for row, column in pairs
        if wrong[row, column]
    ]


def _fields(configs: Sequence[Config]) -> Iterator[Field]:
    default, trees = Config().model_dump(mode="json"), [config.model_dump(mode="json") for config in configs]
    for name in field_names():
        usual, *texts = (json.dumps(_value(tree, name), ensure_ascii=False) for tree in (default, *trees))
        yield Field(name, [(text, text != usual) for text in texts], usual, len(set(texts)) > 1)


def _value(tree: dict[str, Any], name: str) -> Any:
    return functools.reduce(lambda node, part: node[part], name.split("."), tree)


def _command(record: Record) -> str:
    """The command that repeats the run, from its configuration."""
    config, again = record.path / "config.json", Path("again") / record.name
    return f"python bin/run.py --config={shlex.quote(str(config))} --workdir={shlex.quote(str(again))}"
