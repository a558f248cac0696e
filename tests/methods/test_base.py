"""The contract of distillation methods: taps, needs, phases, preparation, deployment, weights."""

import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from steps import IMAGES, LABELS, same, step, weights_of

from dfa_tf import plugins
from dfa_tf.config import Config
from dfa_tf.distillation.distil import Distilled, distil
from dfa_tf.distillation.distiller import Distiller
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Images, Split, Splits
from dfa_tf.methods import Batch, Method, Phase
from dfa_tf.networks.features import FeatureModel, Features

Tiny = Callable[..., FeatureModel]


class Constant(Method):
    """A test-only method: one term of a known value, that moves one variable of its own."""

    def __init__(self, name: str = "constant", value: float = 1.0, size: int = 1) -> None:
        super().__init__(name)
        self._value = value
        self.own = self.add_weight(shape=(size,), initializer="zeros", name="own")

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        # The value does not depend on the variables, but its gradient to `own` is 1.
        return {f"{self.name}/term": self._value + tf.reduce_sum(self.own - tf.stop_gradient(self.own)) + 0.0 * student.logits[:, 0]}


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[..., Method]], None]:
    """Adds a distillation method for the time of a test, as a file in dfa_tf/losses would."""

    def add(name: str, build: Callable[..., Method]) -> None:
        module = types.ModuleType(f"test_only_{name}")
        module.build = build  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        found = plugins._table
        table = {**found("losses"), name: (module.__name__, {})}
        monkeypatch.setattr(plugins, "_table", lambda kind: table if kind == "losses" else found(kind))

    return add


class Tapping(Method):
    """Reads a tap that is not the models' own."""

    taps = ("output",)

    def __init__(self) -> None:
        super().__init__("tapping")

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        own = tf.reduce_mean(student.groups[0][-1], axis=[1, 2, 3])
        other = tf.reduce_mean(student.at("output")[0][-1], axis=[1, 2, 3]) + tf.reduce_mean(teacher.at("output")[1][0], axis=[1, 2, 3])
        return {"tapping/own": own, "tapping/other": other}


def test_a_method_reads_the_taps_that_it_asks_for(tiny: Tiny) -> None:
    student, teacher = tiny(4, 1, seed=1), tiny(6, 2, seed=2)
    logs = step(Distiller(student, teacher, {"tapping": Tapping()}))

    def mean(model: keras.Model, layer: str, training: bool) -> float:
        return float(np.mean(keras.Model(model.input, model.get_layer(layer).output)(IMAGES, training=training)))

    np.testing.assert_allclose(logs["tapping/own"], mean(student.model, "group1_block1_bn", True), rtol=1e-4)
    expected = mean(student.model, "group1_block1", True) + mean(teacher.model, "group2_block1", False)
    np.testing.assert_allclose(logs["tapping/other"], expected, rtol=1e-4)


class Remembering(Method):
    """Marks the examples that it has seen, by index."""

    needs = ("index",)

    def __init__(self) -> None:
        super().__init__("remembering")

    def prepare(self, teacher: FeatureModel, data: Split, cache: Path | None) -> None:
        self.seen = self.add_weight(shape=(len(data),), initializer="zeros", trainable=False, name="seen")

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        if isinstance(batch.index, tf.Tensor):
            self.seen.assign(tf.tensor_scatter_nd_add(self.seen.value, batch.index[:, tf.newaxis], tf.ones_like(student.logits[:, 0])))
        return {"remembering": 0.0 * student.logits[:, 0]}


def test_an_index_that_is_needed_is_given_by_distil(plug_in: Callable[..., None], tiny: Tiny, splits: Splits, quick: Config) -> None:
    built: list[Remembering] = []

    def build(student: FeatureModel, teacher: FeatureModel) -> Method:
        built.append(Remembering())
        return built[-1]

    plug_in("remembering", build)
    distil(tiny(seed=1), tiny(), splits, quick.override(['distil.methods={"remembering": 1.0}']))
    # Four epochs of three batches of twenty: all sixty examples of both halves, four times each.
    assert len(splits.train + splits.search) == 60
    np.testing.assert_array_equal(built[0].seen, np.full(60, 4.0))


