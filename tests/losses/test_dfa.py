"""Feature aggregation distillation: equal to OFD for the last block, and each distance by hand."""

import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.aggregation.weights import AggregationWeights, GroupWeights
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.frozen_teacher import frozen

ALPHAS = ((0.1, 0.6, 0.3), (0.5, 0.2, 0.3))


@pytest.fixture(scope="module")
def pair(tiny: Callable[..., FeatureModel]) -> tuple[FeatureModel, FeatureModel]:
    """A student of one block a group and a teacher of three."""
    return tiny(4, 1, seed=1), tiny(6, 3, seed=2)


def batch(size: int = 5) -> Batch:
    images = np.random.default_rng(0).uniform(0, 255, (size, 8, 8, 1))
    return Batch(tf.constant(images, tf.float32), tf.zeros([size], tf.int32), tf.range(size, dtype=tf.int64))


def build(pair: tuple[FeatureModel, FeatureModel], **options: object) -> Method:
    return plugins.build("losses", "dfa", *pair, **options)


def searched(teacher: FeatureModel, alphas: Sequence[tuple[float, ...]] = ALPHAS, *, standardise: bool = False) -> AggregationWeights:
    groups = tuple(
        GroupWeights(blocks=tuple(blocks), beta=None, alpha=alpha) for blocks, alpha in zip(teacher.block_names(), alphas, strict=True)
    )
    return AggregationWeights(teacher=teacher.model.name, standardise=standardise, groups=groups)


def terms_of(method: Method, pair: tuple[FeatureModel, FeatureModel]) -> dict[str, np.ndarray]:
    student, teacher = pair
    data = batch()
    terms = method(student.extractor()(data.images, training=True), frozen(teacher)(data.images), data)
    return {name: term.numpy() for name, term in terms.items()}


def read(model: keras.Model, layers: Sequence[str], training: bool) -> list[np.ndarray]:
    """Outputs of layers, by their names, for the batch."""
    outputs = keras.Model(model.input, [model.get_layer(name).output for name in layers])(batch().images, training=training)
    return [output.numpy() for output in tf.nest.flatten(outputs)]


def connected(method: Method, group: int, feature: np.ndarray) -> np.ndarray:
    """A connector in NumPy: 1x1 convolution and BatchNorm on the statistics of the batch (scale 1, offset 0)."""
    kernel = next(v.numpy() for v in method.trainable_variables if v.path.endswith(f"connector{group}_conv/kernel"))
    x = feature.astype(np.float64) @ kernel[0, 0].astype(np.float64)
    return (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)


def ofd_margin(norm: keras.layers.BatchNormalization) -> np.ndarray:
    """As in the OFD paper: channel by channel, from the BatchNorm's parameters."""
    margins = []
    for gamma, beta in zip(norm.gamma.numpy(), norm.beta.numpy(), strict=True):
        s, mu = abs(float(gamma)), float(beta)
        negative = 0.5 * (1 + math.erf(-mu / s / math.sqrt(2)))
        density = math.exp(-((mu / s) ** 2) / 2) / math.sqrt(2 * math.pi)
        margins.append(mu - s * density / negative if negative > 0.001 else -3 * s)
    return np.array(margins)


