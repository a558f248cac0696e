"""The second-order step on beta: its gradient is that of finite differences through the optimizer's own next step."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf.aggregation.bridge import Bridge
from dfa_tf.aggregation.search_steps import SearchSteps
from dfa_tf.config import Config, SearchConfig
from dfa_tf.methods import Batch
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.frozen_teacher import frozen

RATE = 0.1
TOLERANCE = 0.002  # where BatchNorm's variance is not differentiated twice as it should be, the error is three times that
Batches = tuple[Batch, Batch]
MakeLoop = Callable[..., SearchSteps]


@pytest.fixture(scope="module")
def batches() -> Batches:
    """A batch of the search split and one of the training split."""
    random = np.random.default_rng(0)

    def batch() -> Batch:
        images, labels = random.uniform(0, 255, (6, 8, 8, 1)), random.integers(0, 10, 6)
        return Batch(tf.constant(images, tf.float32), tf.constant(labels, tf.int32), None)

    return batch(), batch()


@pytest.fixture
def make_loop(tiny: Callable[..., FeatureModel], batches: Batches) -> MakeLoop:
    """Makes a loop over the first group after two steps on the weights, so that momentum has a velocity.

    The activation is smooth: a kink of ReLU would have no derivative. Beta goes down its gradient at rate 1, which tells the gradient.
    """

    def make(order: str, **changes: object) -> SearchSteps:
        config = SearchConfig(order=order, beta_init=0.5, **{"learning_rate": RATE, "objective": "bridge", **changes})
        teacher, student = tiny(6, 3, seed=2, activation="silu"), tiny(4, 1, seed=1, activation="silu")
        keras.utils.set_random_seed(5)
        bridge = Bridge(teacher, student, config, seed=0)
        loop = SearchSteps(bridge, frozen(teacher), Config(search=config), [0], steps=1000)
        loop._beta_optimizer = keras.optimizers.SGD(1.0)
        loop._beta_optimizer.build(loop._betas)
        for _ in range(2):
            loop._weight_step(batches[1])
        return loop

    return make


def state(loop: SearchSteps) -> list[keras.Variable]:
    return [*loop._weights, *loop._weight_optimizer.variables]


def beta_step(loop: SearchSteps, batches: Batches) -> None:
    """A step on beta, with the batches as a data set gives them."""
    loop.beta_step(*({"images": batch.images, "labels": batch.labels} for batch in batches))


def gradient_of(loop: SearchSteps, batches: Batches) -> np.ndarray:
    """The gradient that the step on beta takes, with beta put back."""
    beta = loop._betas[0]
    before = beta.numpy()
    beta_step(loop, batches)
    after = beta.numpy()
    beta.assign(before)
    return before - after


def by_differences(loop: SearchSteps, batches: Batches, *, ahead: bool, width: float = 0.01) -> np.ndarray:
    """Of the search loss with or without one real step of the optimizer on the training batch, both at the changed beta."""
    beta, variables = loop._betas[0], state(loop)
    start, saved = beta.numpy(), [variable.numpy() for variable in variables]

    def loss(change: np.ndarray) -> float:
        beta.assign(start + change)
        if ahead:
            loop._weight_step(batches[1])
        student = loop._losses.student_features(batches[0])
        value = loop._losses.of_beta(student, loop._teach(batches[0]), batches[0]).loss
        for variable, was in zip(variables, saved, strict=True):
            variable.assign(was)
        return float(value)

    directions = width * np.eye(len(start))
    gradient = [(loss(direction) - loss(-direction)) / (2 * width) for direction in directions]
    beta.assign(start)
    return np.array(gradient)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, as a share of the largest entry of the other."""
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.parametrize("objective", ["bridge", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ts", "student"))])
def test_it_is_the_gradient_through_one_step_of_the_optimizer(make_loop: MakeLoop, batches: Batches, objective: str) -> None:
    loop = make_loop("second", objective=objective, regulariser="squared_norm", lambda_=0.1)
    expected = by_differences(loop, batches, ahead=True)
    assert distance(gradient_of(loop, batches), expected) < TOLERANCE
    # What looking ahead adds is more than that, or this would show nothing.
    assert distance(by_differences(loop, batches, ahead=False), expected) > 5 * TOLERANCE


def test_without_momentum_too(make_loop: MakeLoop, batches: Batches) -> None:
    loop = make_loop("second", momentum=0.0)
    assert distance(gradient_of(loop, batches), by_differences(loop, batches, ahead=True)) < TOLERANCE


def test_first_order_is_the_gradient_at_the_weights_as_they_are(make_loop: MakeLoop, batches: Batches) -> None:
    loop = make_loop("first")
    assert distance(gradient_of(loop, batches), by_differences(loop, batches, ahead=False)) < TOLERANCE


def test_looking_ahead_leaves_weights_and_velocities_as_they_were(make_loop: MakeLoop, batches: Batches) -> None:
    loop = make_loop("second")
    before = [variable.numpy() for variable in state(loop)]
    beta = loop._betas[0].numpy()
    beta_step(loop, batches)
    for variable, was in zip(state(loop), before, strict=True):
        np.testing.assert_array_equal(variable, was)
    assert not np.array_equal(loop._betas[0], beta)
