"""OFD: equal to `dfa` with the last blocks, the value by hand, and the tap before the activation whatever the models' own."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.methods import Batch, Method
from dfa_tf.networks.features import FeatureModel, Features
from dfa_tf.networks.frozen_teacher import frozen

Pair = tuple[FeatureModel, FeatureModel]
IMAGES = np.random.default_rng(0).uniform(0, 255, (5, 8, 8, 1)).astype(np.float32)
BATCH = Batch(tf.constant(IMAGES), tf.zeros([5], tf.int32), None)


@pytest.fixture(scope="module")
def pair(tiny: Callable[..., FeatureModel]) -> Pair:
    """A student of two blocks a group and a teacher of three."""
    return tiny(4, 2, seed=1), tiny(6, 3, seed=2)


def build(name: str, pair: Pair) -> Method:
    keras.utils.set_random_seed(0)
    return plugins.build("losses", name, *pair)


def terms_of(method: Method, pair: Pair) -> dict[str, np.ndarray]:
    student, teacher = pair
    ours = student.extractor(method.taps)(BATCH.images, training=True)
    return {name: term.numpy() for name, term in method(ours, frozen(teacher, method.taps)(BATCH.images), BATCH).items()}


def test_it_is_dfa_with_the_last_blocks_and_the_margin(pair: Pair) -> None:
    terms, expected = terms_of(build("margin", pair), pair), terms_of(build("dfa", pair), pair)
    assert list(terms) == ["margin/group1", "margin/group2"]
    for i in (1, 2):
        assert terms[f"margin/group{i}"].shape == (5,)
        assert (terms[f"margin/group{i}"] > 0).all()
        np.testing.assert_allclose(terms[f"margin/group{i}"], expected[f"dfa/group{i}"], rtol=1e-6)


def test_the_value_by_hand(tiny: Callable[..., FeatureModel]) -> None:
    student, teacher = tiny(2), tiny(2)
    for name in ("group1_block1_bn", "group2_block1_bn"):
        norm = teacher.model.get_layer(name)
        norm.gamma.assign(tf.zeros_like(norm.gamma))
        norm.beta.assign(-0.5 * tf.ones_like(norm.beta))  # a channel whose values are all -0.5: the margin is -0.5
    method = build("margin", (student, teacher))
    for variable in method.trainable_variables:
        if variable.path.endswith("kernel"):
            variable.assign(np.eye(variable.shape[-1])[np.newaxis, np.newaxis])
    # Of mean 0 and variance 1, so that the connector's BatchNorm leaves it.
    ours = [np.stack([np.ones(shape), -np.ones(shape)]).astype(np.float32) for shape in ((8, 8, 2), (4, 4, 4))]
    theirs = [np.stack([np.full((8, 8, 2), value) for value in (3, -2)]), np.stack([np.full((4, 4, 4), value) for value in (-2, -0.1)])]
    terms = method(of(ours), of(theirs), BATCH)
    # Group 1, 128 elements: (1 - 3)^2 each; -1 is below the target max(-2, -0.5) already. The factor is 1e-3 / 2.
    np.testing.assert_allclose(terms["margin/group1"], [128 * 4 * 0.5e-3, 0], rtol=1e-4)
    # Group 2, 64 elements: 1 is above the target -0.5, by 1.5; -1 is below -0.1. The factor is 1e-3.
    np.testing.assert_allclose(terms["margin/group2"], [64 * 2.25 * 1e-3, 0], rtol=1e-4)


def of(groups: list[np.ndarray]) -> Features:
    read = tuple((tf.constant(feature, tf.float32),) for feature in groups)
    return Features(tf.zeros([2, 10]), read, None, {"pre_activation": read})


def test_it_reads_before_the_activation_whatever_the_models_own_tap(pair: Pair) -> None:
    after = FeatureModel.from_model(pair[0], tap="output"), FeatureModel.from_model(pair[1], tap="output")
    terms, expected = terms_of(build("margin", after), after), terms_of(build("margin", pair), pair)
    for name, term in expected.items():
        np.testing.assert_array_equal(terms[name], term)


def test_its_weight_is_one_as_the_factor_is_in_the_terms(pair: Pair) -> None:
    assert build("margin", pair).recommended_weight == 1


def test_networks_with_another_number_of_groups_are_refused(pair: Pair) -> None:
    single = FeatureModel.from_model(pair[0].model, [["group1_block1"]])
    with pytest.raises(UserError, match="the same number of layer groups. Received: 1 in 'tiny_4_2' and 2 in 'tiny_6_3'"):
        build("margin", (single, pair[1]))
