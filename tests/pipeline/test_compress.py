"""Both stages in one call, on plain models and arrays: what comes out, what stays as it was, what is skipped, and what is refused."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from steps import same, weights_of

import dfa_tf
from dfa_tf.pipeline.compress import Compressed
from dfa_tf.pipeline.stages import SearchStage

pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`:UserWarning")


@pytest.fixture(scope="module", autouse=True)
def _eager() -> Iterator[None]:
    """The few steps of these networks take longer to trace than to make."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


class Data(NamedTuple):
    """Arrays as a user has them. Attributes: each pixels uint8 and classes."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]


class Made(NamedTuple):
    """A call with everything, and what it was given."""

    result: Compressed
    teacher: keras.Model
    student: keras.Model
    weights: list[list[np.ndarray]]
    arguments: dict[str, Any]


class Counted(keras.callbacks.Callback):
    """Counts epochs."""

    epochs = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.epochs += 1


@pytest.fixture(scope="module")
def data(splits) -> Data:
    source = splits.source
    return Data(*((images.pixels[part], images.labels[part]) for images, part in (
        (source.train, slice(0, 80)), (source.test, slice(0, 100)), (source.train, slice(80, 120))
    )))  # fmt: skip


def stack(width: int, blocks: int, name: str | None = None) -> keras.Model:
    """What a Keras user might write: two groups of convolutions, no name given."""
    pixels = x = keras.layers.Input((8, 8, 1))
    x = keras.layers.Rescaling(1 / 255)(x)
    for group in (1, 2):
        for _ in range(blocks):
            x = keras.layers.Conv2D(width * group, 3, padding="same", use_bias=False)(x)
            x = keras.layers.BatchNormalization()(x)
            x = keras.layers.ReLU()(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(pixels, keras.layers.Dense(10)(x), name=name)


@pytest.fixture(scope="module")
def made(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two epochs of both stages in a work directory, with a frozen layer in a compiled teacher."""
    keras.utils.set_random_seed(0)
    teacher, student = stack(6, 2, "big"), stack(4, 1)
    teacher.compile("adam", "mse")
    teacher.layers[2].trainable = False
    arguments = {
        "validation": data.validation,
        "epochs": 3,
        "batch_size": 20,
        "workdir": tmp_path_factory.mktemp("compressed") / "run",
        "verbose": False,
    }
    weights = [weights_of(teacher), weights_of(student)]
    counted = Counted()
    result = dfa_tf.compress(teacher, student, data.train, data.test, callbacks=counted, **arguments)
    assert counted.epochs == 3
    return Made(result, teacher, student, weights, arguments)


