"""CRD: the contrastive loss by hand, its constant Z, its memories, and which negatives are drawn."""

import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.distillation.distiller import Distiller
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Images, Split, Splits
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features

Tiny = Callable[..., FeatureModel]


def prepared(tiny: Tiny, labels: Sequence[int], *, seed: int = 0, **options: object) -> Method:
    """The method for training images of these labels; embeddings of the networks have 8 dimensions."""
    network = tiny(4)
    keras.utils.set_random_seed(seed)
    method = plugins.build("losses", "crd", network, network, **options)
    images = Images(np.zeros((len(labels), 8, 8, 1), np.float32), np.array(labels))
    method.prepare(network, Split(images, np.arange(len(labels))), None)
    return method


def test_the_classes_of_soft_labels_are_excluded_like_classes(tiny: Tiny) -> None:
    network = tiny(4)
    of_classes = prepared(tiny, LABELS, exclude="class")
    of_soft = plugins.build("losses", "crd", network, network, exclude="class")
    soft = 0.8 * np.eye(3)[LABELS] + 0.2 / 3
    of_soft.prepare(network, Split(Images(np.zeros((6, 8, 8, 1)), soft), np.arange(6)), None)
    for name in ("_order", "_first", "_excluded"):
        np.testing.assert_array_equal(getattr(of_soft, name), getattr(of_classes, name))


def plane(tiny: Tiny, labels: Sequence[int], **options: object) -> Method:
    """As `prepared`, with heads that keep the first two dimensions of the embeddings, which are given as units already."""
    method = prepared(tiny, labels, embedding_size=2, **options)
    for head in method.heads:
        head.set_weights([np.eye(8, 2), np.zeros(2)])
    return method


def of(*vectors: Sequence[float]) -> Features:
    embedding = tf.pad(tf.constant(vectors, tf.float32), [[0, 0], [0, 8 - len(vectors[0])]])
    return Features(tf.zeros([len(vectors), 10]), (), embedding, {})


def batch(*index: int) -> Batch:
    return Batch(tf.zeros([len(index), 8, 8, 1]), tf.zeros([len(index)], tf.int32), tf.constant(index, tf.int64))


def loss(method: Method, student: Features, teacher: Features, *index: int) -> np.ndarray:
    return method(student, teacher, batch(*index))["crd"].numpy()


def recall(method: Method, student: object, teacher: object) -> None:
    """Sets the memories."""
    for memory, value in zip(method.memories, (student, teacher), strict=True):
        memory.assign(np.array(value))


def started(method: Method, z: float) -> None:
    """Sets both Z, as if the first step had been done."""
    for log_z in method.log_z:
        log_z.assign(math.log(z))
    method.step.assign(1)


def nce(positive: float, negatives: Sequence[float], share: float) -> float:
    """-log P / (P + m/n) of the positive, - log (m/n) / (P + m/n) of the negatives, with m/n the share."""
    return -math.log(positive / (positive + share)) - sum(math.log(share / (p + share)) for p in negatives)


STUDENT, TEACHER = [[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [1.0, 0.0]]


def test_the_value_by_hand(tiny: Tiny) -> None:
    # Two images: the only negative of the first is the second.
    method = plane(tiny, [0, 1], temperature=1.0)
    recall(method, STUDENT, TEACHER)
    value = loss(method, of([1.0, 0.0]), of([0.0, 1.0]), 0)
    # The student's vector to the teacher's memory: 0.6 and 1. Z is 2 (images) times the mean of exp(0.6) and exp(1).
    z = math.exp(0.6) + math.exp(1)
    ours = nce(math.exp(0.6) / z, [math.exp(1) / z], 1 / 2)
    # The teacher's vector to the student's memory: 0 and 1.
    z = 1 + math.exp(1)
    theirs = nce(1 / z, [math.exp(1) / z], 1 / 2)
    np.testing.assert_allclose(value, [ours + theirs], rtol=1e-5)


def test_embeddings_are_brought_to_length_one(tiny: Tiny) -> None:
    values = []
    for length in (1.0, 5.0):
        method = plane(tiny, [0, 1], temperature=1.0)
        recall(method, STUDENT, TEACHER)
        values.append(loss(method, of([length, 0.0]), of([0.0, length]), 0))
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)


