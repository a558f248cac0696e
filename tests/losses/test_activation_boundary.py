"""Activation boundaries: the value by hand on both sides of the boundary, the margin, and a first phase without cross-entropy."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from steps import step

from dfa_tf import plugins
from dfa_tf.distillation.distiller import Distiller
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method, Phase
from dfa_tf.networks.features import FeatureModel, Features

BATCH = Batch(tf.zeros([2, 8, 8, 1]), tf.constant([0, 1]), tf.constant([0, 1], tf.int64))
# Two examples whose mean is 0 and whose variance is 1: BatchNorm leaves them as they are, but for its epsilon.
STUDENT = [np.ones((2, *shape)) * np.reshape([1.0, -1.0], (2, 1, 1, 1)) for shape in ((8, 8, 1), (4, 4, 2))]


def of(groups: list[np.ndarray]) -> Features:
    """Features of one block a group, behind a block that must not be read."""
    blocks = [tf.constant(group, tf.float32) for group in groups]
    return Features(tf.zeros([2, 10]), (), None, {"pre_activation": tuple((tf.fill(block.shape, np.nan), block) for block in blocks)})


def prepared(tiny: Callable[..., FeatureModel], scale: float, offset: float, **options: object) -> Method:
    """A method for groups of 8x8x1 and 4x4x2 on both sides, whose connectors scale and shift each channel."""
    method = plugins.build("losses", "activation_boundary", tiny(1), tiny(1, 2), **options)
    for i, connector in enumerate(method.connectors, start=1):
        channels = connector.output.shape[-1]
        connector.get_layer(f"connector{i}_conv").set_weights([np.eye(channels)[np.newaxis, np.newaxis]])
        norm = connector.get_layer(f"connector{i}_bn")
        norm.gamma.assign(np.full(channels, scale))
        norm.beta.assign(np.full(channels, offset))
    return method


def test_the_value_by_hand_on_both_sides_of_the_boundary(tiny: Callable[..., FeatureModel]) -> None:
    # The connectors give s = 1.5 in the first example and -2.5 in the second.
    method = prepared(tiny, 2.0, -0.5)
    # Of the 64 neurons of the first group 24 are active, 10 at 0 and 30 below are not; those of the second are all active.
    first = np.concatenate([np.full(24, 0.1), np.zeros(10), np.full(30, -7.0)]).reshape(1, 8, 8, 1).repeat(2, axis=0)
    terms = method(of(STUDENT), of([first, np.full((2, 4, 4, 2), 0.01)]), BATCH)
    assert list(terms) == ["activation_boundary/group1", "activation_boundary/group2"]
    # An active neuron wants s >= 1: 0 of 1.5, and (1 + 2.5)^2 of -2.5; another wants s <= -1: (1 + 1.5)^2 of 1.5, and 0 of -2.5.
    # The first of two groups counts half.
    np.testing.assert_allclose(terms["activation_boundary/group1"], [40 * 2.5**2 / 2, 24 * 3.5**2 / 2], rtol=1e-4)
    np.testing.assert_allclose(terms["activation_boundary/group2"], [0.0, 32 * 3.5**2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("options", "margin"), [({}, 1.0), ({"margin": 3.0}, 3.0)])
def test_what_lies_within_the_margin_still_counts(options: dict[str, float], margin: float, tiny: Callable[..., FeatureModel]) -> None:
    # s = 0.25 and -0.25, where all neurons are active.
    terms = prepared(tiny, 0.25, 0.0, **options)(of(STUDENT), of([np.ones((2, 8, 8, 1)), np.ones((2, 4, 4, 2))]), BATCH)
    expected = [32 * (margin - 0.25) ** 2, 32 * (margin + 0.25) ** 2]
    np.testing.assert_allclose(terms["activation_boundary/group2"], expected, rtol=1e-4)


def test_what_enters_the_activations_is_read(tiny: Callable[..., FeatureModel], digits: np.ndarray) -> None:
    student, teacher = (FeatureModel.from_model(network, tap="output") for network in (tiny(seed=1), tiny(6, 2, seed=2)))
    method = plugins.build("losses", "activation_boundary", student, teacher, first_phase=0)
    logs = step(Distiller(student, teacher, {"activation_boundary": method}))
    features = student.extractor(method.taps)(digits, training=True)
    assert np.min(features.at("pre_activation")[0][-1]) < 0  # what a ReLU hands on is not
    assert logs["activation_boundary/group1"] > 0


def test_the_first_phase_trains_all_below_the_head_without_cross_entropy(tiny: Callable[..., FeatureModel]) -> None:
    student, teacher = tiny(seed=1), tiny(6, 2, seed=2)
    method = plugins.build("losses", "activation_boundary", student, teacher)
    distiller = Distiller(student, teacher, {"activation_boundary": method}, weight_decay=0.1)
    variables = [*student.model.trainable_variables, *method.trainable_variables]
    start = {variable.path: variable.numpy() for variable in variables}
    distiller.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
    distiller.optimizer.build(variables)

    def moved() -> set[str]:
        return {variable.path for variable in variables if not np.array_equal(variable, start[variable.path])}

    distiller.begin_phase(method.phases[0], "activation_boundary", 0)
    logs = step(distiller)
    expected = 3e-3 * (logs["activation_boundary/group1"] + logs["activation_boundary/group2"])
    assert logs["total_loss"] == pytest.approx(expected, rel=1e-5)
    assert moved() == set(start) - {"logits/kernel", "logits/bias"}
    start = {variable.path: variable.numpy() for variable in variables}
    distiller.begin_phase(method.phases[1], "activation_boundary", 1)
    logs = step(distiller)
    assert logs["total_loss"] == pytest.approx(logs["cross_entropy"])
    assert moved() == {variable.path for variable in student.model.trainable_variables}


def test_the_phases_are_a_quarter_and_the_rest_unless_told_otherwise(tiny: Callable[..., FeatureModel]) -> None:
    assert prepared(tiny, 1, 0).phases == (Phase(0.25, 0.0, 1.0), Phase(0.75, 1.0, 0.0, other_weight=1.0))
    assert prepared(tiny, 1, 0, first_phase=0.5).phases == (Phase(0.5, 0.0, 1.0), Phase(0.5, 1.0, 0.0, other_weight=1.0))
    assert prepared(tiny, 1, 0, first_phase=0).phases == ()


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan")])
def test_the_margin_must_be_above_zero(margin: float, tiny: Callable[..., FeatureModel]) -> None:
    with pytest.raises(UserError, match="margin of activation_boundary must be above 0"):
        prepared(tiny, 1, 0, margin=margin)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_the_first_phase_must_leave_epochs(fraction: float, tiny: Callable[..., FeatureModel]) -> None:
    with pytest.raises(UserError, match="first_phase of activation_boundary is a fraction of the epochs"):
        prepared(tiny, 1, 0, first_phase=fraction)


def test_networks_whose_groups_do_not_pair_are_refused(tiny: Callable[..., FeatureModel]) -> None:
    single = FeatureModel.from_model(tiny().model, [["group1_block1"]])
    with pytest.raises(UserError, match="the same number of layer groups"):
        plugins.build("losses", "activation_boundary", single, tiny())