def test_an_index_that_is_needed_and_not_given_is_an_error(tiny: Tiny) -> None:
    method = Remembering()
    method.prepare(tiny(), Split(Images(IMAGES, LABELS), np.arange(12)), None)
    with pytest.raises(UserError, match="needs the index of each example"):
        step(Distiller(tiny(), tiny(), {"remembering": method}))
    distiller = Distiller(tiny(), tiny(), {"remembering": method})
    distiller.compile(optimizer="sgd")
    with pytest.raises(UserError, match="needs the index of each example"):
        distiller.fit(IMAGES, LABELS, verbose=0)


class Watch(keras.callbacks.Callback):
    """Keeps the weights of the student and of a method at the end of each epoch."""

    def __init__(self, methods: list[Method]) -> None:
        super().__init__()
        self._methods = methods
        self.epochs: list[tuple[list[np.ndarray], np.ndarray]] = []

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        student = [variable.numpy() for variable in self.model.student.trainable_variables]
        self.epochs.append((student, self._methods[0].own.numpy()))


def test_a_method_s_weight_is_the_one_it_recommends_where_none_is_given(tiny: Tiny) -> None:
    method = Constant(value=2.0)
    method.recommended_weight = 7.0
    student, teacher = tiny(), tiny()
    assert step(Distiller(student, teacher, {"constant": method}, ce_weight=0.0))["total_loss"] == pytest.approx(14.0)
    given = Distiller(student, teacher, {"constant": method}, ce_weight=0.0, weights={"constant": None})
    assert step(given)["total_loss"] == pytest.approx(14.0)
    given = Distiller(student, teacher, {"constant": method}, ce_weight=0.0, weights={"constant": 0.5})
    assert step(given)["total_loss"] == pytest.approx(1.0)


def test_the_warm_up_raises_a_weight_from_zero_step_by_step(tiny: Tiny) -> None:
    methods = {"slow": Constant("slow", 10.0), "at_once": Constant("at_once", 1.0)}
    distiller = Distiller(tiny(), tiny(), methods, ce_weight=0.0, warmup_steps={"slow": 4})
    losses = [step(distiller)["total_loss"] for _ in range(6)]
    np.testing.assert_allclose(losses, [1 + 10 * share for share in (0, 0.25, 0.5, 0.75, 1, 1)], rtol=1e-6)


def test_phases_train_only_what_they_say_with_their_weights(
    plug_in: Callable[..., None], tiny: Tiny, splits: Splits, quick: Config
) -> None:
    built: list[Constant] = []

    def build(student: FeatureModel, teacher: FeatureModel) -> Method:
        method = Constant("phased", value=2.0)
        method.phases = (Phase(0.25, 0.0, 3.0, "methods"), Phase(0.5, 0.5, 0.0, "student", other_weight=2.0))
        built.append(method)
        return method

    plug_in("phased", build)
    watch, student = Watch(built), tiny()
    start = [variable.numpy() for variable in student.model.trainable_variables]
    plug_in("other", lambda student, teacher: Constant("other", value=1.0))
    config = quick.override(['distil.methods={"phased": 5.0, "other": 0.1}', "distil.ce_weight=0.4", "train.weight_decay=0.0"])
    result = distil(tiny(seed=1), student, splits, config, callbacks=[watch])
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4]
    assert result.steps == 12
    # Epoch 1: the methods alone, CE without weight; epochs 2 and 3: the student alone, the method without weight; epoch 4: everything.
    factors = [(0.0, 3.0, 0.0), (0.5, 0.0, 2.0), (0.5, 0.0, 2.0), (1.0, 1.0, 1.0)]
    for row, (ce, method, other) in zip(result.history, factors, strict=True):
        np.testing.assert_allclose(row["phased/term"], 2.0, rtol=1e-6)
        np.testing.assert_allclose(row["total_loss"], 0.4 * ce * row["cross_entropy"] + 5 * method * 2.0 + 0.1 * other * 1.0, rtol=1e-5)
    students, owns = zip(*watch.epochs, strict=True)
    assert same(students[0], start)
    assert not same(students[1], students[0])
    assert not same(students[3], students[2])
    assert owns[0] < 0  # its gradient is positive
    assert owns[0] == owns[1] == owns[2]
    assert owns[3] < owns[2]


