"""Knowledge review: the hierarchical context loss and the fusion by hand, from deep to shallow only."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.losses.review_kd import hierarchical_context_loss, review
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.frozen_teacher import frozen

Tiny = Callable[..., FeatureModel]


def build(student: FeatureModel, teacher: FeatureModel, **options: object) -> Method:
    return plugins.build("losses", "review_kd", student, teacher, **options)


def batch(size: int = 5) -> Batch:
    images = np.random.default_rng(0).uniform(0, 255, (size, 8, 8, 1))
    return Batch(tf.constant(images, tf.float32), tf.zeros([size], tf.int32), tf.range(size, dtype=tf.int64))


def terms_of(method: Method, student: FeatureModel, teacher: FeatureModel) -> dict[str, tf.Tensor]:
    return method(student.extractor()(batch().images, training=True), frozen(teacher)(batch().images), batch())


def loss_of(difference: object) -> np.ndarray:
    difference = tf.constant(difference, tf.float32)
    return hierarchical_context_loss(difference + 3.0, tf.fill(difference.shape, 3.0)).numpy()


def test_the_context_loss_by_hand() -> None:
    # Full resolution: (1 + 9 + 25 + 49) / 4 = 21. Pooled to 1x1: 4^2 = 16, which counts 1/2.
    np.testing.assert_allclose(loss_of([[[[1], [3]], [[5], [7]]]]), [(21 + 16 / 2) / (1 + 1 / 2)], rtol=1e-6)
    # A feature of one place has no context.
    np.testing.assert_allclose(loss_of([[[[1, 3]]]]), [(1 + 9) / 2], rtol=1e-6)


def test_the_context_loss_pools_to_four_two_and_one_of_falling_weight() -> None:
    corner = np.zeros((1, 8, 8, 1))
    corner[0, 0, 0] = 64
    # Squares of 64, 64/4, 64/16 and 64/64 in one of 64, 16, 4 and 1 places.
    levels = [64**2 / 64, 16**2 / 16, 4**2 / 4, 1]
    np.testing.assert_allclose(loss_of(corner), [(levels[0] + levels[1] / 2 + levels[2] / 4 + levels[3] / 8) / (15 / 8)], rtol=1e-6)
    board = np.indices((8, 8)).sum(axis=0).reshape(1, 8, 8, 1) % 2 * 2 - 1
    np.testing.assert_allclose(loss_of(board), [1 / (15 / 8)], rtol=1e-6)
    # At 4x4 the pooled 4x4 would be the feature itself: 2x2 counts 1/2, and 1x1 counts 1/4.
    np.testing.assert_allclose(loss_of(board[:, :4, :4]), [1 / (7 / 4)], rtol=1e-6)


def test_equal_features_give_zero_and_no_gradient() -> None:
    feature = tf.random.stateless_normal([2, 8, 8, 3], [0, 1])
    with tf.GradientTape() as tape:
        tape.watch(feature)
        value = hierarchical_context_loss(feature, tf.stop_gradient(feature))
    np.testing.assert_array_equal(value, [0, 0])
    np.testing.assert_array_equal(tape.gradient(value, feature), np.zeros((2, 8, 8, 3)))


def transparent(model: keras.Model) -> keras.Model:
    """Sets the kernels so that convolutions hand on what they get, and the attention to 3/4 for the level itself, 1/4 for the deeper."""
    for layer in model.layers:
        if layer.name.endswith("_attention"):
            # Sigmoids of log 3 and -log 3.
            layer.set_weights([np.zeros(layer.kernel.shape), np.log([3, 1 / 3])])
        elif isinstance(layer, keras.layers.Conv2D):
            kernel = np.zeros(layer.kernel.shape)
            kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = 1
            layer.set_weights([kernel])
    return model


def test_the_fusion_by_hand() -> None:
    model = transparent(review([(2, 2, 1), (1, 1, 1)], [(2, 2, 1), (1, 1, 1)], width=1))
    # In inference mode BatchNorm divides by sqrt(1 + 1e-5), twice on each way.
    shallow, deep = model([tf.constant([[[[4.0], [8.0]], [[0.0], [-4.0]]]]), tf.constant([[[[12.0]]]])], training=False)
    np.testing.assert_allclose(deep, [[[[12]]]], rtol=1e-4)
    np.testing.assert_allclose(shallow[0, :, :, 0], [[3 + 3, 6 + 3], [3, -3 + 3]], rtol=1e-4, atol=1e-4)


def test_features_come_to_the_teacher_s_resolution_by_nearest_neighbours() -> None:
    model = transparent(review([(4, 4, 1), (1, 2, 1)], [(2, 2, 1), (2, 2, 1)], width=1))
    wide = np.arange(16.0).reshape(1, 4, 4, 1)
    shallow, deep = model([tf.constant(wide, tf.float32), tf.constant([[[[4.0], [8.0]]]])], training=False)
    np.testing.assert_allclose(deep[0, :, :, 0], [[4, 8], [4, 8]], rtol=1e-4)
    # Every second place of 3/4 of the level and 1/4 of the deeper one.
    np.testing.assert_allclose(shallow[0, :, :, 0], 0.75 * np.array([[0, 2], [8, 10]]) + 0.25 * np.array([[4, 8], [4, 8]]), rtol=1e-4)


def test_shallow_levels_learn_with_the_deeper_ones_and_not_the_other_way_round() -> None:
    model = review([(4, 4, 3), (2, 2, 5)], [(4, 4, 3), (2, 2, 5)], width=4)
    features = [tf.random.stateless_normal([2, 4, 4, 3], [0, 1]), tf.random.stateless_normal([2, 2, 2, 5], [0, 2])]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(features)
        shallow, deep = model(features, training=False)
    assert all(np.abs(gradient).max() > 0 for gradient in tape.gradient(shallow, features))
    assert tape.gradient(deep, features)[0] is None


def test_there_is_a_term_for_each_group_and_for_the_embedding_where_both_networks_have_one(tiny: Tiny) -> None:
    student, teacher = tiny(4, 1, seed=1), tiny(6, 2, seed=2)
    terms = terms_of(build(student, teacher), student, teacher)
    assert list(terms) == ["review_kd/group1", "review_kd/group2", "review_kd/embedding"]
    assert all(term.shape == (5,) for term in terms.values())
    pixels = keras.layers.Input((8, 8, 1))
    x = keras.layers.ReLU(name="only")(keras.layers.Conv2D(10, 3, name="conv")(pixels))
    headless = FeatureModel.from_model(keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(x)), [["only"]])
    single = FeatureModel.from_model(teacher.model, [["group1_block1"]])
    for pair in ((headless, single), (single, headless)):
        assert list(terms_of(build(*pair), *pair)) == ["review_kd/group1"]


def test_the_embedding_s_term_is_the_mean_squared_difference_from_the_teacher_s(tiny: Tiny) -> None:
    student, teacher = tiny(4, 1, seed=1), tiny(6, 2, seed=2)
    method = build(student, teacher)
    out = next(layer for layer in method._flatten_layers() if layer.name == "level3_out_conv")
    out.set_weights([np.zeros(out.kernel.shape)])  # what comes of it, behind a BatchNorm of offset 0, is 0
    pooled = frozen(teacher)(batch().images).groups[1][-1]
    embedding = tf.reduce_mean(tf.nn.relu(pooled), axis=[1, 2])
    np.testing.assert_allclose(terms_of(method, student, teacher)["review_kd/embedding"], np.square(embedding).mean(axis=1), rtol=1e-4)


def parameters(method: Method) -> int:
    return sum(int(np.prod(variable.shape)) for variable in method.trainable_variables)


def test_the_width_is_that_of_the_deepest_level_up_to_a_limit(tiny: Tiny) -> None:
    # Levels of 4, 8 and 8 channels become 6, 12 and 12; W is the width in between. 1x1 kernels and BatchNorm, two attentions of 2W
    # to 2 with a bias, 3x3 kernels and BatchNorm.
    def expected(width: int) -> int:
        return 20 * width + 3 * 2 * width + 2 * (2 * width * 2 + 2) + 9 * width * 30 + 2 * 30

    student, teacher = tiny(4, 1), tiny(6, 2)
    assert parameters(build(student, teacher)) == expected(8)
    assert parameters(build(student, teacher, max_width=3)) == expected(3)
    # An embedding of 520: levels of 260, 520 and 520 channels.
    assert parameters(build(tiny(260, 1), teacher)) == expected(512) + (260 + 520 + 520 - 20) * 512


def test_a_student_of_another_resolution_is_brought_to_the_teacher_s(tiny: Tiny) -> None:
    shifted, teacher = (
        FeatureModel.from_model(tiny().model, [["group2_block1"]]),
        FeatureModel.from_model(tiny(6).model, [["group1_block1"]]),
    )
    for pair in ((shifted, teacher), (teacher, shifted)):
        assert (terms_of(build(*pair), *pair)["review_kd/group1"] > 0).numpy().all()


def test_it_compiles_with_xla() -> None:
    """As Keras compiles a training where there is one GPU; the gradient of Keras' own nearest neighbours does not."""
    model = review([(2, 2, 1), (1, 1, 1)], [(4, 4, 1), (1, 1, 1)], width=1)
    features = [tf.ones([2, 2, 2, 1]), tf.ones([2, 1, 1, 1])]

    def gradient() -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(features)
            shallow, _ = model(features, training=False)
            loss = hierarchical_context_loss(shallow, tf.zeros([2, 4, 4, 1]))
        return tape.gradient(loss, features[1])

    np.testing.assert_allclose(tf.function(gradient, jit_compile=True)(), gradient(), rtol=1e-5)


def test_its_weight_is_the_code_s_default(tiny: Tiny) -> None:
    assert build(tiny(), tiny()).recommended_weight == 1.0


@pytest.mark.parametrize("width", [0, -1, 2.5])
def test_a_width_must_be_an_integer_of_at_least_one(width: float, tiny: Tiny) -> None:
    with pytest.raises(UserError, match="max_width of review_kd must be an integer of at least 1. Received"):
        build(tiny(), tiny(), max_width=width)


def test_networks_with_another_number_of_groups_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="the same number of layer groups"):
        build(FeatureModel.from_model(tiny().model, [["group1_block1"]]), tiny())
