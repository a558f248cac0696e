"""Properties of splits, on labels and fractions drawn at random."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dfa_tf.config import DataConfig
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Images, Source, Splits, split

usual = settings(derandomize=True, database=None, deadline=None, max_examples=60)

COUNTS = st.lists(st.integers(3, 40), min_size=2, max_size=5)
"""Images of each class."""
FRACTIONS = st.integers(0, 12).map(lambda count: count / 20)
LIMITS = st.none() | st.integers(3, 30)
SEEDS = st.integers(0, 2**31 - 2)


def source(counts: list[int]) -> Source:
    """Images of one pixel, in an order by which classes come one after another."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    images = Images(np.zeros((len(labels), 1, 1, 1), np.uint8), labels)
    return Source(images, None, [str(number) for number in range(len(counts))], [0.0], [1.0], "made up")


def drawn(counts: list[int], search: float, validation: float, limit: int | None, seed: int) -> Splits:
    """The splits; examples with too few images for every class to be in every split are passed over."""
    assume(search > 0 and search + validation < 1)
    config = DataConfig(search_fraction=search, validation_fraction=validation, train_limit_per_class=limit)
    try:
        return split(source(counts), config, seed=seed)
    except UserError as error:
        assume("every split needs images of every class" not in str(error))
        raise


def indices(parts: Splits) -> list[np.ndarray]:
    return [part.indices for part in (parts.train, parts.search, parts.validation)]


@usual
@given(COUNTS, FRACTIONS, FRACTIONS, LIMITS, SEEDS)
def test_splits_are_disjoint_and_together_all_images_that_are_used(
    counts: list[int], search: float, validation: float, limit: int | None, seed: int
) -> None:
    parts = drawn(counts, search, validation, limit, seed)
    together = np.concatenate(indices(parts))
    assert len(set(together)) == len(together)
    used = [min(count, limit or count) for count in counts]
    np.testing.assert_array_equal(np.bincount(parts.source.train.labels[together], minlength=len(counts)), used)
    for part in indices(parts):
        np.testing.assert_array_equal(part, np.sort(part))


@usual
@given(COUNTS, FRACTIONS, FRACTIONS, LIMITS, SEEDS)
def test_splits_have_the_sizes_of_their_fractions(
    counts: list[int], search: float, validation: float, limit: int | None, seed: int
) -> None:
    parts = drawn(counts, search, validation, limit, seed)
    total = sum(len(part) for part in indices(parts))
    assert abs(len(parts.search) - search * total) <= 2  # each of the two draws rounds to whole images
    assert 0 <= len(parts.validation) - validation * total < 1 + 1e-9
    for part in (parts.train, parts.search, parts.validation):
        assert len(set(part.classes)) == (len(counts) if len(part) else 0)


@usual
@given(COUNTS, FRACTIONS, FRACTIONS, LIMITS, SEEDS)
def test_the_same_seed_draws_the_same_splits(counts: list[int], search: float, validation: float, limit: int | None, seed: int) -> None:
    for first, second in zip(*(indices(drawn(counts, search, validation, limit, seed)) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(first, second)