def partial_l2(student: np.ndarray, teacher: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """The sum over the elements that count, by example."""
    target = np.maximum(teacher, margin)
    return np.where((student > target) | (target > 0), (student - target) ** 2, 0.0).sum((1, 2, 3))


def vary_batchnorm(model: keras.Model, seed: int) -> None:
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            layer.gamma.assign(random.normal(0, 1, shape))
            layer.beta.assign(random.normal(0, 1, shape))


def test_the_last_block_with_margin_is_ofd_for_pre_activation_networks(build_model: Callable[..., keras.Model]) -> None:
    models = build_model("wrn_10_1"), build_model("wrn_16_1", seed=1)
    for seed, model in enumerate(models):
        vary_batchnorm(model, seed)
    pair = FeatureModel.from_model(models[0]), FeatureModel.from_model(models[1])
    one_hot = searched(pair[1], [(0.0, 1.0)] * 3)
    # The tap is the BatchNorm behind the last block of each group.
    ours = read(models[0], ["group2_block1_1_bn", "group3_block1_1_bn", "head_bn"], training=True)
    norms = ["group2_block1_1_bn", "group3_block1_1_bn", "head_bn"]
    theirs = read(models[1], norms, training=False)
    method = build(pair, aggregation=one_hot, distance="margin")
    terms = terms_of(method, pair)
    assert list(terms) == ["dfa/group1", "dfa/group2", "dfa/group3"]
    for i in (1, 2, 3):
        margin = ofd_margin(models[1].get_layer(norms[i - 1]))
        expected = 1e-3 / 2 ** (3 - i) * partial_l2(connected(method, i, ours[i - 1]), theirs[i - 1], margin)
        assert terms[f"dfa/group{i}"].shape == (5,)
        np.testing.assert_allclose(terms[f"dfa/group{i}"], expected, rtol=1e-3)


def test_without_weights_the_last_block_is_taken(pair: tuple[FeatureModel, FeatureModel]) -> None:
    method = build(pair)
    terms = terms_of(method, pair)
    theirs = read(pair[1].model, ["group1_block3_bn", "group2_block3_bn"], training=False)
    ours = read(pair[0].model, ["group1_block1_bn", "group2_block1_bn"], training=True)
    for i in (1, 2):
        margin = ofd_margin(pair[1].model.get_layer(f"group{i}_block3_bn"))
        expected = 1e-3 / 2 ** (2 - i) * partial_l2(connected(method, i, ours[i - 1]), theirs[i - 1], margin)
        np.testing.assert_allclose(terms[f"dfa/group{i}"], expected, rtol=1e-3)


def test_the_outputs_of_the_blocks_are_read_where_that_tap_is_asked_for(pair: tuple[FeatureModel, FeatureModel]) -> None:
    after = FeatureModel.from_model(pair[0], tap="output"), FeatureModel.from_model(pair[1], tap="output")
    method = build(after, distance="margin")
    terms = terms_of(method, after)
    theirs = read(pair[1].model, ["group1_block3"], training=False)
    ours = read(pair[0].model, ["group1_block1"], training=True)
    # No BatchNorm precedes a ReLU's output: the margin is -1, but nothing is below 0 there.
    expected = 1e-3 / 2 * partial_l2(connected(method, 1, ours[0]), theirs[0], np.array(-1.0))
    np.testing.assert_allclose(terms["dfa/group1"], expected, rtol=1e-3)


@pytest.mark.parametrize("distance", ["l2", "l2_normalised"])
def test_the_other_distances_by_hand(distance: str, pair: tuple[FeatureModel, FeatureModel]) -> None:
    method = build(pair, aggregation=searched(pair[1]), distance=distance)
    terms = terms_of(method, pair)
    for i in (1, 2):
        candidates = read(pair[1].model, [f"group{i}_block{j}_bn" for j in (1, 2, 3)], training=False)
        target = sum(alpha * candidate for alpha, candidate in zip(ALPHAS[i - 1], candidates, strict=True)).reshape(5, -1)
        feature = connected(method, i, read(pair[0].model, [f"group{i}_block1_bn"], training=True)[0]).reshape(5, -1)
        if distance == "l2":
            expected = 1e-3 / 2 ** (2 - i) * ((feature - target) ** 2).sum(1)
        else:
            u = feature / np.linalg.norm(feature, axis=1, keepdims=True)
            v = target / np.linalg.norm(target, axis=1, keepdims=True)
            expected = ((u - v) ** 2).sum(1)
        np.testing.assert_allclose(terms[f"dfa/group{i}"], expected, rtol=1e-3)


@pytest.mark.parametrize("standardise", [False, True])
def test_the_margin_of_an_aggregation_is_the_aggregation_of_the_margins(standardise: bool, pair: tuple[FeatureModel, FeatureModel]) -> None:
    method = build(pair, aggregation=searched(pair[1], standardise=standardise), distance="margin")
    terms = terms_of(method, pair)
    for i in (1, 2):
        names = [f"group{i}_block{j}_bn" for j in (1, 2, 3)]
        target, margin = 0.0, 0.0
        for alpha, name, candidate in zip(ALPHAS[i - 1], names, read(pair[1].model, names, training=False), strict=True):
            size = np.sqrt((candidate**2).mean((1, 2, 3), keepdims=True)) if standardise else 1.0
            target = target + alpha * candidate / size
            margin = margin + alpha * ofd_margin(pair[1].model.get_layer(name)) / size
        feature = connected(method, i, read(pair[0].model, names[:1], training=True)[0])
        np.testing.assert_allclose(terms[f"dfa/group{i}"], 1e-3 / 2 ** (2 - i) * partial_l2(feature, target, margin), rtol=1e-3)


def test_a_student_of_another_resolution_is_resized(tiny: Callable[..., FeatureModel]) -> None:
    student, teacher = tiny(4, 1), tiny(6, 1)
    shifted = FeatureModel.from_model(student.model, [["group2_block1"]])
    pair = shifted, FeatureModel.from_model(teacher.model, [["group1_block1"]])
    terms = terms_of(build(pair), pair)
    assert terms["dfa/group1"].shape == (5,)
    assert (terms["dfa/group1"] > 0).all()


def test_the_aggregation_reaches_the_candidates_it_weighs(pair: tuple[FeatureModel, FeatureModel]) -> None:
    method, data = build(pair, aggregation=searched(pair[1]), distance="l2"), batch()
    student, teacher = pair[0].extractor()(data.images, training=True), frozen(pair[1])(data.images)
    swapped = Features(teacher.logits, tuple(group[::-1] for group in teacher.groups), teacher.embedding, {})
    assert not np.allclose(method(student, teacher, data)["dfa/group1"], method(student, swapped, data)["dfa/group1"])


def test_networks_with_another_number_of_groups_are_refused(pair: tuple[FeatureModel, FeatureModel]) -> None:
    single = FeatureModel.from_model(pair[0].model, [["group1_block1"]])
    with pytest.raises(UserError, match="the same number of layer groups. Received: 1 in 'tiny_4_1' and 2 in 'tiny_6_3'"):
        build((single, pair[1]))


def test_weights_for_another_teacher_are_refused(pair: tuple[FeatureModel, FeatureModel], tiny: Callable[..., FeatureModel]) -> None:
    with pytest.raises(UserError, match="must be for the teacher's blocks"):
        build(pair, aggregation=AggregationWeights.by_rule("last", tiny(6, 2)))


def test_an_unknown_distance_is_refused(pair: tuple[FeatureModel, FeatureModel]) -> None:
    with pytest.raises(UserError, match="unknown distance. Received: 'l2_normalized'. Did you mean 'l2_normalised'"):
        build(pair, distance="l2_normalized")
