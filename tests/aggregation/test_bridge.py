"""The bridge loss by hand, its gradients to beta through both paths, and who trains what."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf.aggregation.bridge import Bridge
from dfa_tf.config import SearchConfig
from dfa_tf.errors import UserError
from dfa_tf.methods.distances import relu_margin
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.frozen_teacher import frozen

Pair = tuple[FeatureModel, FeatureModel]
BETAS = ([0.2, -0.5, 0.4], [-0.3, 0.1, 0.6])
IMAGES = tf.constant(np.random.default_rng(0).uniform(0, 255, (6, 8, 8, 1)), tf.float32)
LABELS = tf.constant([0, 3, 9, 3, 1, 7])
PATHS = ["st", "ts"]


@pytest.fixture(scope="module")
def pair(tiny: Callable[..., FeatureModel]) -> Pair:
    """A teacher of three blocks a group and a student of one."""
    return tiny(6, 3, seed=2), tiny(4, 1, seed=1)


@pytest.fixture(scope="module")
def smooth_pair(pair: Pair, tiny: Callable[..., FeatureModel]) -> Pair:
    """For finite differences in float32: a student without kinks, whose head is steep."""
    student = tiny(4, 1, seed=1, activation="tanh")
    kernel = student.model.get_layer("logits").kernel
    kernel.assign(5 * kernel.numpy())
    return pair[0], student


def bridge_of(pair: Pair, objective: str = "bridge", **options: object) -> Bridge:
    bridge = Bridge(*pair, SearchConfig.model_validate({"objective": objective, **options}), seed=0)
    for layer, beta in zip(bridge.aggregations, BETAS, strict=True):
        layer.beta.assign(beta)
    return bridge


def terms_of(bridge: Bridge, pair: Pair, group: int) -> dict[str, tf.Tensor]:
    return bridge.group_terms(group, bridge.student_features(IMAGES), frozen(pair[0])(IMAGES), LABELS)


def read(model: keras.Model, layers: Sequence[str], training: bool) -> list[np.ndarray]:
    """Outputs of layers, by their names."""
    outputs = keras.Model(model.input, [model.get_layer(name).output for name in layers])(IMAGES, training=training)
    return [output.numpy().astype(np.float64) for output in tf.nest.flatten(outputs)]


def candidates_of(teacher: FeatureModel, group: int) -> list[np.ndarray]:
    """The tap of a Conv-BatchNorm-ReLU block is its BatchNorm."""
    return read(teacher.model, [f"group{group + 1}_block{j}_bn" for j in (1, 2, 3)], training=False)


def softmax(beta: Sequence[float]) -> np.ndarray:
    return np.exp(beta) / np.exp(beta).sum()


def aggregated(teacher: FeatureModel, group: int) -> np.ndarray:
    return sum(alpha * candidate for alpha, candidate in zip(softmax(BETAS[group]), candidates_of(teacher, group), strict=True))


def connected(bridge: Bridge, name: str, feature: np.ndarray) -> np.ndarray:
    """A connector in NumPy: 1x1 convolution and BatchNorm on the statistics of the batch (scale 1, offset 0)."""
    kernel = next(v.numpy() for v in bridge.weight_variables if v.path.endswith(f"{name}_conv/kernel"))
    x = feature @ kernel[0, 0].astype(np.float64)
    return (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)


def cross_entropy(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), LABELS.numpy()]


def head(model: keras.Model, feature: np.ndarray) -> np.ndarray:
    dense = model.get_layer("logits")
    return feature.mean((1, 2)) @ dense.kernel.numpy() + dense.bias.numpy()


@pytest.mark.parametrize("group", [0, 1])
def test_the_student_to_teacher_path_is_equation_11(group: int, pair: Pair) -> None:
    bridge = bridge_of(pair, "st")
    feature = connected(bridge, f"to_teacher{group + 1}", read(pair[1].model, [f"group{group + 1}_block1_bn"], training=True)[0])
    u, v = feature.reshape(6, -1), aggregated(pair[0], group).reshape(6, -1)
    u, v = u / np.linalg.norm(u, axis=1, keepdims=True), v / np.linalg.norm(v, axis=1, keepdims=True)
    terms = terms_of(bridge, pair, group)
    assert list(terms) == ["st"]
    np.testing.assert_allclose(terms["st"], ((u - v) ** 2).sum(1), rtol=1e-4)


def test_the_teacher_to_student_path_is_equation_10_in_the_last_group(pair: Pair) -> None:
    bridge = bridge_of(pair, "ts")
    entering = connected(bridge, "to_student2", aggregated(pair[0], 1))
    terms = terms_of(bridge, pair, 1)
    assert list(terms) == ["ts"]
    # What remains is the student's head.
    np.testing.assert_allclose(terms["ts"], cross_entropy(head(pair[1].model, entering)), rtol=1e-4)


def test_the_teacher_to_student_path_is_equation_10_before_the_last_group(pair: Pair) -> None:
    bridge = bridge_of(pair, "ts")
    model = pair[1].model
    # It enters behind the ReLU that ends the student's group 1: the next layer is group 2's convolution.
    x = model.get_layer("group2_block1_conv")(tf.constant(connected(bridge, "to_student1", aggregated(pair[0], 0)), tf.float32)).numpy()
    norm = model.get_layer("group2_block1_bn")
    x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-3) * norm.gamma.numpy() + norm.beta.numpy()
    terms = terms_of(bridge, pair, 0)
    np.testing.assert_allclose(terms["ts"], cross_entropy(head(model, np.maximum(x, 0))), rtol=1e-4)


def test_the_two_paths_are_combined_by_their_gammas(pair: Pair) -> None:
    bridge = bridge_of(pair, gamma_st=0.25, gamma_ts=3.0)
    terms = terms_of(bridge, pair, 0)
    assert list(terms) == ["st", "ts"]
    expected = 0.25 * terms["st"].numpy().mean() + 3.0 * terms["ts"].numpy().mean()
    np.testing.assert_allclose(bridge.combine(terms), expected, rtol=1e-6)
    by_hand = bridge.combine({"st": tf.constant([1.0, 3.0]), "ts": tf.constant([0.5, 0.5])})
    np.testing.assert_allclose(by_hand, 0.25 * 2 + 3.0 * 0.5, rtol=1e-6)
    # Each alone is what it is in the bridge: the objectives differ in what they add up, not in the terms.
    alone = bridge_of(pair, "ts")
    for ours, theirs in zip(alone.weight_variables, _matching(bridge, alone), strict=True):
        ours.assign(theirs)
    np.testing.assert_allclose(terms_of(alone, pair, 0)["ts"], terms["ts"], rtol=1e-5)


def _matching(source: Bridge, target: Bridge) -> list[keras.Variable]:
    by_path = {variable.path: variable for variable in source.weight_variables}
    return [by_path[variable.path] for variable in target.weight_variables]


@pytest.mark.parametrize("distance", ["l2", "l2_normalised"])
def test_the_student_objective_is_the_feature_distance(distance: str, pair: Pair) -> None:
    bridge = bridge_of(pair, "student", distance=distance, gamma_fd=7.0)
    for group in (0, 1):
        feature = connected(bridge, f"to_teacher{group + 1}", read(pair[1].model, [f"group{group + 1}_block1_bn"], training=True)[0])
        u, v = feature.reshape(6, -1), aggregated(pair[0], group).reshape(6, -1)
        if distance == "l2":
            expected = 1e-3 / 2 ** (1 - group) * ((u - v) ** 2).sum(1)
        else:
            expected = 2 - 2 * (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
        terms = terms_of(bridge, pair, group)
        assert list(terms) == ["fd"]
        np.testing.assert_allclose(terms["fd"], expected, rtol=1e-4)
        np.testing.assert_allclose(bridge.combine(terms), 7 * expected.mean(), rtol=1e-4)


@pytest.mark.parametrize("standardise", [False, True])
def test_the_student_objective_s_margin_is_that_of_the_aggregation(standardise: bool, pair: Pair) -> None:
    bridge = bridge_of(pair, "student", distance="margin", standardise=standardise)
    beta = [3.0, -0.5, -0.5]
    bridge.aggregations[0].beta.assign(beta)
    target, margin = 0.0, 0.0
    for j, (alpha, candidate) in enumerate(zip(softmax(beta), candidates_of(pair[0], 0), strict=True), start=1):
        size = np.sqrt((candidate**2).mean((1, 2, 3), keepdims=True)) if standardise else 1.0
        target = target + alpha * candidate / size
        margin = margin + alpha * relu_margin(pair[0].model.get_layer(f"group1_block{j}_bn"), 6).numpy() / size
    assert (target < margin).any()  # it matters here
    target = np.maximum(target, margin)
    feature = connected(bridge, "to_teacher1", read(pair[1].model, ["group1_block1_bn"], training=True)[0])
    expected = 1e-3 / 2 * np.where((feature > target) | (target > 0), (feature - target) ** 2, 0).sum((1, 2, 3))
    np.testing.assert_allclose(terms_of(bridge, pair, 0)["fd"], expected, rtol=1e-4)


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize("path", PATHS)
def test_the_gradient_to_beta_is_that_of_finite_differences(path: str, group: int, standardise: bool, smooth_pair: Pair) -> None:
    bridge = bridge_of(smooth_pair, path, standardise=standardise)
    beta = bridge.aggregations[group].beta
    student, teacher = bridge.student_features(IMAGES), frozen(smooth_pair[0])(IMAGES)

    def loss() -> tf.Tensor:
        return bridge.combine(bridge.group_terms(group, student, teacher, LABELS))

    with tf.GradientTape() as tape:
        value = loss()
    gradient = tape.gradient(value, beta.value).numpy()
    start, eps = np.array(BETAS[group], np.float32), 2e-2
    differences = []
    for j in range(3):
        ends = []
        for sign in (1, -1):
            beta.assign(start + sign * eps * np.eye(3, dtype=np.float32)[j])
            ends.append(float(loss()))
        differences.append((ends[0] - ends[1]) / (2 * eps))
    np.testing.assert_allclose(gradient, differences, rtol=1e-2, atol=1e-2 * np.abs(gradient).max())
    assert np.abs(gradient).max() > 1e-3
    np.testing.assert_allclose(gradient.sum(), 0, atol=1e-3 * np.abs(gradient).max())  # a softmax does not feel a common shift


@pytest.mark.parametrize("objective", ["st", "ts", "student"])
def test_no_gradient_reaches_the_teacher_nor_another_group_s_beta(objective: str, pair: Pair) -> None:
    bridge = bridge_of(pair, objective)
    variables = [*pair[0].model.variables, bridge.aggregations[1].beta]
    with tf.GradientTape() as tape:
        tape.watch([variable.value for variable in variables])
        loss = bridge.combine(terms_of(bridge, pair, 0))
    gradients = tape.gradient(loss, [variable.value for variable in [*variables, bridge.aggregations[0].beta]])
    assert gradients[:-1] == [None] * len(variables)
    assert gradients[-1] is not None


def reached(bridge: Bridge, pair: Pair, group: int) -> set[str]:
    """The layers that a group's loss trains."""
    with tf.GradientTape() as tape:
        loss = bridge.combine(terms_of(bridge, pair, group))
    gradients = tape.gradient(loss, [variable.value for variable in bridge.weight_variables])
    return {v.path.split("/")[-2] for g, v in zip(gradients, bridge.weight_variables, strict=True) if g is not None}


