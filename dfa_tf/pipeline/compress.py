"""Both stages in one call: compresses a trained Keras classifier into a small one."""

import csv
import io
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import keras
import numpy as np

from dfa_tf import plugins
from dfa_tf.aggregation.search_state import Row
from dfa_tf.aggregation.weights import AggregationWeights
from dfa_tf.config import GIVEN, Config
from dfa_tf.display.progress import Reporter
from dfa_tf.distillation.callbacks import check_callbacks
from dfa_tf.errors import UserError
from dfa_tf.images.sources import digest_of, images, source
from dfa_tf.images.splits import Images, Source, Splits, split
from dfa_tf.networks.cost import count_parameters
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.keras_file import load_model, save_model
from dfa_tf.networks.pairing import check_pair
from dfa_tf.pipeline.arguments import Methods, configure
from dfa_tf.pipeline.checking import check
from dfa_tf.pipeline.inputs import GivenInputs
from dfa_tf.pipeline.run import Run
from dfa_tf.pipeline.stages import SearchStage, Stage, TeacherStage, student_stages
from dfa_tf.process import workers
from dfa_tf.storage.files import atomic
from dfa_tf.storage.reading import read_bytes, read_result
from dfa_tf.storage.run_directory import RunDir
from dfa_tf.storage.scratch import scratch_folder

