"""The TensorBoard events of a run: the numbers of each epoch, the aggregation weights, and the predictions at the end."""

import io
import logging
import re
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from dfa_tf.display import figures
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Split, Splits
from dfa_tf.process import workers
from dfa_tf.process.status import doing
from dfa_tf.storage.reading import check_regular
from dfa_tf.training.callbacks import MetricsLog
from dfa_tf.training.evaluation import Predictor, top_classes

_LOG = logging.getLogger(__name__)
_PLACE = re.compile(r"\{\{.*?\}\}")  # where in TensorFlow an error was raised
_SHOWN_IMAGES = 12
_CELL = 24  # pixels of a block in the picture of alpha
_TAGS = {
    "total_loss": "losses/total",
    "accuracy": "accuracy/train",
    "learning_rate": "learning_rate/weights",
    "gradient_norm": "training/gradient_norm",
    "train/learning_rate": "learning_rate/weights",
    "train/gradient_norm": "training/gradient_norm",
    "train/loss": "losses/train/total",
    "search/learning_rate": "learning_rate/beta",
    "search/loss": "losses/search/total",
}


class EventLog:
    """TensorBoard's files of one stage: a point for each epoch, pictures, and the configuration.

    With several workers only the chief writes.

    An existing point is not written again: an interrupted stage resumes in the same directory, and has one point for each
    epoch, even if it repeats an epoch. If the files cannot be written, the stage logs one warning and continues without them. Only a
    full disk ends the stage; it would end it soon in any case.

    Args:
        folder: of the files; made with the first one.
        fields: of the configuration, shown as a table.
        batch_size: images of a step.
    """

    def __init__(self, folder: Path, fields: Mapping[str, Any], batch_size: int) -> None:
        self._folder, self._fields, self._batch_size = folder, fields, batch_size
        self._known: set[tuple[str, int]] = set()
        self._writer: tf.summary.SummaryWriter | None = None
        self._is_off = not workers.is_chief()
        self._before = time.perf_counter()

    def part(self, name: str) -> "EventLog":
        """The files of a part of the stage, which counts its own epochs: TensorBoard shows it as a run beside others."""
        return EventLog(self._folder / name, self._fields, self._batch_size)

    def training_epoch(self, row: Mapping[str, float], steps: int) -> None:
        """Writes an epoch of a training.

        Args:
            row: the numbers of the epoch, as a line of `metrics.jsonl` holds them.
            steps: since the epoch before.
        """
        scalars = {_training_tag(name): value for name, value in row.items() if name != "epoch"}
        self._write(int(row["epoch"]), {**scalars, **self._speed(steps)})

    def search_epoch(
        self, rows: Sequence[Mapping[str, Any]], trajectory: Sequence[Mapping[str, Any]], means: Mapping[str, float], steps: int
    ) -> None:
        """Writes an epoch of a search.

        Args:
            rows: of the epoch, as `trajectory.csv` holds them.
            trajectory: the rows of all epochs so far, including those of groups that were searched before.
            means: of the terms over the epoch, by half, group and name.
            steps: since the epoch before.
        """
        scalars = {_search_tag(name): value for name, value in means.items()}
        for group, blocks in _by_group(rows).items():
            scalars |= {f"alpha/group{group}/block{place}": row["alpha"] for place, row in enumerate(blocks.values(), start=1)}
            scalars[f"entropy/group{group}"] = next(iter(blocks.values()))["entropy"]
        alphas = [[row["alpha"] for row in blocks.values()] for blocks in _by_group(trajectory).values()]
        self._write(int(rows[0]["epoch"]), {**scalars, **self._speed(steps)}, {"alpha": _small_heat_map(alphas)})

    def predictions(self, epoch: int, predict: Predictor, split: Split, class_names: Sequence[str]) -> None:
        """Writes a confusion matrix, and the predictions for some images.

        Args:
            epoch: the last one before the predictions.
            predict: raw pixels to logits.
            split: the images to predict; not empty.
            class_names: by class.
        """
        few = split.sample(_SHOWN_IMAGES)
        with doing("drawing the predictions"):
            answers, shown = top_classes(predict, split), top_classes(predict, few)
            if self._is_off:
                return
            counts = tf.math.confusion_matrix(split.classes, answers, len(class_names)).numpy()
            pictures = {
                "predictions/confusion_matrix": figures.confusion_matrix(counts, class_names),
                "predictions/samples": figures.sample_predictions(
                    few.images.pixels[few.indices], few.classes.tolist(), shown.tolist(), class_names
                ),
            }
            self._write(epoch, {}, {tag: figures.png(figure) for tag, figure in pictures.items()})

    def _speed(self, steps: int) -> dict[str, float]:
        """Images per second since the epoch before, including all work between epochs."""
        before, self._before = self._before, time.perf_counter()
        return {"training/examples_per_second": steps * self._batch_size / (self._before - before)}

    def _write(self, epoch: int, scalars: Mapping[str, float], pictures: Mapping[str, bytes] | None = None) -> None:
        if self._is_off:
            return
        values = [tf.compat.v1.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        values += [tf.compat.v1.Summary.Value(tag=tag, image=_image(png)) for tag, png in (pictures or {}).items()]
        try:
            writer = self._writer = self._writer or self._open()
            # One operation for all of them: `tf.summary.scalar` takes half a millisecond for each, and a whole epoch may take no longer.
            summary = tf.compat.v1.Summary(value=[value for value in values if (value.tag, epoch) not in self._known])
            with writer.as_default():
                tf.summary.experimental.write_raw_pb(summary.SerializeToString(), epoch)
            writer.flush()
        except (tf.errors.ResourceExhaustedError, tf.errors.OutOfRangeError) as error:  # no space, or a file above the size limit
            raise UserError(f"{self._folder} must be writable, with room for it on the disk. Received: {_reason(error)}") from error
        except (tf.errors.OpError, OSError) as error:
            self._is_off = True
            _LOG.warning("no more events are written for TensorBoard: %s is not writable (%s)", self._folder, _reason(error))

    def _open(self) -> tf.summary.SummaryWriter:
        for file in sorted(self._folder.glob("*tfevents*")):
            check_regular(file)
            self._known |= {(value.tag, event.step) for event in EventFileLoader(str(file)).Load() for value in event.summary.value}
        writer = tf.summary.create_file_writer(str(self._folder))
        if ("configuration", 0) not in self._known:
            with writer.as_default():
                tf.summary.text("configuration", _table(self._fields), step=0)
        return writer


class EpochEvents(keras.callbacks.Callback):
    """Hands the epochs of `fit` to an EventLog.

    Args:
        events: of the stage.
        log: holds the numbers of the epochs; this callback comes after it.
    """

    def __init__(self, events: EventLog, log: MetricsLog) -> None:
        super().__init__()
        self._events, self._log, self._steps = events, log, 0

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._steps += self.model.steps_per_execution

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._events.training_epoch(self._log.rows[-1], self._steps)
        self._steps = 0

    def end(self, predict: Predictor, splits: Splits) -> None:
        """Writes the network's final predictions on the validation split, or else on the test set. They do not affect the result.

        Args:
            predict: raw pixels to logits.
            splits: the data; without those two nothing is shown.
        """
        part = splits.validation if len(splits.validation) else splits.test
        if len(part):
            self._events.predictions(len(self._log.rows), predict, part, splits.class_names)


def _training_tag(name: str) -> str:
    """The tag of a number of an epoch; numbers of one kind have one heading."""
    part, _, what = name.rpartition("_")
    if part in ("test", "validation"):
        return f"{'accuracy' if what == 'accuracy' else 'losses'}/{part}"
    return _TAGS.get(name, f"losses/{name}")


def _search_tag(name: str) -> str:
    """The tag of a mean, `train/st` or `train/group2/st`: terms of one name are shown together, whatever their group."""
    half, _, rest = name.partition("/")
    group, _, term = rest.rpartition("/")
    return _TAGS.get(name, "/".join(["losses", half, term, *([group] if group else [])]))


def _by_group(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, Mapping[str, Any]]]:
    """The last row of each block, by group and name."""
    groups: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], {})[row["block"]] = row
    return groups