def evaluated(student: keras.Model, pixels: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Accuracy and cross-entropy by hand."""
    logits = student(pixels.astype(np.float32), training=False).numpy().astype(np.float64)
    loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    return float((logits.argmax(1) == labels).mean()), float(loss.mean())


# What comes out


def test_the_student_is_a_stock_model_that_evaluates_as_reported(made: Made, data: Data) -> None:
    result = made.result
    assert type(result.student) is keras.Model or type(result.student).__module__.startswith("keras.")
    assert {type(layer).__module__.split(".")[0] for layer in result.student.layers} == {"keras"}
    for name, part in (("test", data.test), ("validation", data.validation)):
        np.testing.assert_allclose(
            evaluated(result.student, *part), [result.metrics[f"{name}_{what}"] for what in ("accuracy", "loss")], rtol=1e-4
        )


def test_the_student_is_trained_from_the_weights_that_it_had(made: Made) -> None:
    trained = made.result.student.get_weights()
    assert [weight.shape for weight in trained] == [weight.shape for weight in made.weights[1]]
    assert not same(trained, made.weights[1])
    kept = keras.models.load_model(made.arguments["workdir"] / "student" / "model.keras")
    assert same(kept.get_weights(), made.weights[1])


def test_at_a_rate_of_almost_nothing_the_student_stays_what_it_was(made: Made, data: Data) -> None:
    result = dfa_tf.compress(made.teacher, made.student, data.train, methods=[], epochs=1, batch_size=20, learning_rate=1e-9, verbose=False)
    for trained, given in zip(result.student.trainable_variables, made.student.trainable_variables, strict=True):
        np.testing.assert_allclose(trained, given, atol=1e-6)


def test_the_history_and_the_trajectory_hold_every_epoch(made: Made) -> None:
    result = made.result
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert {
        "total_loss",
        "cross_entropy",
        "accuracy",
        "dfa/group1",
        "dfa/group2",
        "kd",
        "validation_accuracy",
        "test_loss",
    } <= result.history[0].keys()
    # One epoch of search over two groups of two blocks.
    assert [(row["epoch"], row["group"]) for row in result.trajectory] == [(1, 1), (1, 1), (1, 2), (1, 2)]
    assert result.aggregation is not None
    assert [row["alpha"] for row in result.trajectory] == pytest.approx(
        [alpha for group in result.aggregation.groups for alpha in group.alpha]
    )
    assert [row["block"] for row in result.trajectory] == [block for group in result.aggregation.groups for block in group.blocks]


def test_the_work_directory_is_a_run_directory(made: Made) -> None:
    run = made.result.run
    assert run is not None
    wanted = ["config.json", "teacher/model.keras", "teacher/result.json", "search/alphas.json", "search/alphas.png", "search/result.json"]
    wanted += [f"distil/dfa+kd/{name}" for name in ("student.keras", "metrics.jsonl", "alphas.json", "result.json")]
    assert [name for name in wanted if not (run.path / name).is_file()] == []
    config = json.loads(run.config.read_text())
    assert (config["teacher"]["path"], config["student"]["path"]) == tuple(
        str(run.path / who / "model.keras") for who in ("teacher", "student")
    )
    assert not keras.models.load_model(run.teacher / "model.keras").compiled


# What stays as it was


def test_neither_model_is_changed(made: Made) -> None:
    assert same(weights_of(made.teacher), made.weights[0])
    assert same(weights_of(made.student), made.weights[1])
    assert [layer.trainable for layer in made.teacher.layers].count(False) == 1
    assert made.teacher.trainable
    assert all(layer.trainable for layer in made.student.layers)
    assert made.teacher.loss == "mse"


# What is skipped


def test_a_second_call_trains_nothing(made: Made, data: Data, caplog: pytest.LogCaptureFixture) -> None:
    counted = Counted()
    again = dfa_tf.compress(made.teacher, made.student, data.train, data.test, callbacks=[counted], **made.arguments)
    assert counted.epochs == 0
    assert same(again.student.get_weights(), made.result.student.get_weights())
    assert (again.history, again.trajectory, again.metrics) == (made.result.history, made.result.trajectory, made.result.metrics)
    assert "starts from the weights" not in caplog.text


def test_a_student_that_is_built_anew_goes_on_from_the_first_ones_weights(made: Made, data: Data, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        again = dfa_tf.compress(made.teacher, stack(4, 1), data.train, data.test, **made.arguments)
    assert same(again.student.get_weights(), made.result.student.get_weights())
    assert "the student starts from the weights in" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student": stack(5, 1)}, "began with a student of other layers.*Use another workdir, or overwrite=True"),
        ({"teacher": stack(6, 2)}, "differs in: the artifacts that it was made from"),
        ({"epochs": 5}, "differs in: train.epochs"),
        ({"train": "less"}, "differs in: data.options.train"),
        ({"test": None}, "differs in: data.options.test"),
    ],
)
def test_other_arguments_are_refused_with_what_differs(changes: dict[str, Any], words: str, made: Made, data: Data) -> None:
    given = {"teacher": made.teacher, "student": made.student, "train": data.train, "test": data.test, **made.arguments, **changes}
    if given["train"] == "less":
        given["train"] = tuple(column[:60] for column in data.train)
    before = {path: path.stat().st_mtime_ns for path in given["workdir"].rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(dfa_tf.UserError, match=words):
        dfa_tf.compress(**given)
    assert {path: path.stat().st_mtime_ns for path in given["workdir"].rglob("*") if path.is_file() and path.name != ".lock"} == before


# Other forms of the arguments


def test_a_named_student_datasets_and_a_share_to_validate_by(made: Made, data: Data) -> None:
    train = tf.data.Dataset.from_tensor_slices(data.train)
    one_hot = tf.data.Dataset.from_tensor_slices((data.test[0], tf.one_hot(data.test[1], 10))).batch(30)
    result = dfa_tf.compress(
        made.teacher,
        "wrn_10_1",
        train,
        one_hot,
        validation=0.25,
        methods={"kd": 0.5},
        epochs=1,
        batch_size=20,
        choose_best=True,
        verbose=False,
    )
    assert (result.run, result.aggregation, result.trajectory) == (None, None, [])
    assert result.student.name == "wrn_10_1"
    (row,) = result.history
    assert row["total_loss"] == pytest.approx(row["cross_entropy"] + 0.5 * row["kd"], rel=1e-5)
    # A quarter of 80 images, 20, is held out: accuracy comes in steps of a twentieth.
    assert (result.metrics["validation_accuracy"] * 20) == pytest.approx(round(result.metrics["validation_accuracy"] * 20), abs=1e-4)
    assert evaluated(result.student, *data.test)[0] == pytest.approx(result.metrics["test_accuracy"], rel=1e-5)


def test_weights_that_were_searched_before_are_used(made: Made, data: Data) -> None:
    found = made.result.aggregation
    result = dfa_tf.compress(made.teacher, made.student, data.train, epochs=1, batch_size=20, aggregation=found, verbose=False)
    assert result.aggregation == found
    assert result.trajectory == []
    assert not {name for name in result.metrics if name.startswith(("test", "validation"))}


def test_each_stage_takes_plain_models_and_arrays(data: Data, made: Made) -> None:
    """As the docstrings of both show it."""
    config = dfa_tf.Config().override(["data.batch_size=20", "train.epochs=1", "search.epochs=1", "search.mode=joint"])
    splits = dfa_tf.split(dfa_tf.source(data.train), config.data, seed=config.seed)
    found = dfa_tf.search(made.teacher, stack(4, 1), splits, config)
    distilled = dfa_tf.distil(made.teacher, stack(4, 1), splits, config, aggregation=found.weights)
    assert len(found.weights.groups) == 2
    assert np.isfinite(distilled.history[0]["total_loss"])
    assert same(weights_of(made.teacher), made.weights[0])


# What is found before anything is trained


def shaped(pixels: tuple[int, ...], classes: int) -> keras.Model:
    """A network for other images or classes."""
    image = keras.layers.Input(pixels)
    x = keras.layers.ReLU()(keras.layers.Conv2D(4, 3, padding="same")(image))
    return keras.Model(image, keras.layers.Dense(classes)(keras.layers.GlobalAveragePooling2D()(x)), name="other")


def with_lambda() -> keras.Model:
    image = keras.layers.Input((8, 8, 1))
    x = keras.layers.ReLU()(keras.layers.Conv2D(4, 3, padding="same")(keras.layers.Lambda(lambda pixels: pixels / 255)(image)))
    return keras.Model(image, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)), name="own")


PIXELS = np.zeros((40, 8, 8, 1), np.uint8)
LABELS = np.arange(40) % 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": None}, "a network is a keras.Model, a dfa_tf.FeatureModel or the path of a .keras file. Received: None"),
        ({"teacher": stack}, "a network is a keras.Model.*Received: <function"),
        ({"teacher": "wrn_16_2"}, "a model must be a .keras file. Received: 'wrn_16_2', which is not there"),
        ({"student": "wrn_10_l"}, "unknown name in models. Received: 'wrn_10_l'. Did you mean 'wrn_10_"),
        ({"student": "student.keras"}, "a model must be a .keras file. Received: 'student.keras', which is not there"),
        ({"student": lambda: shaped((8, 8, 1), 7)}, "agree in num_classes. Received: 7 of 'other', 10 of 'teacher'"),
        ({"student": lambda: shaped((8, 8, 3), 10)}, r"agree in image_shape. Received: \(8, 8, 3\) of 'other'"),
        ({"student": with_lambda}, "the student must have layers that load by themselves, none of your own and no Lambda"),
        ({"train": (PIXELS, LABELS + 1)}, "has 10 classes, so training labels must be 0 to 9. Received: labels of 11 classes"),
        ({"test": (np.zeros((40, 9, 8, 1)), LABELS)}, r"test images must be of the teacher's shape \(8, 8, 1\). Received: \(9, 8, 1\)"),
        ({"validation": 0.5, "config": ["data.search_fraction=0.6"]}, "search_fraction . data.validation_fraction must be below 1"),
        ({"validation": (PIXELS, LABELS), "config": ["data.validation_fraction=0.1"]}, "data.validation_fraction must be 0 if"),
        ({"batch_size": 21}, "data.batch_size must not exceed the 20 images of the split. Received: 21"),
        ({"choose_best": True}, "the best epoch is chosen by validation images, and never by the test set"),
        ({"callbacks": keras.callbacks.EarlyStopping()}, "EarlyStopping monitors 'val_loss', which needs validation images"),
        ({"callbacks": [None]}, "callbacks must be instances of keras.callbacks.Callback. Received: None"),
        ({"aggregation": [[1.0]]}, "given weights must have one for each block, "),
    ],
)
def test_a_mistake_is_one_line_before_the_training(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    changes = {name: value() if callable(value) and value is not stack else value for name, value in changes.items()}
    given = {"teacher": stack(6, 2, "teacher"), "student": stack(4, 1), "train": (PIXELS, LABELS), "verbose": False, **changes}
    with pytest.raises(dfa_tf.UserError, match=words):
        dfa_tf.compress(**given, workdir=tmp_path / "run")
    assert [path.name for path in tmp_path.rglob("*") if path.name not in ("run", ".lock")] == []


# Warnings


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends a call behind its first stage, the teacher's."""

    def refuse(self: SearchStage) -> None:
        raise dfa_tf.UserError("stopped")

    monkeypatch.setattr(SearchStage, "execute", refuse)


def begin(caplog: pytest.LogCaptureFixture, *arguments: Any) -> str:
    with caplog.at_level(logging.WARNING), pytest.raises(dfa_tf.UserError, match="stopped"):
        dfa_tf.compress(*arguments, verbose=False)
    return caplog.text


@pytest.mark.usefixtures("stop")
def test_a_teacher_that_knows_no_more_than_chance_is_warned_of(data: Data, caplog: pytest.LogCaptureFixture) -> None:
    teacher = stack(6, 2)
    always = teacher.layers[-1]
    always.set_weights([np.zeros_like(always.kernel), np.eye(10)[3]])
    assert "the teacher is right on" in begin(caplog, teacher, stack(4, 1), data.train)


@pytest.mark.usefixtures("stop")
def test_a_teacher_that_is_right_is_not_warned_of(data: Data, caplog: pytest.LogCaptureFixture) -> None:
    teacher = stack(6, 2)
    pixels = data.train[0].astype(np.float32)
    # What the teacher tells of an image is by definition right, of as many classes as it happens to tell.
    labels = teacher(pixels, training=False).numpy().argmax(1)
    common, count = np.unique(labels, return_counts=True)
    many = np.isin(labels, common[count >= 4])
    assert begin(caplog, teacher, stack(4, 1), (pixels[many], labels[many])) == ""


@pytest.mark.usefixtures("stop")
def test_a_student_that_is_larger_than_its_teacher_is_warned_of(data: Data, caplog: pytest.LogCaptureFixture) -> None:
    assert "are they swapped?" in begin(caplog, stack(4, 1), stack(6, 2), data.train)
