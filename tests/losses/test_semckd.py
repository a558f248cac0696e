"""SemCKD: attention and calibrated distances by hand, similarities within the batch, all pairs of layers."""

import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.frozen_teacher import frozen

Tiny = Callable[..., FeatureModel]


def build(student: FeatureModel, teacher: FeatureModel, **options: object) -> Method:
    return plugins.build("losses", "semckd", student, teacher, **options)


def of(*groups: np.ndarray) -> Features:
    blocks = tuple((tf.constant(group, tf.float32),) for group in groups)
    return Features(tf.zeros([len(groups[0]), 10]), (), None, {"output": blocks})


def batch(size: int) -> Batch:
    images = np.random.default_rng(0).uniform(0, 255, (size, 8, 8, 1))
    return Batch(tf.constant(images, tf.float32), tf.zeros([size], tf.int32), tf.range(size, dtype=tf.int64))


def values(method: Method, student: Features, teacher: Features) -> list[np.ndarray]:
    return [term.numpy() for term in method(student, teacher, batch(len(student.logits))).values()]


def layer(method: Method, name: str) -> keras.layers.Layer:
    return next(found for found in method._flatten_layers() if found.name == name)


def constant_embedding(method: Method, name: str, value: Sequence[float]) -> None:
    """Lets a query or a key be one vector for all examples."""
    for part, bias in (("hidden", None), ("out", value)):
        kernel, _ = layer(method, f"{name}_{part}").get_weights()
        layer(method, f"{name}_{part}").set_weights([0 * kernel, np.zeros(kernel.shape[1]) if bias is None else np.array(bias)])


def silent_connectors(method: Method, groups: int = 2) -> None:
    """Lets every connector give 0: a distance is then the mean square of the teacher's feature."""
    for i in range(1, groups + 1):
        for j in range(1, groups + 1):
            convolution = layer(method, f"connector{i}_{j}_conv3")
            convolution.set_weights([np.zeros(convolution.kernel.shape)])


def one_each(tiny: Tiny, **options: object) -> Method:
    """For a student of 8x8x4 and 4x4x8 and a teacher of the same shapes, with silent connectors."""
    method = build(tiny(), tiny(), **options)
    silent_connectors(method)
    return method


SHAPES = ((8, 8, 4), (4, 4, 8))


def features(*levels: float, size: int = 2) -> Features:
    return of(*(np.full((size, *shape), level) for shape, level in zip(SHAPES, levels, strict=True)))


def test_the_value_by_hand(tiny: Tiny) -> None:
    method = one_each(tiny, similarities=8)
    # Vectors are brought to length 1: the queries are (1, 0) and (0, 1), the keys (1, 0) and (0.6, 0.8).
    for name, value in (("query1", (2, 0)), ("query2", (0, 5)), ("key1", (3, 0)), ("key2", (3, 4))):
        constant_embedding(method, name, value)
    terms = method(features(1, 1), features(2, 3), batch(2))
    assert list(terms) == ["semckd/group1", "semckd/group2"]

    def weighted(first: float, second: float) -> float:
        total = math.exp(first) + math.exp(second)
        return (math.exp(first) * 2**2 + math.exp(second) * 3**2) / total

    # Half of each, because the student has two layers.
    np.testing.assert_allclose(terms["semckd/group1"], [weighted(1, 0.6) / 2] * 2, rtol=1e-5)
    np.testing.assert_allclose(terms["semckd/group2"], [weighted(0, 0.8) / 2] * 2, rtol=1e-5)


def test_the_attention_reads_the_similarities_of_an_example_to_the_others(tiny: Tiny) -> None:
    method = one_each(tiny, similarities=4)
    constant_embedding(method, "key1", [1.0])
    constant_embedding(method, "key2", [-1.0])
    constant_embedding(method, "query2", [1.0])
    # The query of the first layer is the sign of the similarity to the first example: relu(s) - relu(-s) over |s|.
    hidden = np.zeros((4, 2))
    hidden[0] = 1, -1
    layer(method, "query1_hidden").set_weights([hidden, np.zeros(2)])
    layer(method, "query1_out").set_weights([np.array([[1.0], [-1.0]]), np.zeros(1)])
    student = np.ones((3, 8, 8, 4))
    student[1] *= -2
    student[2, :, :, :1] *= -1  # alike in three of four channels
    first, second = values(method, of(student, np.ones((3, 4, 4, 8))), features(2, 3, size=3))
    here = (math.exp(1) * 4 + math.exp(-1) * 9) / (math.exp(1) + math.exp(-1)) / 2
    there = (math.exp(-1) * 4 + math.exp(1) * 9) / (math.exp(1) + math.exp(-1)) / 2
    np.testing.assert_allclose(first, [here, there, here], rtol=1e-5)
    np.testing.assert_allclose(second, [here] * 3, rtol=1e-5)


