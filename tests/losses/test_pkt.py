"""Neighbour probabilities: the value by hand, what it does not depend on, and safe gradients where vectors vanish or oppose."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features

BATCH = Batch(tf.zeros([2, 8, 8, 1]), tf.constant([0, 1]), None)


@pytest.fixture(scope="module")
def method(tiny: Callable[..., FeatureModel]) -> Method:
    return plugins.build("losses", "pkt", tiny(4), tiny(6))


def of(embedding: Sequence[Sequence[float]]) -> Features:
    return Features(tf.zeros([len(embedding), 10]), (), tf.convert_to_tensor(embedding, tf.float32), {})


def test_the_value_by_hand(method: Method) -> None:
    # Cosines 0 and 1 are the similarities 1/2 and 1: the teacher's rows are (2/3, 1/3) and (1/3, 2/3), the student's (1/2, 1/2).
    teacher, student = of([[2.0, 0.0], [0.0, 5.0]]), of([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    terms = method(student, teacher, BATCH)
    row = 2 / 3 * np.log(4 / 3) + 1 / 3 * np.log(2 / 3)
    assert list(terms) == ["pkt"]
    assert terms["pkt"].shape == ()
    np.testing.assert_allclose(terms["pkt"], 2 * row / 4, rtol=1e-5)  # two rows, over 2 x 2 pairs


def test_it_is_the_divergence_of_the_student_from_the_teacher_and_not_the_reverse(method: Method) -> None:
    # The networks of the test before, exchanged: the rows are (1/2, 1/2), seen from (2/3, 1/3).
    teacher, student = of([[1.0, 0.0], [3.0, 0.0]]), of([[2.0, 0.0], [0.0, 5.0]])
    row = 0.5 * np.log(0.5 / (2 / 3)) + 0.5 * np.log(0.5 / (1 / 3))
    np.testing.assert_allclose(method(student, teacher, BATCH)["pkt"], 2 * row / 4, rtol=1e-5)


def test_directions_alone_count(method: Method) -> None:
    embedding = np.random.default_rng(0).normal(size=(6, 4))
    scales = np.array([[0.1], [1.0], [2.0], [5.0], [10.0], [0.5]])
    np.testing.assert_allclose(method(of(scales * embedding), of(embedding), BATCH)["pkt"], 0, atol=1e-6)


def test_gradients_are_finite_where_embeddings_vanish_or_oppose(method: Method) -> None:
    embedding = tf.constant([[0.0, 0.0], [1e-3, 1.0], [-1e-3, -1.0], [1e-3, 1.0]])
    with tf.GradientTape() as tape:
        tape.watch(embedding)
        term = method(Features(tf.zeros([4, 10]), (), embedding, {}), of([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), BATCH)["pkt"]
    assert np.isfinite(term)
    assert np.isfinite(tape.gradient(term, embedding)).all()


def test_the_weight_is_repdistiller_s(method: Method) -> None:
    assert method.recommended_weight == 30000


def test_a_network_without_embedding_is_refused(tiny: Callable[..., FeatureModel]) -> None:
    pixels = keras.layers.Input((8, 8, 1))
    x = keras.layers.ReLU(name="block")(keras.layers.Conv2D(10, 3)(pixels))
    pooled = FeatureModel.from_model(keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(x), name="pooled"), [["block"]])
    for pair in ((pooled, tiny()), (tiny(), pooled)):
        with pytest.raises(UserError, match="pkt reads the embedding.*Received: 'pooled'"):
            plugins.build("losses", "pkt", *pair)