def _small_heat_map(alphas: Sequence[Sequence[float]]) -> bytes:
    """A PNG of alpha, a row for each group and a square for each block: drawn in a hundredth of the time that a figure takes.

    It is drawn in every epoch, and an epoch may take no longer than a figure. `alphas.png` of the search has names and numbers.
    """
    values = np.full((len(alphas), max(map(len, alphas))), np.nan)
    for row, alpha in enumerate(alphas):
        values[row, : len(alpha)] = alpha
    colours = (matplotlib.colormaps["viridis"].with_extremes(bad="white")(np.ma.masked_invalid(values))[..., :3] * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours.repeat(_CELL, axis=0).repeat(_CELL, axis=1)).save(file, "PNG")
    return file.getvalue()


def _image(png: bytes) -> Any:
    width, height = struct.unpack(">II", png[16:24])  # from the PNG's header, which comes first
    return tf.compat.v1.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)


def _table(fields: Mapping[str, Any]) -> str:
    """Markdown of a configuration."""
    return "\n".join(["| field | value |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in _flat(fields))])


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value).replace("|", r"\|")


def _reason(error: Exception) -> str:
    """The first line of an error's message, of bounded length."""
    return _PLACE.sub("", str(getattr(error, "message", error))).strip().splitlines()[0][:300]