def test_z_is_estimated_at_the_first_step_and_kept(tiny: Tiny) -> None:
    method = plane(tiny, [0, 1], temperature=1.0)
    recall(method, STUDENT, TEACHER)
    loss(method, of([1.0, 0.0]), of([0.0, 1.0]), 0)
    kept = math.exp(0.6) + math.exp(1), 1 + math.exp(1)
    np.testing.assert_allclose(np.exp([float(log_z.numpy()) for log_z in method.log_z]), kept, rtol=1e-5)
    recall(method, STUDENT, TEACHER)
    value = loss(method, of([0.0, 1.0]), of([1.0, 0.0]), 0)
    # Now 0.8 and 0 to the teacher's memory, and 1 and 0 to the student's.
    ours, theirs = nce(math.exp(0.8) / kept[0], [1 / kept[0]], 1 / 2), nce(math.exp(1) / kept[1], [1 / kept[1]], 1 / 2)
    np.testing.assert_allclose(value, [ours + theirs], rtol=1e-5)
    assert method.step.numpy() == 2


def test_a_memory_moves_half_the_way_to_the_embedding_and_back_to_length_one(tiny: Tiny) -> None:
    method = plane(tiny, [0, 1])
    recall(method, STUDENT, TEACHER)
    loss(method, of([0.0, 1.0]), of([0.0, 1.0]), 0)
    ours, theirs = (memory.numpy() for memory in method.memories)
    np.testing.assert_allclose(ours, [[math.sqrt(0.5), math.sqrt(0.5)], [0, 1]], rtol=1e-5, atol=1e-6)
    # (0.3, 0.4 + 0.5) over the root of 0.09 + 0.81.
    np.testing.assert_allclose(theirs, [[0.3 / math.sqrt(0.9), 0.9 / math.sqrt(0.9)], [1, 0]], rtol=1e-5, atol=1e-6)
    method = plane(tiny, [0, 1], momentum=0.0)
    loss(method, of([0.6, 0.8], [0.0, -1.0]), of([1.0, 0.0], [0.8, -0.6]), 1, 0)
    np.testing.assert_allclose(method.memories[0], [[0, -1], [0.6, 0.8]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(method.memories[1], [[0.8, -0.6], [1, 0]], rtol=1e-5, atol=1e-6)


LABELS = [1, 0, 1, 0, 2, 1]


def test_by_default_negatives_are_of_other_classes_as_many_as_there_are_other_images(tiny: Tiny) -> None:
    method = plane(tiny, LABELS)
    # Images of class 1 are at (1, 0), the others at (0, 1): a negative of the own class would show.
    memory = [[1.0, 0.0] if label == 1 else [0.0, 1.0] for label in LABELS]
    recall(method, memory, memory)
    started(method, z=100.0)
    value = loss(method, of([1.0, 0.0], [1.0, 0.0]), of([1.0, 0.0], [1.0, 0.0]), 0, 5)
    # Five negatives, not 16384; temperature 0.07. Both directions are alike.
    expected = 2 * nce(math.exp(1 / 0.07) / 100, [1 / 100] * 5, 5 / 6)
    np.testing.assert_allclose(value, [expected] * 2, rtol=1e-5)


def test_classes_may_count_as_negatives_but_the_example_itself_does_not(tiny: Tiny) -> None:
    method = plane(tiny, LABELS, exclude="example", negatives=4, temperature=1.0)
    memory = [[0.0, 1.0]] * 6
    memory[2] = [1.0, 0.0]
    recall(method, memory, memory)
    started(method, z=10.0)
    value = loss(method, of([1.0, 0.0]), of([1.0, 0.0]), 2)
    np.testing.assert_allclose(value, [2 * nce(math.exp(1) / 10, [1 / 10] * 4, 4 / 6)], rtol=1e-5)
    # Now the others of its class (images 0 and 5) are at (-1, 0), and some are drawn.
    memory[0] = memory[5] = [-1.0, 0.0]
    recall(method, memory, memory)
    lower = loss(method, of([1.0, 0.0]), of([1.0, 0.0]), 2)
    assert lower < value - 1e-3


def test_all_images_of_other_classes_are_drawn_alike(tiny: Tiny) -> None:
    method = prepared(tiny, [1, 0, 1, 2, 1, 2, 2], negatives=6)
    drawn = method._draw(tf.fill([2000], tf.constant(2, tf.int64))).numpy()
    assert drawn.shape == (2000, 6)
    # 12,000 draws of four images: 3,000 each, with a deviation of sqrt(12,000 1/4 3/4) = 47.
    counts = np.bincount(drawn.reshape(-1), minlength=7)
    assert list(counts[[0, 2, 4]]) == [0, 0, 0]
    assert np.abs(counts[[1, 3, 5, 6]] - 3000).max() < 4 * 47


def draws(tiny: Tiny, seed: int) -> list[float]:
    """The loss of the same example with the same memories in four steps: only the negatives differ."""
    method = plane(tiny, LABELS, negatives=3, seed=seed, temperature=1.0)
    values = []
    for _ in range(4):
        recall(method, *np.random.default_rng(0).normal(size=(2, 6, 2)))
        values.append(float(loss(method, of([1.0, 0.0]), of([0.0, 1.0]), 0)[0]))
        for log_z in method.log_z:
            log_z.assign(0.0)
    return values[1:]


def test_a_seed_gives_the_same_negatives_bit_for_bit_and_each_step_others(tiny: Tiny) -> None:
    values = draws(tiny, 5)
    assert len({round(value, 4) for value in values}) > 1
    assert draws(tiny, 5) == values
    assert draws(tiny, 6) != values


def test_the_memories_start_at_random_vectors_of_about_length_one(tiny: Tiny) -> None:
    ours, theirs = (memory.numpy() for memory in prepared(tiny, [0, 1] * 50).memories)
    assert ours.shape == theirs.shape == (100, 128)
    assert not np.array_equal(ours, theirs)
    np.testing.assert_allclose(np.square(ours).sum(axis=1).mean(), 1, atol=0.05)
    np.testing.assert_allclose(np.abs(ours).max(), math.sqrt(3 / 128), rtol=0.01)


def test_an_embedding_of_zero_has_a_gradient_of_usual_size(tiny: Tiny) -> None:
    method = prepared(tiny, LABELS)
    with tf.GradientTape() as tape:
        value = method(of([0.0]), of([0.0]), batch(0))["crd"]
    biases = [head.bias.value for head in method.heads]
    # The normalisation of a vector of 0 would bring a factor of 1e6.
    assert all(np.abs(gradient).max() < 1000 for gradient in tape.gradient(value, biases))


def test_a_training_numbers_its_steps_and_remembers_all_images(tiny: Tiny, splits: Splits) -> None:
    student, teacher, data = tiny(seed=2), tiny(6, 2, seed=1), splits.train + splits.search
    method = plugins.build("losses", "crd", student, teacher)
    method.prepare(teacher, data, None)
    distiller = Distiller(student, teacher, {"crd": method})
    distiller.compile(optimizer=keras.optimizers.SGD(0.01))
    rows = distiller.fit(data.batches(20, seed=0), epochs=2, steps_per_epoch=3, shuffle=False, verbose=0).history
    # Two epochs of three batches; that the Distiller asked for the names of the terms counts as none.
    assert method.step.numpy() == 6
    for memory in method.memories:
        np.testing.assert_allclose(np.square(memory.numpy()).sum(axis=1), np.ones(60), rtol=1e-4)
    np.testing.assert_allclose(rows["total_loss"], np.add(rows["cross_entropy"], np.multiply(0.8, rows["crd"])), rtol=1e-4)


def test_replicas_share_memory_and_z_and_draw_negatives_of_their_own(tiny: Tiny, two_replicas: tf.distribute.Strategy) -> None:
    with two_replicas.scope():
        method = plane(tiny, [*LABELS, 0, 2], negatives=3, momentum=0.0, temperature=1.0)
        recall(method, [[1.0, 0.0]] * 8, [[1.0, 0.0]] * 8)
        vectors = tf.constant([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])

        @tf.function
        def step(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            features = of(*[[0.0, 0.0]] * 2)._replace(embedding=tf.pad(tf.gather(vectors, index), [[0, 0], [0, 6]]))
            value = method(features, features, batch(0, 0)._replace(index=index))["crd"]
            return value, method.log_z[0] + 0.0

        # Images 0 and 1 on the one device, 2 and 3 on the other.
        replica_index = two_replicas.experimental_distribute_values_from_function(
            lambda context: tf.constant([[0, 1], [2, 3]][context.replica_id_in_sync_group], tf.int64)
        )
        _, log_z = two_replicas.run(step, args=(replica_index,))
        # All scores are 1 on the one device and 0 on the other: log Z is log 8 + 1 and log 8.
        np.testing.assert_allclose(two_replicas.experimental_local_results(log_z), [math.log(8) + 0.5] * 2, rtol=1e-5)
        for copy in two_replicas.experimental_local_results(method.memories[0].value):
            np.testing.assert_allclose(copy[:4], vectors, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(copy[4:], [[1, 0]] * 4)
        assert [int(copy) for copy in two_replicas.experimental_local_results(method.step.value)] == [1, 1]
        # The same examples on both devices: what differs between these is the draw.
        recall(method, *np.random.default_rng(0).normal(size=(2, 8, 2)))
        same = two_replicas.experimental_distribute_values_from_function(lambda context: tf.constant([0, 1], tf.int64))
        values, _ = two_replicas.run(step, args=(same,))
        ours, theirs = two_replicas.experimental_local_results(values)
        assert not np.allclose(ours, theirs)


def test_the_distiller_names_its_terms_without_a_step(tiny: Tiny) -> None:
    method = prepared(tiny, LABELS)
    before = method.memories[0].numpy()
    distiller = Distiller(tiny(4, seed=1), tiny(4, seed=2), {"crd": method})
    assert "crd" in [metric.name for metric in distiller.metrics]
    assert method.step.numpy() == 0
    np.testing.assert_array_equal(method.memories[0], before)


def test_it_must_be_prepared(tiny: Tiny) -> None:
    method = plugins.build("losses", "crd", tiny(), tiny())
    with pytest.raises(UserError, match="call prepare"):
        Distiller(tiny(), tiny(), {"crd": method})


def test_images_of_one_class_have_no_negatives(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="negatives of crd are drawn from other classes. Received: 3 training images, all of one class"):
        prepared(tiny, [4, 4, 4])
    assert prepared(tiny, [4, 4, 4], exclude="example") is not None


def test_a_network_without_an_embedding_is_refused(tiny: Tiny) -> None:
    pixels = keras.layers.Input((8, 8, 1))
    x = keras.layers.ReLU(name="only")(keras.layers.Conv2D(10, 3)(pixels))
    headless = FeatureModel.from_model(keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(x), name="headless"), [["only"]])
    for pair in ((tiny(), headless), (headless, tiny())):
        with pytest.raises(UserError, match="crd reads the embedding, the input of the last Dense layer. Received: 'headless'"):
            plugins.build("losses", "crd", *pair)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": 0}, "negatives of crd must be an integer of at least 1. Received: 0"),
        ({"negatives": 2.5}, "negatives of crd must be an integer of at least 1. Received: 2.5"),
        ({"embedding_size": 0}, "embedding_size of crd must be an integer of at least 1. Received: 0"),
        ({"temperature": 0.0}, "temperature of crd must be above 0. Received: 0.0"),
        ({"momentum": 1.0}, "momentum of crd must be from 0 to below 1. Received: 1.0"),
        ({"momentum": -0.1}, "momentum of crd must be from 0 to below 1. Received: -0.1"),
        ({"exclude": "classes"}, "unknown value of exclude of crd. Received: 'classes'. Did you mean 'class'"),
    ],
)
def test_an_option_out_of_its_range_is_refused(options: dict[str, object], message: str, tiny: Tiny) -> None:
    with pytest.raises(UserError, match=message):
        plugins.build("losses", "crd", tiny(), tiny(), **options)