Model: TypeAlias = keras.Model | FeatureModel | str | os.PathLike[str]
Data: TypeAlias = Any
"""Images with their labels as `dfa_tf.source` takes them: arrays, a `tf.data.Dataset`, or `dfa_tf.splits.Images`."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compressed:
    """The result of `compress`.

    Attributes:
        student: the distilled classifier: raw pixels 0..255 `[B, H, W, C]` to logits `[B, num_classes]`. A `keras.Model` of
            built-in layers, not compiled; `student.save("student.keras")` saves it.
        aggregation: the weights of the teacher's blocks that it was distilled with; None where no method takes any.
        history: the numbers of each epoch of stage 2: `total_loss`, `accuracy`, `validation_accuracy`, `test_accuracy`, ...
        trajectory: of the search, a row for each epoch, group and block (see `dfa_tf.search`); empty where nothing was searched.
        metrics: the student's `result.json`: accuracy (0..1) and loss (nats) on the test set and on the validation images, where
            given, parameters, seconds, steps, ...
        run: the run directory; None where no `workdir` was given.
    """

    student: keras.Model
    aggregation: AggregationWeights | None
    history: list[dict[str, float]]
    trajectory: list[Row]
    metrics: dict[str, Any]
    run: RunDir | None


def compress(
    teacher: Model,
    student: Model,
    train: Data,
    test: Data | None = None,
    *,
    validation: Data | float | None = None,
    methods: Methods | None = None,
    aggregation: AggregationWeights | str | os.PathLike[str] | Sequence[Sequence[float]] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    choose_best: bool | None = None,
    callbacks: Sequence[keras.callbacks.Callback] | keras.callbacks.Callback = (),
    seed: int | None = None,
    config: Config | Sequence[str] = (),
    workdir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    verbose: bool = True,
) -> Compressed:
    """Compresses a trained classifier: searches which mixture of its blocks teaches the student best, then distils the student.

        result = dfa_tf.compress(teacher, student, (images, labels), (test_images, test_labels), epochs=60)
        result.student.save("student.keras")

    The images are raw pixels 0..255; networks hold their own normalisation, as those of `keras.applications` do, or by a
    `keras.layers.Rescaling` in front. With few images, augmentation helps: `config=["data.flip=true"]`.

    Neither model is changed. The student is trained in a copy that starts from the weights that it has, freshly initialised or
    pretrained; the search uses another copy. The seeds of Python, NumPy and TensorFlow are set, and TensorFlow's operations
    made deterministic for the whole process.

    Args:
        teacher: trained: a Functional or Sequential `keras.Model` of images to classes, the path of its `.keras` file, or a
            `dfa_tf.FeatureModel` where its blocks are named by hand.
        student: given in the same ways, trained or not, for the same images and classes; or a name of `dfa_tf.plugins.names("models")`, as
            `"wrn_10_1"`.
        train: training images: arrays `(pixels [n, height, width, channels], labels)`, a finite `tf.data.Dataset` of such
            pairs, batched or not (it is read into memory), or `dfa_tf.splits.Images`. Labels are classes, or one-hot rows.
        test: test images, in the same forms; evaluated after each epoch. Nothing is ever chosen by them.
        validation: images to choose by, in the same forms; or the share of the training images that is held out, as 0.1.
        methods: distillation methods with their weights, or with those that they recommend: `"kd"`, `["dfa", "kd"]`,
            `{"dfa": 25.0, "kd": 1.0}`; `[]` trains plainly, without the teacher. Default: `{"dfa": 2.0, "kd": 1.0}`, the feature
            aggregation and the teacher's answers.
        aggregation: of the teacher's blocks: `"searched"` (default), `"last"`, `"first"`, `"average"`, `"random"`, weights of
            an earlier search or the path of their `alphas.json`, or a weight for each block by group, as `[[0.2, 0.8], [1, 0]]`.
        epochs: of stage 2. Default: 30. The search takes a third as many, over half of the training images each.
        batch_size: default: 64, or a sixteenth of the training images where that is less.
        learning_rate: of SGD at the start; it falls to 0 along a cosine. Default: 0.05.
        choose_best: return the student of the epoch with the best accuracy on the validation images, not of the last one.
        callbacks: Keras callbacks for stage 2, as `EarlyStopping`, `ModelCheckpoint` (its `.keras` files are students) or
            `TensorBoard`. They find `loss`, `accuracy`, `val_loss` and `val_accuracy`; `self.model.student` is the student. They
            are not called for a stage that was done before.
        seed: of all random numbers. Default: 0.
        config: everything else: fields of `dfa_tf.Config` to change, as `["data.crop_padding=4", "search.epochs=5"]`, or a whole
            configuration in place of the defaults. Its data and networks are those given here, and arguments above win.
        workdir: directory for `teacher/`, `student/`, `search/` and `distil/<methods>/`. Called again with it, finished
            stages are skipped, and the student starts from the weights that it had the first time.
        overwrite: replace results in `workdir` that were made with other arguments; they are refused otherwise.
        verbose: show the progress.

    Returns:
        The student, the aggregation weights, and the course of their training.

    Raises:
        UserError: if models, images and arguments do not fit one another. It is raised before anything is trained.

    References:
        Guan et al. (2020), Differentiable Feature Aggregation Search for Knowledge Distillation, ECCV.
    """
    data = images(train)
    share = validation if isinstance(validation, int | float) else None
    chosen = configure(
        config, len(data), methods=methods, aggregation=None if isinstance(aggregation, AggregationWeights) else aggregation,
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, choose_best=choose_best, seed=seed, validation_share=share,
    )  # fmt: skip
    teaching, view = _view(teacher, chosen.teacher)
    chosen, splits = _with_data(
        chosen.model_copy(update={"teacher": view}), teaching, data, None if share is not None else validation, test
    )
    watching = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else list(callbacks)
    check_callbacks(watching, chosen.student_train, validation=len(splits.validation) > 0)
    workers.begin(chosen.strategy)
    if workdir is None:
        chosen = chosen.model_copy(update={"tensorboard": False})  # the folder is removed in the end
    with scratch_folder() as scratch:
        run = RunDir(scratch / "run" if workdir is None else workdir)
        with run.lock():
            save_model(teaching.model, scratch / "teacher.keras")
            chosen = _with_student(chosen, student, teaching, scratch / "student.keras")
            if isinstance(aggregation, AggregationWeights):
                aggregation.save(scratch / "alphas.json")
                chosen = chosen.replace({"distil.aggregation": str(scratch / "alphas.json")})
            given = GivenInputs(splits, teaching, scratch / "teacher.keras", watching)
            result = _run_stages(chosen, run, given, overwrite=overwrite, quiet=not verbose)
        return result if workdir is None else replace(result, run=run)


def _view(model: Model, settings: Any) -> tuple[FeatureModel, Any]:
    """A network with its layer groups, and the settings that describe them."""
    if not isinstance(model, keras.Model | FeatureModel | str | os.PathLike):
        raise UserError(f"a network is a keras.Model, a dfa_tf.FeatureModel or the path of a .keras file. Received: {model!r}")
    if isinstance(model, FeatureModel):
        return model, settings.model_copy(update={"groups": tuple(map(tuple, model.block_names())), "tap": model.tap})
    return FeatureModel.from_model(model, settings.groups, settings.tap), settings


def _with_data(config: Config, teacher: FeatureModel, train: Images, validation: Data | None, test: Data | None) -> tuple[Config, Splits]:
    """The configuration with the digests of the images in it, and their splits."""
    parts = {"train": train, "validation": validation, "test": test}
    parts = {name: part if part is None else images(part) for name, part in parts.items()}
    digests = {name: digest_of(part) for name, part in parts.items() if part is not None}
    config = config.model_copy(update={"data": config.data.model_copy(update={"name": GIVEN, "options": digests})})
    return config, split(_source(parts, teacher, "-".join(digests.values())), config.data, seed=config.data_seed)


def _source(parts: dict[str, Images | None], teacher: FeatureModel, digest: str) -> Source:
    """The data of the run: its classes are the teacher's."""
    for name, part in parts.items():
        if part is None:
            continue
        what = "training" if name == "train" else name
        count = part.labels.max() + 1 if part.labels.ndim == 1 and len(part) else part.labels.shape[-1]
        if count > teacher.num_classes:
            raise UserError(
                f"the teacher {teacher.model.name!r} has {teacher.num_classes} classes, so {what} labels must be "
                f"0 to {teacher.num_classes - 1}. Received: labels of {count} classes"
            )
        if tuple(part.pixels.shape[1:]) != teacher.image_shape:
            shape = tuple(part.pixels.shape[1:])
            raise UserError(f"{what} images must be of the teacher's shape {teacher.image_shape}. Received: {shape}")
    names = [str(number) for number in range(teacher.num_classes)]
    train, validation, test = parts.values()
    return source(train, test, validation=validation, class_names=names, description="images given in Python", digest=digest)