def test_phases_that_take_all_epochs_leave_no_usual_training(
    plug_in: Callable[..., None], tiny: Tiny, splits: Splits, quick: Config
) -> None:
    def build(student: FeatureModel, teacher: FeatureModel) -> Method:
        method = Constant("phased", value=2.0)
        method.phases = (Phase(0.5, 0.0, 1.0, "methods"), Phase(0.5, 0.0, 3.0, "methods"))
        return method

    plug_in("phased", build)
    student = tiny()
    start = [variable.numpy() for variable in student.model.trainable_variables]
    result = distil(tiny(seed=1), student, splits, quick.override(['distil.methods={"phased": 5.0}', "train.epochs=3"]))
    # Halves of three epochs: two and one.
    assert [row["total_loss"] for row in result.history] == [pytest.approx(value) for value in (10.0, 10.0, 30.0)]
    assert same([variable.numpy() for variable in student.model.trainable_variables], start)


def test_two_methods_with_phases_are_an_error(plug_in: Callable[..., None], tiny: Tiny, splits: Splits, quick: Config) -> None:
    for name in ("one", "two"):

        def build(student: FeatureModel, teacher: FeatureModel, name: str = name) -> Method:
            method = Constant(name)
            method.phases = (Phase(0.5, 0.0, 1.0, "methods"),)
            return method

        plug_in(name, build)
    with pytest.raises(UserError, match=r"only one method with a phase.*\['one', 'two'\]"):
        distil(tiny(seed=1), tiny(), splits, quick.override(['distil.methods={"one": 1.0, "two": 1.0}']))


def test_phases_longer_than_the_training_are_an_error(plug_in: Callable[..., None], tiny: Tiny, splits: Splits, quick: Config) -> None:
    def build(student: FeatureModel, teacher: FeatureModel) -> Method:
        method = Constant("phased")
        method.phases = (Phase(0.75, 0.0, 1.0, "methods"), Phase(0.75, 0.0, 1.0, "methods"))
        return method

    plug_in("phased", build)
    with pytest.raises(UserError, match="take more than the 4 epochs"):
        distil(tiny(seed=1), tiny(), splits, quick.override(['distil.methods={"phased": 1.0}']))


class Serving(Method):
    """Serves a model that always tells one class, behind the student; notes what it was prepared with."""

    def __init__(self, note: Callable[[tuple[FeatureModel, Split, Path | None]], None]) -> None:
        super().__init__("serving")
        self._note = note

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        return {"serving": 0.0 * student.logits[:, 0]}

    def prepare(self, teacher: FeatureModel, data: Split, cache: Path | None) -> None:
        self._note((teacher, data, cache))

    def deploy(self, student: keras.Model) -> keras.Model:
        always = keras.layers.Dense(10, name="always")
        model = keras.Model(student.input, always(student.output), name="served")
        always.set_weights([np.zeros((10, 10)), 5.0 * np.eye(10)[3]])
        return model


