"""What every plug-in keeps to, run over all that are found: losses, networks and data sets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from steps import gradients, same, weights_of

from dfa_tf import plugins
from dfa_tf.distillation.distiller import Distiller
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Source, Splits
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.frozen_teacher import frozen
from dfa_tf.networks.precision import precision

EXAMPLES = 16
# Data sets that bring their own images; the others are read from a folder, and have tests of their own.
BUNDLED = [name for name in plugins.names("data") if "data_dir" not in plugins.arguments("data", name)]


CHEAPEST = ("keras_applications:MobileNetV3Small",)  # of a family whose options tell no sizes


def smallest_of_each_family() -> list[str]:
    """A variant of each family of networks: the one with the least numbers among its options."""
    families: dict[Any, list[tuple[bool, float, str]]] = {}
    for name in plugins.names("models"):
        build = plugins.builder("models", name)
        size = sum(value for value in build.keywords.values() if isinstance(value, int | float))  # type: ignore[attr-defined]
        families.setdefault(build.func, []).append((name not in CHEAPEST, size, name))  # type: ignore[attr-defined]
    return [min(variants)[-1] for variants in families.values()]


@pytest.fixture(scope="module")
def batch(splits: Splits) -> Batch:
    """The first examples of the training set, with their index."""
    data = splits.train + splits.search
    images = tf.constant(data.images.pixels[data.indices[:EXAMPLES]], tf.float32)
    return Batch(images, tf.constant(data.labels[:EXAMPLES], tf.int32), tf.range(EXAMPLES, dtype=tf.int64))


class Lesson:
    """A method with its two networks, prepared as `distil` does it."""

    def __init__(self, name: str, tiny: Callable[..., FeatureModel], splits: Splits, cache: Path, policy: str = "float32") -> None:
        self.student, self.teacher = tiny(4, 1, seed=1), tiny(6, 2, seed=2)
        with precision(policy):
            self.method: Method = plugins.build("losses", name, self.student, self.teacher)
            self.method.prepare(self.teacher, splits.train + splits.search, cache)
        self.extract = self.student.extractor(self.method.taps)
        self.teach = frozen(self.teacher, self.method.taps)

    def features(self, images: tf.Tensor) -> tuple[Features, Features]:
        return self.extract(images, training=True), self.teach(images)

    def terms(self, batch: Batch) -> dict[str, tf.Tensor]:
        return self.method(*self.features(batch.images), batch)

    def total(self, batch: Batch) -> tf.Tensor:
        return tf.add_n([tf.reduce_mean(term) for term in self.terms(batch).values()])

    def memory(self) -> list[tuple[keras.Variable, np.ndarray]]:
        """What the method remembers from step to step, with its present values: CRD's next loss is of other negatives."""
        return [(variable, variable.numpy()) for variable in self.method.non_trainable_variables]


@pytest.fixture(scope="module", params=plugins.names("losses"))
def lesson(request: pytest.FixtureRequest, tiny: Callable[..., FeatureModel], splits: Splits, tmp_path_factory: Any) -> Lesson:
    return Lesson(request.param, tiny, splits, tmp_path_factory.mktemp(request.param))


def check_terms(terms: dict[str, tf.Tensor], method: Method) -> None:
    assert terms
    for name, term in terms.items():
        assert name.split("/")[0] == method.name
        assert term.dtype == tf.float32
        assert tuple(term.shape) in ((), (EXAMPLES,))
        assert np.isfinite(term).all()


def test_a_loss_gives_finite_terms_by_its_own_name_per_example_or_for_the_batch(lesson: Lesson, batch: Batch) -> None:
    check_terms(lesson.terms(batch), lesson.method)
    assert lesson.method.recommended_weight > 0
    assert sum(phase.fraction for phase in lesson.method.phases) <= 1


