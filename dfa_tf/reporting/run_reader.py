"""Reads a run directory, also of an unfinished run, and while another process works in it."""

import csv
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydantic
from pydantic import TypeAdapter

from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import Config
from dfa_tf.errors import UserError, nearest, shortened
from dfa_tf.export.parity import Parity
from dfa_tf.reporting.predictions import Predictions
from dfa_tf.reporting.record import Network, Record
from dfa_tf.reporting.results import Evaluation, Export, StageResult, TrajectoryRow
from dfa_tf.storage.reading import JSON_LIMIT, digest, read_json
from dfa_tf.storage.run_directory import RunDir

_TABLE_LIMIT = 1 << 25  # most bytes of a file with a line for each epoch


def read_run(path: Path) -> Record:
    """Reads a run directory.

    Raises:
        UserError: if it is none, or a file in it is damaged or of a newer version.
    """
    run, config = RunDir(path), _config(path)
    evaluation = _read(run.evaluation / "result.json", Evaluation)
    networks = _networks(run, evaluation)
    search = _read(run.search / "result.json", StageResult)
    return Record(
        path=path,
        config=config,
        networks=networks,
        evaluation=evaluation,
        predictions=None if evaluation is None else _answers(run, networks),
        searched=None if search is None else _there(run.search / "alphas.json", AggregationWeights.load),
        used=_there(run.student(config.method) / "alphas.json", AggregationWeights.load),
        search=search,
        trajectory=[] if search is None else _there(run.search / "trajectory.csv", _trajectory) or [],
        parity=_parity(run, config, networks),
    )


def files_of(run: RunDir) -> list[Path]:
    """Every existing file that `read_run` may read."""
    patterns = ("config.json", "teacher/*", "distil/*/*", "search/*", "evaluation/*", "export/*")
    return sorted(path for pattern in patterns for path in run.path.glob(pattern) if path.is_file() and not path.name.startswith("."))


def _there(path: Path, read: Callable[[Path], Any]) -> Any:
    """The content of a file; None where there is none, or it has just been removed by a run in progress."""
    if not path.exists():
        return None
    try:
        return read(path)
    except (UserError, OSError) as error:
        if not path.exists():
            return None
        raise error if isinstance(error, UserError) else UserError(f"{path} must be a readable file. Received: {error}") from None


def _read(path: Path, schema: Any, parse: Callable[[bytes], Any] | None = None, limit: int = JSON_LIMIT) -> Any:
    """The content of a JSON file that a schema asks for; None where there is no file.

    Raises:
        UserError: if it does not fit the schema.
    """
    adapter = TypeAdapter(schema)

    def parsed(content: bytes) -> Any:
        try:
            return adapter.validate_json(content) if parse is None else adapter.validate_python(parse(content))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise UserError(
                f"{path} must be what a run writes, whole, and not of a newer version. Received: {place[:80]}: {first['msg'][:200]}"
            ) from None

    return _there(path, lambda there: read_json(there, "what a run writes", parsed, limit))


def _config(path: Path) -> Config:
    file = RunDir(path).config
    if not os.path.isfile(file):
        what = "which holds none" if os.path.isdir(path) else "which is no directory"
        inner = [str(each.parent.relative_to(path)) for each in sorted(path.glob("*/config.json"))] if os.path.isdir(path) else []
        hint = f". {nearest(path.name, inner)}" if inner else ""
        raise UserError(
            f"a run directory holds a config.json, which its first stage writes. Received: {shortened(str(path))}, {what}{hint}"
        )

    def parse(content: bytes) -> Config:
        try:
            return Config.from_json(content)
        except UserError as error:
            raise UserError(f"{file} must be a configuration of this version of dfa_tf. {error}") from None

    config: Config = read_json(file, "a configuration", parse)
    return config


def _networks(run: RunDir, evaluation: Evaluation | None) -> list[Network]:
    names = sorted((entry.name for entry in run.path.glob("distil/*") if entry.is_dir()), key=lambda name: (name != "plain", name))
    places = {"teacher": run.teacher / "model.keras"} | {f"{name} student": run.student(name) / "student.keras" for name in names}
    rows = {row.method: row for row in (evaluation.rows if evaluation else ())}
    networks = []
    for title, file in places.items():
        result, row = _read(file.parent / "result.json", StageResult), rows.get(None if title == "teacher" else file.parent.name)
        sha, history = "" if result is None else _there(file, digest) or "", _history(file.parent / "metrics.jsonl")
        seen = row if row is not None and sha == row.digest else None
        if result is not None or history:
            networks.append(Network(title, file.parent, result, seen, history, sha))
    return networks


def _answers(run: RunDir, networks: list[Network]) -> Predictions | None:
    """The answers of the networks whose current files were evaluated."""
    predictions: Predictions | None = _there(run.evaluation / "predictions.npz", Predictions.load)
    if predictions is None:
        return None
    seen = {network.method or "teacher" for network in networks if network.evaluated is not None}
    return replace(predictions, answers={name: each for name, each in predictions.answers.items() if name in seen})


def _history(path: Path) -> list[dict[str, float]]:
    def parse(content: bytes) -> list[Any]:
        return [TypeAdapter(dict[str, Any]).validate_json(line) for line in content.splitlines()]

    rows: list[dict[str, float]] | None = _read(path, list[dict[str, pydantic.FiniteFloat]], parse, _TABLE_LIMIT)
    return rows or []


def _trajectory(path: Path) -> list[TrajectoryRow]:
    def parse(content: bytes) -> list[Any]:
        return list(csv.DictReader(io.StringIO(content.decode(), newline="")))

    rows: list[TrajectoryRow] | None = _read(path, list[TrajectoryRow], parse, _TABLE_LIMIT)
    return rows or []


def _parity(run: RunDir, config: Config, networks: list[Network]) -> dict[str, Parity]:
    """The parity of files that were exported from the current student."""
    export = _read(run.export / "result.json", Export)
    made_from = {network.method: config.stage_hash("export", network.digest) for network in networks}
    if export is None or made_from.get(export.student) != export.source or export.student != config.method:
        return {}
    parity: dict[str, Parity] | None = _read(run.export / "parity.json", dict[str, Parity])
    return parity or {}