def block(group: int) -> set[str]:
    return {f"group{group}_block1_conv", f"group{group}_block1_bn"}


def ends(name: str) -> set[str]:
    return {f"{name}_conv", f"{name}_bn"}


def test_who_trains_what(pair: Pair) -> None:
    st, ts, both = (bridge_of(pair, objective) for objective in ("st", "ts", "bridge"))
    assert reached(st, pair, 0) == block(1) | ends("to_teacher1")
    assert reached(st, pair, 1) == block(1) | block(2) | ends("to_teacher2")
    assert reached(ts, pair, 0) == block(2) | {"logits"} | ends("to_student1")
    assert reached(ts, pair, 1) == {"logits"} | ends("to_student2")
    assert reached(both, pair, 0) == block(1) | block(2) | {"logits"} | ends("to_teacher1") | ends("to_student1")


def test_the_weights_hold_the_student_and_the_connectors_of_the_objective(pair: Pair) -> None:
    ours = {variable.path.split("/")[-2] for variable in pair[1].model.trainable_variables}
    st, ts = ends("to_teacher1") | ends("to_teacher2"), ends("to_student1") | ends("to_student2")
    for objective, connectors in {"st": st, "ts": ts, "bridge": st | ts, "student": st}.items():
        bridge = bridge_of(pair, objective)
        assert {variable.path.split("/")[-2] for variable in bridge.weight_variables} == ours | connectors