@pytest.mark.parametrize("certainty", [1.0, 0.7])
def test_a_loss_takes_soft_labels_as_their_classes(certainty: float, lesson: Lesson, batch: Batch) -> None:
    soft = certainty * tf.one_hot(batch.labels, 10) + (1 - certainty) / 10
    memory, made = lesson.memory(), []
    for labels in (batch.labels, soft):
        keras.utils.set_random_seed(3)
        made.append(lesson.terms(batch._replace(labels=labels)))
        for variable, was in memory:
            variable.assign(was)
    check_terms(made[1], lesson.method)
    for name, term in made[0].items():
        np.testing.assert_array_equal(term, made[1][name])


@pytest.mark.parametrize("name", plugins.names("losses"))
def test_a_loss_is_float32_where_networks_compute_in_bfloat16(
    name: str, tiny: Callable[..., FeatureModel], splits: Splits, batch: Batch, tmp_path: Path
) -> None:
    with precision("mixed_bfloat16"):
        lesson = Lesson(name, tiny, splits, tmp_path, "mixed_bfloat16")
    check_terms(lesson.terms(batch), lesson.method)


HEAD = {"logits/kernel", "logits/bias"}
NOT_REACHED = {
    **{name: set[str]() for name in ("kd", "dkd", "dist", "logit_standardisation")},
    "jacobian": {"logits/bias", "group2_block1_bn/beta"},  # a derivative has no constant; behind this offset is a ReLU alone
    "fitnet": {*HEAD, "group2_block1_conv/kernel", "group2_block1_bn/gamma", "group2_block1_bn/beta"},  # the hint is of the first group
}
"""By loss, the student's variables that lie behind all that it reads: the head, unless it is listed here."""


def test_the_gradient_reaches_the_student_and_the_method_and_not_the_teacher(lesson: Lesson, batch: Batch) -> None:
    theirs = lesson.teacher.model
    before, memory = weights_of(theirs), lesson.memory()
    found = gradients(lesson.method, lesson.student, lesson.teacher, batch.images, batch)
    for variable, was in memory:
        variable.assign(was)
    assert set(found.student) - found.reached() == NOT_REACHED.get(lesson.method.name, HEAD)
    assert all(gradient is not None and np.any(gradient) for gradient in found.method)
    assert found.teacher == [None] * len(found.teacher)
    assert not {id(variable) for variable in theirs.trainable_variables} & {id(each) for each in lesson.method.trainable_variables}
    assert same(weights_of(theirs), before)


def read_of_teacher(lesson: Lesson) -> tuple[set[str], dict[str, tf.Tensor]]:
    """The outputs that the method declares, and all outputs of the teacher for 16 images, by name."""
    extractor, method = lesson.teach.extractor, lesson.method
    declared = extractor.outputs_of(extractor.names_read(method.reads, method.taps, method.teacher_layers))
    images = np.random.default_rng(0).uniform(0, 16, (EXAMPLES, 8, 8, 1)).astype(np.float32)
    return declared, dict(zip(extractor.outputs, lesson.teach.outputs(tf.constant(images)), strict=True))


