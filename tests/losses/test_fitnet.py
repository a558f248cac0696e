"""FitNets: the value by hand, which group gives the hint, and a first phase that trains the guided part alone."""

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
from dfa_tf.networks.frozen_teacher import frozen

BATCH = Batch(tf.zeros([2, 8, 8, 1]), tf.constant([0, 1]), tf.constant([0, 1], tf.int64))
# Two examples whose mean is 0 and whose variance is 1: BatchNorm leaves them as they are, but for its epsilon.
PLUS_AND_MINUS = np.array([1.0, -1.0])


def of(*groups: object) -> Features:
    """Features of one block a group, behind a block that must not be read; a group that is None must not be read either."""
    shapes = [(8, 8, 1), (4, 4, 2)]
    blocks = [
        tf.broadcast_to(tf.reshape(tf.constant(np.full(2, np.nan) if group is None else group, tf.float32), [2, 1, 1, 1]), (2, *shape))
        for group, shape in zip(groups, shapes, strict=True)
    ]
    return Features(tf.zeros([2, 10]), (), None, {"output": tuple((tf.fill(block.shape, np.nan), block) for block in blocks)})


def prepared(tiny: Callable[..., FeatureModel], **options: object) -> Method:
    """A method for groups of 8x8x1 and 4x4x2 on both sides, whose regressor is r(x) = 2 x + 1 in each channel."""
    method = plugins.build("losses", "fitnet", tiny(1), tiny(1, 2), **options)
    channels = method.regressor.output.shape[-1]
    method.regressor.get_layer("regressor_conv").set_weights([np.eye(channels)[np.newaxis, np.newaxis]])
    norm = method.regressor.get_layer("regressor_bn")
    norm.gamma.assign(np.full(channels, 2.0))
    norm.beta.assign(np.full(channels, 1.0))
    return method


def test_the_value_by_hand_for_the_middle_group(tiny: Callable[..., FeatureModel]) -> None:
    terms = prepared(tiny)(of(PLUS_AND_MINUS, None), of([5.0, -1.0], None), BATCH)
    assert list(terms) == ["fitnet"]
    # The regressor gives 3 and -1 in 8 * 8 elements.
    np.testing.assert_allclose(terms["fitnet"], [0.5 * (3 - 5) ** 2 * 64, 0.0], rtol=1e-4, atol=1e-4)


def test_the_hint_is_of_the_group_that_is_asked_for(tiny: Callable[..., FeatureModel]) -> None:
    terms = prepared(tiny, hint=2)(of(None, PLUS_AND_MINUS), of(None, [3.0, 0.0]), BATCH)
    # In 4 * 4 * 2 elements.
    np.testing.assert_allclose(terms["fitnet"], [0.0, 0.5 * (-1) ** 2 * 32], rtol=1e-4, atol=1e-4)


def test_the_middle_of_three_groups_is_the_second(teacher: FeatureModel, student: FeatureModel) -> None:
    method = plugins.build("losses", "fitnet", student, teacher)
    assert [group.shape for group in student.groups] == [(8, 8, 16), (4, 4, 32), (2, 2, 64)]
    assert method.regressor.input.shape == (None, 4, 4, 32)


def test_another_width_and_resolution_is_regressed(tiny: Callable[..., FeatureModel], digits: np.ndarray) -> None:
    student = FeatureModel.from_model(tiny(4).model, [["group2_block1"]])
    teacher = FeatureModel.from_model(tiny(6).model, [["group1_block1"]])
    method = plugins.build("losses", "fitnet", student, teacher)
    term = method(student.extractor(["output"])(digits, training=True), frozen(teacher, ["output"])(digits), BATCH)["fitnet"]
    assert term.shape == (8,)
    assert np.all(np.isfinite(term) & (term > 0))


def test_the_first_phase_trains_the_guided_part_and_the_regressor_without_cross_entropy(tiny: Callable[..., FeatureModel]) -> None:
    student, teacher = tiny(seed=1), tiny(6, 2, seed=2)
    method = plugins.build("losses", "fitnet", student, teacher)
    distiller = Distiller(student, teacher, {"fitnet": method}, weight_decay=0.1)
    variables = [*student.model.trainable_variables, *method.trainable_variables]
    start = {variable.path: variable.numpy() for variable in variables}
    distiller.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
    distiller.optimizer.build(variables)

    def moved() -> set[str]:
        return {variable.path for variable in variables if not np.array_equal(variable, start[variable.path])}

    guided = {"group1_block1_conv/kernel", "group1_block1_bn/gamma", "group1_block1_bn/beta"}
    regressor = {"regressor_conv/kernel", "regressor_bn/gamma", "regressor_bn/beta"}
    distiller.begin_phase(method.phases[0], "fitnet", 0)
    logs = step(distiller)
    assert logs["total_loss"] == pytest.approx(1e-3 * logs["fitnet"])
    assert moved() == guided | regressor
    start = {variable.path: variable.numpy() for variable in variables}
    distiller.begin_phase(method.phases[1], "fitnet", 1)
    logs = step(distiller)
    assert logs["total_loss"] == pytest.approx(logs["cross_entropy"])
    assert moved() == set(start) - regressor


def test_the_phases_are_a_quarter_and_the_rest_unless_told_otherwise(tiny: Callable[..., FeatureModel]) -> None:
    assert prepared(tiny).phases == (Phase(0.25, 0.0, 1.0), Phase(0.75, 1.0, 0.0, other_weight=1.0))
    assert prepared(tiny, first_phase=0.5).phases == (Phase(0.5, 0.0, 1.0), Phase(0.5, 1.0, 0.0, other_weight=1.0))
    assert prepared(tiny, first_phase=0).phases == ()


def test_without_a_first_phase_the_hint_is_a_term_like_others(tiny: Callable[..., FeatureModel]) -> None:
    student, teacher = tiny(seed=1), tiny(6, 2, seed=2)
    method = plugins.build("losses", "fitnet", student, teacher, first_phase=0)
    logs = step(Distiller(student, teacher, {"fitnet": method}))
    assert logs["total_loss"] == pytest.approx(logs["cross_entropy"] + 1e-3 * logs["fitnet"], rel=1e-5)


@pytest.mark.parametrize("hint", [0, 3, -1, "2"])
def test_the_hint_must_be_a_group(hint: object, tiny: Callable[..., FeatureModel]) -> None:
    with pytest.raises(UserError, match="index of a layer group, 1..2. Received"):
        prepared(tiny, hint=hint)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_the_first_phase_must_leave_epochs(fraction: float, tiny: Callable[..., FeatureModel]) -> None:
    with pytest.raises(UserError, match="first_phase of fitnet is a fraction of the epochs"):
        prepared(tiny, first_phase=fraction)


def test_networks_whose_groups_do_not_pair_are_refused(tiny: Callable[..., FeatureModel]) -> None:
    single = FeatureModel.from_model(tiny().model, [["group1_block1"]])
    with pytest.raises(UserError, match="the same number of layer groups"):
        plugins.build("losses", "fitnet", single, tiny())
