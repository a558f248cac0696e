"""FSP: matrices by hand, within a group and between groups, and a first phase that trains by them alone."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.config import Config
from dfa_tf.distillation.distil import distil
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Splits
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.frozen_teacher import frozen

Tiny = Callable[..., FeatureModel]
BATCH = Batch(tf.zeros([1, 8, 8, 1]), tf.constant([0]), tf.constant([0], tf.int64))


def of(*groups: list[object]) -> Features:
    blocks = tuple(tuple(tf.constant(block, tf.float32) for block in group) for group in groups)
    return Features(tf.zeros([1, 10]), (), None, {"output": blocks})


def build(student: FeatureModel, teacher: FeatureModel, **options: object) -> Method:
    return plugins.build("losses", "fsp", student, teacher, **options)


def single(model: FeatureModel, *blocks: str) -> FeatureModel:
    """The network with one group of these blocks."""
    return FeatureModel.from_model(model.model, [blocks])


def test_the_value_by_hand_within_a_group(tiny: Tiny) -> None:
    network = single(tiny(4, 2), "group1_block1", "group1_block2")
    # Two places of the channels (1, 2) and (3, 4), and then 5 and 6: G = 1/2 (1 5 + 3 6, 2 5 + 4 6) = (11.5, 17).
    student = of([[[[[1, 2], [3, 4]]]], [[[[5], [6]]]]])
    # All ones: G = (1, 1).
    teacher = of([np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 1))])
    terms = build(network, network)(student, teacher, BATCH)
    assert list(terms) == ["fsp/group1"]
    np.testing.assert_allclose(terms["fsp/group1"], [(10.5**2 + 16**2) / 2], rtol=1e-6)


def test_the_value_by_hand_between_groups_at_the_lower_resolution(tiny: Tiny) -> None:
    # The mean of 1, 2, 3, 6 is 3: G = (3 2, 3 (-1)).
    student = of([[[[[1], [2]], [[3], [6]]]]], [[[[[2, -1]]]]])
    teacher = of([np.zeros((1, 2, 2, 1))], [np.zeros((1, 1, 1, 2))])
    terms = build(tiny(), tiny())(student, teacher, BATCH)
    assert list(terms) == ["fsp/group1"]
    np.testing.assert_allclose(terms["fsp/group1"], [(6**2 + 3**2) / 2], rtol=1e-6)


def test_by_default_flows_are_within_groups_that_have_more_than_one_block_and_else_between(tiny: Tiny) -> None:
    for student, teacher, option, groups in (
        (tiny(4, 2), tiny(4, 3), None, 2),
        (tiny(4, 1), tiny(4, 3), None, 1),
        (tiny(4, 2), tiny(4, 1), None, 1),
        (tiny(4, 2), tiny(4, 3), "between", 1),
        (tiny(4, 2), tiny(4, 3), "within", 2),
    ):
        method = build(student, teacher, flow=option)
        terms = method(student.extractor(method.taps)(BATCH.images), frozen(teacher, method.taps)(BATCH.images), BATCH)
        assert list(terms) == [f"fsp/group{i}" for i in range(1, groups + 1)]


def test_a_flow_is_from_the_first_block_to_the_last(tiny: Tiny) -> None:
    network = single(tiny(4, 3), "group1_block1", "group1_block2", "group1_block3")
    one, two, three = (np.full((1, 2, 2, 1), value) for value in (1.0, 2.0, 3.0))
    method = build(network, network)
    # 1 3 against 1 2.
    np.testing.assert_allclose(method(of([one, two, three]), of([one, three, two]), BATCH)["fsp/group1"], [1], rtol=1e-6)
    np.testing.assert_allclose(method(of([one, two, three]), of([one, one, three]), BATCH)["fsp/group1"], [0], atol=1e-6)


def test_equal_features_give_zero_and_no_gradient(tiny: Tiny) -> None:
    first, last = (tf.constant(np.random.default_rng(0).normal(size=(3, 2, 2, 2)), tf.float32) for _ in range(2))
    network = single(tiny(4, 2), "group1_block1", "group1_block2")
    method = build(network, network)
    with tf.GradientTape() as tape:
        tape.watch([first, last])
        value = method(of([first, last])._replace(taps={"output": ((first, last),)}), of([first, last]), BATCH)["fsp/group1"]
    np.testing.assert_array_equal(value, [0, 0, 0])
    for gradient in tape.gradient(value, [first, last]):
        np.testing.assert_array_equal(gradient, np.zeros((3, 2, 2, 2)))


def test_there_is_a_connector_for_each_feature_whose_channels_differ(tiny: Tiny) -> None:
    def shapes(method: Method) -> list[tuple[int, ...]]:
        return sorted(tuple(variable.shape) for variable in method.trainable_variables)

    assert shapes(build(tiny(4, 2), tiny(4, 3))) == []
    # The student's groups have 4 and 8 channels, the teacher's 6 and 12: a kernel, a scale and an offset each.
    wider = [(1, 1, 4, 6), (1, 1, 8, 12), (6,), (6,), (12,), (12,)]
    assert shapes(build(tiny(4, 1), tiny(6, 2))) == sorted(wider)
    assert shapes(build(tiny(4, 2), tiny(6, 2))) == sorted(2 * wider)
    # Student groups of 4 and 8, named so that the first one pairs with a group of 8 and the second with one of 8.
    teacher = FeatureModel.from_model(tiny(4, 2).model, [["group2_block1"], ["group2_block2"]])
    assert shapes(build(tiny(4, 1), teacher)) == sorted([(1, 1, 4, 8), (8,), (8,)])


def test_a_student_of_another_resolution_needs_no_resizing(tiny: Tiny) -> None:
    student, teacher = single(tiny(4, 2), "group2_block1", "group2_block2"), single(tiny(4, 2), "group1_block1", "group1_block2")
    method = build(student, teacher)
    terms = method(student.extractor(("output",))(BATCH.images), frozen(teacher, ("output",))(BATCH.images), BATCH)
    assert terms["fsp/group1"].shape == (1,)
    assert not any("resize" in layer.name for layer in method._flatten_layers())


def test_the_first_half_of_the_epochs_trains_by_fsp_alone_and_the_second_without_it(tiny: Tiny, splits: Splits, quick: Config) -> None:
    student, config = tiny(seed=2), quick.override(['distil.methods={"fsp": 3.0, "kd": 0.5}'])
    before = student.model.get_layer("logits").kernel.numpy()
    heads = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            heads.append(student.model.get_layer("logits").kernel.numpy())

    rows = distil(tiny(6, 2, seed=1), student, splits, config, callbacks=[Watch()]).history
    expected = [3 * row["fsp/group1"] if row["epoch"] <= 2 else row["cross_entropy"] + 0.5 * row["kd"] for row in rows]
    np.testing.assert_allclose([row["total_loss"] for row in rows], expected, rtol=1e-5)
    assert [np.array_equal(head, before) for head in heads] == [True, True, False, False]
    assert rows[1]["fsp/group1"] < rows[0]["fsp/group1"]


def test_without_a_first_phase_it_is_a_term_like_others_at_another_weight(tiny: Tiny) -> None:
    phased, joint = build(tiny(), tiny()), build(tiny(), tiny(), first_phase=0)
    assert [phase.fraction for phase in phased.phases] == [0.5, 0.5]
    assert joint.phases == ()
    assert (phased.recommended_weight, joint.recommended_weight) == (1.0, 50.0)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_first_phase_must_leave_epochs_for_the_cross_entropy(fraction: float, tiny: Tiny) -> None:
    with pytest.raises(UserError, match="first_phase of fsp is a fraction of the epochs, from 0 to below 1. Received"):
        build(tiny(), tiny(), first_phase=fraction)


def test_a_flow_that_the_networks_do_not_have_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="flow='within' of fsp needs groups of two blocks or more"):
        build(tiny(4, 1), tiny(4, 2), flow="within")
    alone = single(tiny(), "group1_block1")
    for flow in (None, "between"):
        with pytest.raises(UserError, match="flow='between' of fsp needs two groups or more. Received: 1"):
            build(alone, alone, flow=flow)
    with pytest.raises(UserError, match="unknown flow of fsp. Received: 'betwen'. Did you mean 'between'"):
        build(tiny(), tiny(), flow="betwen")


def test_networks_with_another_number_of_groups_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="the same number of layer groups"):
        build(single(tiny(4, 2), "group1_block1", "group1_block2"), tiny(4, 2))
