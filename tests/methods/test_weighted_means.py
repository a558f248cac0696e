"""Properties of weighted means, over batches, weights and replicas that hypothesis draws."""

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dfa_tf.methods.classification import replica_share, weighted_mean

FEW = settings(max_examples=15, deadline=None, derandomize=True, database=None)
NUMBERS = st.lists(st.tuples(st.floats(-5, 5, width=32), st.floats(0, 3, width=32)), min_size=1, max_size=8)


@FEW
@given(NUMBERS)
def test_a_weighted_mean_is_that_of_numpy_over_the_batch(numbers: list[tuple[float, float]]) -> None:
    terms, weights = np.array(numbers, np.float32).T
    expected = np.float64(terms) @ np.float64(weights) / len(numbers)
    np.testing.assert_allclose(weighted_mean(tf.constant(terms), tf.constant(weights)), expected, rtol=1e-4, atol=1e-5)
    ones = np.ones_like(terms)
    np.testing.assert_array_equal(weighted_mean(tf.constant(terms), tf.constant(ones)), weighted_mean(tf.constant(terms), None))


@FEW
@given(NUMBERS, st.floats(0, 4, width=32))
def test_it_is_linear_in_the_weights_and_a_statistic_has_none(numbers: list[tuple[float, float]], factor: float) -> None:
    terms, weights = (tf.constant(column) for column in np.array(numbers, np.float32).T)
    np.testing.assert_allclose(weighted_mean(terms, factor * weights), factor * weighted_mean(terms, weights), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(weighted_mean(terms[0], weights), terms[0])


@settings(FEW, max_examples=4)
@given(NUMBERS, st.integers(0, 8))
def test_the_mean_over_replicas_is_that_over_all_examples(
    two_replicas: tf.distribute.Strategy, numbers: list[tuple[float, float]], cut: int
) -> None:
    """Whatever their parts of the batch are, an empty one included."""
    terms, weights = np.array(numbers, np.float32).T
    parts = [slice(None, cut), slice(cut, None)]

    def split(column: np.ndarray) -> tf.Tensor:
        here = lambda context: tf.constant(column[parts[context.replica_id_in_sync_group]])  # noqa: E731
        return two_replicas.experimental_distribute_values_from_function(here)

    @tf.function
    def mean_of(ours: tf.Tensor, theirs: tf.Tensor) -> tf.Tensor:
        means = two_replicas.run(lambda part, share: weighted_mean(part, share, replica_share(part)), (ours, theirs))
        return two_replicas.reduce("MEAN", means, axis=None)

    mean = mean_of(split(terms), split(weights))
    np.testing.assert_allclose(mean, weighted_mean(tf.constant(terms), tf.constant(weights)), rtol=1e-4, atol=1e-5)


def test_one_device_has_no_share() -> None:
    assert replica_share(tf.zeros([3])) is None