def _with_student(config: Config, student: Model, teacher: FeatureModel, file: Path) -> Config:
    """The configuration with the student in it: a name, or what is saved in the file."""
    settings = config.student
    if isinstance(student, str) and not Path(student).suffix and os.sep not in student:
        plugins.check("models", student)
        return config.model_copy(update={"student": settings.model_copy(update={"name": student, "path": None, "start": "fresh"})})
    network, settings = _view(student, settings)
    check_pair(network, teacher)
    save_model(network.model, file)
    try:
        load_model(file)
    except UserError as error:
        raise UserError(f"the student must have layers that load by themselves, none of your own and no Lambda. {error}") from None
    sizes = [count_parameters(one.model) for one in (network, teacher)]
    if sizes[0] >= sizes[1]:
        _LOG.warning("the student has %d parameters, and the teacher no more than %d: are they swapped?", *sizes)
    return config.model_copy(update={"student": settings.model_copy(update={"path": str(file), "start": "file"})})


def _run_stages(config: Config, run: RunDir, given: GivenInputs, *, overwrite: bool, quiet: bool) -> Compressed:
    """Runs what is not done yet. The configuration in the run directory names the networks there."""
    stages = student_stages(config)
    with Reporter([TeacherStage.title(config), *(stage.title(config) for stage in stages)], quiet=quiet) as reporter:
        _execute(config, stages, run, given, reporter, overwrite=overwrite)
    return _result(run.student(config.method), run.search if SearchStage in stages else None)


def _execute(
    config: Config, stages: Sequence[type[Stage]], run: RunDir, given: GivenInputs, reporter: Reporter, *, overwrite: bool
) -> None:
    """Runs the teacher's stage, keeps the student as it was given, and runs the stages that read both."""
    own = {"teacher": run.teacher / "model.keras", "student": run.given_student / "model.keras"}
    config = _at(config, "teacher", own["teacher"])
    if config.student.path is not None and own["student"].exists() and not overwrite:
        _check_same(Path(config.student.path), own["student"])
        config = _at(config, "student", own["student"])
    first = Run(config, run, reporter, overwrite=overwrite, inputs=given)
    check(first)
    TeacherStage(first).execute()
    if config.student.path is not None and Path(config.student.path) != own["student"]:
        with atomic(own["student"]) as temporary:
            shutil.copyfile(config.student.path, temporary)
        config = _at(config, "student", own["student"])
        workers.wait()  # for the chief, which writes it
    second = Run(config, run, reporter, overwrite=overwrite, inputs=given)
    for stage in stages:
        stage(second).execute()


def _at(config: Config, who: str, path: Path) -> Config:
    """The configuration with the teacher or the student in this file."""
    return config.model_copy(update={who: getattr(config, who).model_copy(update={"path": str(path)})})


def _check_same(given: Path, kept: Path) -> None:
    """Raises UserError unless the student has the layers that the run began with; warns where its weights differ."""
    one, other = load_model(given), load_model(kept)
    layers = [[(type(layer).__name__, {**layer.get_config(), "name": ""}) for layer in model.layers] for model in (one, other)]
    if layers[0] != layers[1]:
        raise UserError(
            f"{kept.parent.parent} began with a student of other layers. Received: {one.name!r}. Use another workdir, or overwrite=True"
        )
    if any(not np.array_equal(ours, theirs) for ours, theirs in zip(one.get_weights(), other.get_weights(), strict=True)):
        _LOG.warning("the student starts from the weights in %s, where this run began, and not from those that it has now", kept)


def _result(directory: Path, search: Path | None) -> Compressed:
    """What the finished stages have written."""
    weights, lines = directory / "alphas.json", read_bytes(directory / "metrics.jsonl", "what a stage wrote").splitlines()
    return Compressed(
        student=load_model(directory / "student.keras"),
        aggregation=AggregationWeights.load(weights) if weights.exists() else None,
        history=[json.loads(line) for line in lines],
        trajectory=[] if search is None else _rows(search / "trajectory.csv"),
        metrics=read_result(directory),
        run=None,
    )


def _rows(path: Path) -> list[Row]:
    text = read_bytes(path, "what a search writes").decode()
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [{name: value if name == "block" else json.loads(value) for name, value in row.items() if value} for row in rows]