def test_the_student_runs_on_the_statistics_of_the_batch_and_only_where_a_term_reads_it(pair: Pair) -> None:
    features = bridge_of(pair, "st").student_features(IMAGES)
    assert isinstance(features, Features)
    np.testing.assert_allclose(features.groups[1][0], read(pair[1].model, ["group2_block1_bn"], training=True)[0], rtol=1e-4, atol=1e-5)
    assert bridge_of(pair, "ts").student_features(IMAGES) is None


def test_beta_is_drawn_by_seed_from_a_narrow_gaussian(pair: Pair) -> None:
    def betas(seed: int) -> np.ndarray:
        bridge = Bridge(*pair, SearchConfig(beta_init=0.5), seed=seed)
        return np.concatenate([layer.beta.numpy() for layer in bridge.aggregations])

    drawn = np.concatenate([betas(seed) for seed in range(12)])
    np.testing.assert_array_equal(betas(3), betas(3))
    assert not np.array_equal(betas(3), betas(4))
    assert abs(drawn.mean()) < 0.15
    np.testing.assert_allclose(drawn.std(), 0.5, rtol=0.2)


def test_the_regularisers_by_hand(pair: Pair) -> None:
    bridge = bridge_of(pair)
    squares = [sum(b**2 for b in beta) for beta in BETAS]
    entropies = [-(softmax(beta) * np.log(softmax(beta))).sum() for beta in BETAS]
    np.testing.assert_allclose(bridge.regulariser("squared_norm", [0, 1]), sum(squares), rtol=1e-5)
    np.testing.assert_allclose(bridge.regulariser("squared_norm", [1]), squares[1], rtol=1e-5)
    np.testing.assert_allclose(bridge.regulariser("entropy", [0, 1]), sum(entropies), rtol=1e-5)
    np.testing.assert_allclose(bridge.regulariser("entropy", [0]), entropies[0], rtol=1e-5)
    assert float(bridge.regulariser("none", [0, 1])) == 0


def test_networks_with_another_number_of_groups_are_refused(pair: Pair) -> None:
    single = FeatureModel.from_model(pair[1].model, [["group1_block1"]])
    with pytest.raises(UserError, match="the same number of layer groups"):
        Bridge(pair[0], single, SearchConfig(), seed=0)