def test_methods_are_prepared_once_and_the_deployed_model_is_what_is_evaluated_and_returned(
    plug_in: Callable[..., None], tiny: Tiny, splits: Splits, quick: Config, tmp_path: Path
) -> None:
    prepared: list[tuple[FeatureModel, Split, Path | None]] = []
    plug_in("serving", lambda student, teacher: Serving(prepared.append))
    config = quick.override(['distil.methods={"serving": 1.0}', "train.epochs=1"])
    teacher, student = tiny(seed=1), tiny()
    result = distil(teacher, student, splits, config, directory=tmp_path)
    assert isinstance(result, Distilled)
    assert result.student.name == "served"
    assert result.student.count_params() == student.model.count_params() + 110
    np.testing.assert_allclose(result.history[-1]["test_accuracy"], (splits.test.labels == 3).mean(), rtol=1e-5)
    ((given, data, cache),) = prepared
    assert given is teacher
    assert len(data) == 60
    np.testing.assert_array_equal(data.labels, (splits.train + splits.search).labels)
    assert cache is not None
    assert cache.is_relative_to(tmp_path)
    assert cache.name.startswith("serving-")
    # Another teacher or another option has another cache; the same ones have the same.
    distil(teacher, student, splits, config, directory=tmp_path)
    distil(tiny(seed=2), student, splits, config, directory=tmp_path)
    distil(teacher, student, splits, config)
    caches = [cache for _, _, cache in prepared]
    assert caches[1] == caches[0]
    assert caches[2] is not None
    assert caches[2] != caches[0]
    assert caches[3] is None


class Keeping(Method):
    """A test-only method that keeps parts of both networks as attributes, as those that reuse the teacher's head do."""

    def __init__(self, student: FeatureModel, teacher: FeatureModel) -> None:
        super().__init__("keeping")
        self.tails = [student.tail(1), teacher.tail(1)]
        self._student, self._teacher = student, teacher

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        ours = self.tails[0](student.groups[1][-1], training=False)
        return {
            "keeping": tf.reduce_mean(tf.square(ours), axis=1) + tf.reduce_mean(tf.square(self.tails[1](teacher.groups[1][-1])), axis=1)
        }


def test_what_a_method_keeps_of_the_networks_is_not_trained_by_it(tiny: Tiny) -> None:
    student, teacher = tiny(seed=1), tiny(seed=2)
    before, twin = weights_of(teacher.model), tiny(seed=1)
    distiller = Distiller(student, teacher, {"keeping": Keeping(student, teacher)}, ce_weight=0.0)
    assert [id(variable) for variable in distiller.trainable_variables] == [id(variable) for variable in student.model.trainable_variables]
    step(distiller, rate=0.1)
    assert same(weights_of(teacher.model), before)
    with tf.GradientTape() as tape:
        features = twin.extractor()(IMAGES, training=True)
        loss = tf.reduce_mean(tf.square(twin.tail(1)(features.groups[1][-1], training=False)))
    variables = twin.model.trainable_variables
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    for variable, trained, gradient in zip(variables, student.model.trainable_variables, gradients, strict=True):
        expected = variable.numpy() if gradient is None else variable.numpy() - 0.1 * gradient.numpy()
        np.testing.assert_allclose(trained, expected, rtol=1e-4, atol=1e-6)


def test_what_only_a_term_of_no_weight_reaches_is_not_even_decayed(tiny: Tiny) -> None:
    student, teacher = tiny(seed=1), tiny(seed=2)
    before = [variable.numpy() for variable in student.model.trainable_variables]
    distiller = Distiller(student, teacher, {"constant": Constant()}, ce_weight=0.0, weight_decay=0.5)
    step(distiller, rate=0.1)
    head = student.model.get_layer("logits").bias
    np.testing.assert_array_equal(head, next(b for b, v in zip(before, student.model.trainable_variables, strict=True) if v is head))


def test_a_warm_up_goes_on_through_the_phases(tiny: Tiny) -> None:
    student, teacher = tiny(seed=1), tiny(seed=2)
    distiller = Distiller(student, teacher, {"constant": Constant()}, ce_weight=0.0, warmup_steps={"constant": 4})
    distiller.begin_phase(Phase(0.5, 1.0, 1.0), "constant", start=2)
    assert [step(distiller)["total_loss"] for _ in range(3)] == pytest.approx([0.5, 0.75, 1.0])


def test_weights_of_methods_that_are_not_there_are_errors(tiny: Tiny) -> None:
    for extra in ({"weights": {"constnt": 1.0}}, {"warmup_steps": {"constnt": 3}}):
        with pytest.raises(UserError, match="Received: 'constnt'. Did you mean 'constant'"):
            Distiller(tiny(seed=1), tiny(seed=2), {"constant": Constant()}, **extra)