def test_only_the_first_so_many_examples_of_a_batch_are_compared_with(tiny: Tiny) -> None:
    student, teacher = (np.random.default_rng(seed).normal(size=(6, *SHAPES[0])) for seed in (0, 1))
    deep = np.ones((6, *SHAPES[1]))
    method = one_each(tiny, similarities=4)
    before = values(method, of(student, deep), of(teacher, deep))[0]
    student[5] += 1
    after = values(method, of(student, deep), of(teacher, deep))[0]
    np.testing.assert_array_equal(after[:5], before[:5])
    constant_embedding(method, "key1", [1.0])
    constant_embedding(method, "key2", [-1.0])
    hidden = np.zeros((4, 2))
    hidden[3] = 1, -1
    layer(method, "query1_hidden").set_weights([hidden, np.zeros(2)])
    layer(method, "query1_out").set_weights([np.array([[1.0], [-1.0]]), np.zeros(1)])
    before = values(method, of(student, deep), of(teacher, deep))[0]
    student[3] *= -1
    after = values(method, of(student, deep), of(teacher, deep))[0]
    # The similarity to the fourth example turns for all but itself.
    assert [bool(np.isclose(a, b)) for a, b in zip(after, before, strict=True)] == [False, False, False, True, False, False]


def test_layers_of_different_resolutions_meet_at_the_lower_one(tiny: Tiny) -> None:
    method = one_each(tiny)
    for name in ("query1", "query2", "key1"):
        constant_embedding(method, name, [1.0] + [0.0] * 15)
    constant_embedding(method, "key2", [-1.0] + [0.0] * 15)
    board = np.broadcast_to((np.indices((8, 8)).sum(axis=0) % 2 * 2 - 1)[np.newaxis, :, :, np.newaxis], (2, 8, 8, 4))
    teacher = of(board, np.zeros((2, *SHAPES[1])))
    first, second = values(method, features(1, 1), teacher)
    # The teacher's first layer alternates between -1 and 1: its square is 1 at 8x8, and 0 where it is pooled to 4x4.
    np.testing.assert_allclose(first, [math.exp(1) / (math.exp(1) + math.exp(-1)) / 2] * 2, rtol=1e-5)
    np.testing.assert_allclose(second, [0, 0], atol=1e-6)


def test_connectors_project_the_student_s_feature(tiny: Tiny) -> None:
    single = FeatureModel.from_model(tiny().model, [["group1_block1"]])
    method = build(single, single)
    feature = np.random.default_rng(0).normal(size=(3, *SHAPES[0]))
    connector = layer(method, "connector1_1")
    projected = connector(tf.constant(feature, tf.float32), training=True).numpy()
    target = np.ones((3, *SHAPES[0]))
    np.testing.assert_allclose(values(method, of(feature), of(target))[0], np.square(projected - 1).mean((1, 2, 3)), rtol=1e-4)


def parameters(method: Method) -> int:
    return sum(int(np.prod(variable.shape)) for variable in method.trainable_variables)


def test_all_pairs_of_layers_have_a_connector_and_every_layer_an_embedding(tiny: Tiny) -> None:
    def connectors(source: int, target: int) -> int:
        width = 2 * target
        return source * width + 9 * width * width + width * target + 2 * 2 * width

    # Dense layers of 64 to 32 and to 16, for two layers of each network.
    embeddings = 4 * (65 * 32 + 33 * 16)
    expected = embeddings + sum(connectors(source, target) for source in (4, 8) for target in (6, 12))
    assert parameters(build(tiny(4, 1), tiny(6, 2))) == expected == 24_832


def test_the_networks_may_have_different_numbers_of_groups(tiny: Tiny) -> None:
    student, teacher = FeatureModel.from_model(tiny(4, 1, seed=1).model, [["group1_block1"]]), tiny(6, 2, seed=2)
    data = batch(5)
    method = build(student, teacher)
    terms = method(student.extractor(("output",))(data.images, training=True), frozen(teacher, ("output",))(data.images), data)
    assert list(terms) == ["semckd/group1"]
    assert terms["semckd/group1"].shape == (5,)


def test_features_of_zero_have_finite_gradients(tiny: Tiny) -> None:
    method = build(tiny(), tiny())
    with tf.GradientTape() as tape:
        terms = method(features(0, 0), features(1, 3), batch(2))
        total = tf.add_n([tf.reduce_sum(term) for term in terms.values()])
    gradients = tape.gradient(total, [variable.value for variable in method.trainable_variables])
    # Not only finite: the normalisation of a vector of 0 would bring a factor of 1e6.
    assert all(np.abs(tf.convert_to_tensor(gradient)).max() < 100 for gradient in gradients)


def test_its_weight_is_the_paper_s(tiny: Tiny) -> None:
    assert build(tiny(), tiny()).recommended_weight == 50.0


@pytest.mark.parametrize("similarities", [3, 0, 8.0])
def test_too_few_similarities_are_refused(similarities: float, tiny: Tiny) -> None:
    with pytest.raises(UserError, match="similarities of semckd must be an integer of at least 4. Received"):
        build(tiny(), tiny(), similarities=similarities)
