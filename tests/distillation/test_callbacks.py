"""What a user's callbacks find in a training, what is refused before it, and the best epoch."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from dfa_tf.config import Config, TrainConfig
from dfa_tf.distillation.callbacks import BestEpoch, KerasNames, check_callbacks
from dfa_tf.distillation.distil import Distilled, distil
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Split, Splits
from dfa_tf.networks.features import FeatureModel

Tiny = Callable[..., FeatureModel]


FINAL = ("test_accuracy", "test_loss", "validation_accuracy", "validation_loss")


@pytest.fixture(scope="module")
def schedule(config: Config) -> Config:
    """Four epochs of three steps."""
    return config.override(["data.batch_size=20", "train.epochs=4", "train.learning_rate=0.05"])


def accuracy_of(model: keras.Model, split: Split) -> float:
    images = split.images.pixels[split.indices].astype(np.float32)
    return float((model(images, training=False).numpy().argmax(1) == split.labels).mean())


@pytest.fixture(scope="module")
def validated(splits: Splits) -> Splits:
    """The bundled splits with twenty training images to choose by as well."""
    return Splits(splits.train, splits.search, Split(splits.train.images, np.arange(20)), splits.test, splits.source)


class Spoil(keras.callbacks.Callback):
    """Empties the student's head at the end of the last epoch, before anything is evaluated: it then always tells class 0."""

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        head = self.model.student.get_layer("logits")
        if self.model.optimizer.iterations == 12:  # four epochs of three steps
            head.set_weights([np.zeros_like(head.kernel), np.eye(10)[0]])


class Seen(keras.callbacks.Callback):
    """Notes the numbers of each epoch as it finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.rows.append(dict(logs or {}))


# In the training


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that a ModelCheckpoint of the best epoch writes."""
    return tmp_path_factory.mktemp("callbacks") / "best.keras"


@pytest.fixture(scope="module")
def trained(tiny: Tiny, validated: Splits, schedule: Config, seen: Seen, saved: Path) -> Distilled:
    """Four epochs, the last of which spoils the student."""
    checkpoint = keras.callbacks.ModelCheckpoint(saved, "val_accuracy", save_best_only=True)
    return distil(None, tiny(), validated, schedule, callbacks=[Spoil(), seen, checkpoint])


def best_of(result: Distilled) -> float:
    accuracies = [row["validation_accuracy"] for row in result.history]
    assert max(accuracies) > accuracies[-1], "nothing to tell them apart by"
    return max(accuracies)


def test_callbacks_find_the_numbers_under_the_names_of_keras_too(trained: Distilled, seen: Seen) -> None:
    for found, kept in zip(seen.rows, trained.history, strict=True):
        assert (found["val_accuracy"], found["val_loss"]) == (kept["validation_accuracy"], kept["validation_loss"])
        assert found["loss"] == kept["total_loss"]
        assert not {"val_accuracy", "val_loss", "loss"} & kept.keys()


def test_the_last_epoch_is_kept_unless_asked_otherwise(trained: Distilled, validated: Splits) -> None:
    assert trained.history[-1]["validation_accuracy"] == pytest.approx((validated.validation.labels == 0).mean())
    assert trained.final == {key: trained.history[-1][key] for key in FINAL}


def test_a_checkpoint_of_the_best_epoch_is_a_student(trained: Distilled, validated: Splits, saved: Path) -> None:
    assert accuracy_of(keras.models.load_model(saved), validated.validation) == pytest.approx(best_of(trained))


def test_the_best_epoch_is_kept_where_it_is_asked_for(tiny: Tiny, validated: Splits, schedule: Config, trained: Distilled) -> None:
    best = distil(None, tiny(), validated, schedule.override(["train.choose_best=true"]), callbacks=[Spoil()])
    assert best.history == trained.history
    chosen = next(row for row in best.history if row["validation_accuracy"] == best_of(best))
    assert best.final == {key: chosen[key] for key in FINAL}
    assert accuracy_of(best.student, validated.validation) == pytest.approx(best_of(best))


def test_what_early_stopping_restores_is_what_is_reported(tiny: Tiny, validated: Splits, schedule: Config) -> None:
    stop = keras.callbacks.EarlyStopping("val_accuracy", patience=9, restore_best_weights=True)
    result = distil(None, tiny(), validated, schedule, callbacks=[Spoil(), stop])
    assert result.final["validation_accuracy"] == best_of(result)


# Before the training


class Network:
    """Stands for the network that is trained: all that is asked of it are its metrics."""

    metrics = (keras.metrics.Mean(name="accuracy"), keras.metrics.Mean(name="total_loss"))


@pytest.mark.parametrize(("monitor", "mode"), [("val_accuracy", "max"), ("accuracy", "max"), ("val_loss", "min"), ("loss", "min")])
def test_the_direction_of_a_number_is_known_by_its_name(monitor: str, mode: str, validated: Splits) -> None:
    stop = keras.callbacks.EarlyStopping(monitor)
    KerasNames([stop], Network(), validated)
    assert stop.mode == mode


def test_a_direction_that_is_given_stays(validated: Splits) -> None:
    stop = keras.callbacks.EarlyStopping("accuracy", mode="min")
    KerasNames([stop], Network(), validated)
    assert stop.mode == "min"


def test_a_number_that_there_will_not_be_is_named_with_the_nearest(validated: Splits) -> None:
    with pytest.raises(
        UserError, match=r"EarlyStopping must monitor a number of the training. Received: 'val_acc'. Did you mean .*'val_accuracy'"
    ):
        KerasNames([keras.callbacks.EarlyStopping("val_acc")], Network(), validated)


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (lambda epoch: None, r"must be instances of keras.callbacks.Callback. Received: <function"),
        (keras.callbacks.EarlyStopping, r"must be instances of keras.callbacks.Callback. Received: <class"),
        (keras.callbacks.EarlyStopping("val_loss"), r"EarlyStopping monitors 'val_loss', which needs validation images"),
        (
            keras.callbacks.ReduceLROnPlateau("loss"),
            r"ReduceLROnPlateau sets the learning rate.*train.schedule=constant. Received: 'cosine'",
        ),
        (keras.callbacks.LearningRateScheduler(lambda epoch: 0.1), r"LearningRateScheduler sets the learning rate"),
    ],
)
def test_a_callback_without_effect_is_refused(callback: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_callbacks([callback], TrainConfig(), validation=False)


def test_callbacks_that_have_what_they_need_are_taken() -> None:
    plateau = keras.callbacks.ReduceLROnPlateau("val_loss")
    check_callbacks([plateau], TrainConfig(schedule="constant", choose_best=True), validation=True)


def test_the_best_epoch_is_never_chosen_without_validation_images() -> None:
    with pytest.raises(UserError, match=r"never by the test set: give some, as validation=\(images, labels\)"):
        check_callbacks([], TrainConfig(choose_best=True), validation=False)


def test_of_equally_good_epochs_the_first_is_the_best() -> None:
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    best = BestEpoch(model)
    for epoch, accuracy in enumerate([0.2, 0.5, 0.5, 0.3, None]):
        model.set_weights([np.full((1, 1), float(epoch))])
        best.on_epoch_end(epoch, {} if accuracy is None else {"validation_accuracy": accuracy})
    assert (best.accuracy, best.weights[0].item()) == (0.5, 1.0)
    best.restore()
    assert model.get_weights()[0].item() == 1.0