def test_a_loss_reads_what_it_declares_and_nothing_else(lesson: Lesson, batch: Batch) -> None:
    declared, outputs = read_of_teacher(lesson)
    student, memory = lesson.extract(batch.images, training=True), lesson.memory()

    def terms(outputs: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
        """Of these outputs of the teacher alone: reading another one fails."""
        keras.utils.set_random_seed(3)
        found = {name: term.numpy() for name, term in lesson.method(student, lesson.teach(batch.images, outputs), batch).items()}
        for variable, was in memory:
            variable.assign(was)
        return found

    whole, alone = terms(outputs), terms({name: outputs[name] for name in declared})
    for name, term in whole.items():
        np.testing.assert_array_equal(alone[name], term)
    for output in declared:
        noise = tf.random.stateless_normal(outputs[output].shape, [0, 1])
        changed = terms({name: outputs[name] + (noise if name == output else 0.0) for name in declared})
        assert any(not np.allclose(changed[name], term) for name, term in whole.items()), f"{output} is declared and not read"


class Undeclared(Method):
    """Reads the embedding and declares the logits."""

    reads = ("logits",)

    def call(self, student: Features, teacher: Features, batch: Batch) -> dict[str, tf.Tensor]:
        return {self.name: tf.reduce_mean(teacher.embedding, axis=1) + 0.0 * student.logits[:, 0]}


class Misspelt(Undeclared):
    reads = ("logit",)


def test_a_method_that_reads_what_it_does_not_declare_is_refused(tiny: Callable[..., FeatureModel]) -> None:
    with pytest.raises(UserError, match="the method 'mine' must declare every .* Received: teacher.embedding"):
        Distiller(tiny(4, 1), tiny(6, 2), {"mine": Undeclared("mine")})
    with pytest.raises(UserError, match="`reads` names outputs of the teacher. Received: 'logit'. .*'logits'"):
        Distiller(tiny(4, 1), tiny(6, 2), {"mine": Misspelt("mine")})


def test_a_loss_is_the_same_in_a_graph(lesson: Lesson, batch: Batch) -> None:
    memory = lesson.memory()
    keras.utils.set_random_seed(3)
    eager = lesson.terms(batch)
    for variable, was in memory:
        variable.assign(was)
    keras.utils.set_random_seed(3)
    graph = tf.function(lesson.terms)(batch)
    assert set(eager) == set(graph)
    for name, term in eager.items():
        np.testing.assert_allclose(term, graph[name], rtol=1e-4, atol=1e-5)


def test_a_loss_falls_within_twenty_steps(lesson: Lesson, batch: Batch) -> None:
    variables = [*lesson.student.model.trainable_variables, *lesson.method.trainable_variables]
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(variables)
    memory = lesson.memory()

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            total = lesson.total(batch)
        gradients = tape.gradient(total, [variable.value for variable in variables])
        reached = [(gradient, variable) for gradient, variable in zip(gradients, variables, strict=True) if gradient is not None]
        optimizer.apply(*map(list, zip(*reached, strict=True)))
        for variable, was in memory:
            variable.assign(was)
        return total

    totals = [float(step()) for _ in range(21)]
    assert np.isfinite(totals).all()
    assert totals[-1] < 0.9 * totals[0]


def test_a_loss_serves_a_classifier_of_built_in_layers(lesson: Lesson, batch: Batch, tmp_path: Path) -> None:
    served = lesson.method.deploy(lesson.student.model)
    path = tmp_path / "served.keras"
    served.save(path)
    logits = served(batch.images, training=False)
    assert logits.shape == (EXAMPLES, 10)
    np.testing.assert_allclose(keras.models.load_model(path)(batch.images, training=False), logits, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module", params=smallest_of_each_family())
def network_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def network(network_name: str) -> keras.Model:
    """The smallest network of each family, for images of 32x32x3."""
    keras.utils.set_random_seed(0)
    model = plugins.build("models", network_name, image_shape=(32, 32, 3), num_classes=7)
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0  # one batch then gives the statistics, as of a network that has been trained
    model(np.random.default_rng(1).uniform(0, 255, (16, 32, 32, 3)), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    return model


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.float32)


def test_a_network_takes_raw_pixels_and_gives_float32_logits(network: keras.Model, pixels: np.ndarray) -> None:
    assert network.input.shape == (None, 32, 32, 3)
    logits = network(pixels, training=False)
    assert logits.shape == (3, 7)
    assert logits.dtype == tf.float32
    assert np.isfinite(logits).all()
    assert np.abs(logits).max() < 100  # it normalises pixels of 0..255 by itself
    sums = np.exp(logits).sum(axis=1)
    assert not np.allclose(sums, 1)  # these are no probabilities
    black_and_white = network(np.stack([np.zeros((32, 32, 3)), np.full((32, 32, 3), 255.0)]), training=False)
    assert np.abs(black_and_white[0] - black_and_white[1]).max() > 1e-3


def test_a_network_gives_float32_logits_in_mixed_precision(network_name: str) -> None:
    with precision("mixed_bfloat16"):
        model = plugins.build("models", network_name, image_shape=(32, 32, 3), num_classes=7)
    assert model.output.dtype == "float32"
    assert any(layer.compute_dtype == "bfloat16" for layer in model.layers)
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}


def test_a_network_is_the_same_from_a_keras_file(network: keras.Model, pixels: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    network.save(path)
    loaded = keras.models.load_model(path, safe_mode=True)
    np.testing.assert_array_equal(loaded(pixels, training=False), network(pixels, training=False))
    assert loaded.count_params() == network.count_params()


@pytest.mark.slow
def test_a_network_is_the_same_from_a_saved_model(network: keras.Model, pixels: np.ndarray, tmp_path: Path) -> None:
    network.export(str(tmp_path / "saved_model"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "saved_model"))
    np.testing.assert_allclose(served.serve(tf.constant(pixels)), network(pixels, training=False), rtol=1e-4, atol=1e-4)


def test_a_network_s_groups_are_found_and_its_tails_go_on_from_them(network: keras.Model, pixels: np.ndarray) -> None:
    model = FeatureModel.from_model(network, tap="output")
    assert len(model.groups) >= 2
    sizes = [group.height * group.width for group in model.groups]
    assert sizes == sorted(sizes, reverse=True)
    features = model.extractor()(pixels, training=False)
    logits = network(pixels, training=False)
    np.testing.assert_allclose(features.logits, logits, rtol=1e-5, atol=1e-6)
    assert features.embedding is not None
    for i, group in enumerate(model.groups):
        assert len(features.groups[i]) == len(group.blocks)
        assert all(tuple(block.shape) == (3, *group.shape) for block in features.groups[i])
        np.testing.assert_allclose(model.tail(i)(features.groups[i][-1], training=False), logits, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module", params=BUNDLED)
def source(request: pytest.FixtureRequest) -> Source:
    return plugins.build("data", request.param)


def test_a_data_set_holds_labelled_raw_pixels(source: Source) -> None:
    shapes = set()
    for images in (source.train, source.test):
        count = len(images.labels)
        assert images.labels.shape == (count,)
        assert np.issubdtype(images.labels.dtype, np.integer)
        shape = tuple(images.pixels.shape)
        assert shape[0] == count
        shapes.add(shape[1:])
        some = np.asarray(images.pixels[np.arange(min(count, 500))])
        assert some.dtype in (np.uint8, np.float32)
        assert some.min() >= 0
        assert 1 < some.max() <= 255  # of the range 0..255 and not 0..1
        assert set(np.unique(images.labels)) == set(range(len(source.class_names)))
    assert len(shapes) == 1
    assert len(shapes.pop()) == 3


def test_a_data_set_s_statistics_are_those_of_its_training_pixels(source: Source) -> None:
    count = len(source.train.labels)
    pixels = np.asarray(source.train.pixels[np.arange(count)], np.float64)
    assert len(source.mean) == len(source.std) == pixels.shape[-1]
    np.testing.assert_allclose(source.mean, pixels.mean((0, 1, 2)), rtol=1e-3)
    np.testing.assert_allclose(source.std, pixels.std((0, 1, 2)), rtol=1e-3)


def test_a_data_set_names_its_classes_and_itself(source: Source) -> None:
    assert len(source.class_names) == len(set(source.class_names)) >= 2
    assert all(isinstance(name, str) and name for name in source.class_names)
    assert source.description
    assert "\n" not in source.description


def test_a_data_set_is_the_same_each_time(source: Source, request: pytest.FixtureRequest) -> None:
    again, few = plugins.build("data", request.node.callspec.params["source"]), np.arange(20)
    np.testing.assert_array_equal(again.train.pixels[few], source.train.pixels[few])
    np.testing.assert_array_equal(again.test.labels, source.test.labels)


def test_a_data_set_s_test_images_are_not_trained_on(source: Source) -> None:
    trained, tested = (
        [np.asarray(image).tobytes() for image in images.pixels[np.arange(len(images.labels))]] for images in (source.train, source.test)
    )
    assert len(set(trained) & set(tested)) <= 0.01 * len(tested)
