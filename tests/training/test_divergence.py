"""What is no longer finite is told by its term, group, step and learning rate, and of several the first."""

import math
from collections.abc import Callable, Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf.aggregation.search import search
from dfa_tf.config import Config
from dfa_tf.distillation.distil import distil
from dfa_tf.errors import DivergenceError
from dfa_tf.images.splits import Images, Split, Splits
from dfa_tf.networks.features import FeatureModel
from dfa_tf.training.divergence import FiniteCallback, FiniteWatch

Tiny = Callable[..., FeatureModel]
INFINITY = float("inf")


def told(watch: FiniteWatch) -> str:
    with pytest.raises(DivergenceError) as caught:
        watch.check()
    return str(caught.value)


def test_the_first_step_and_of_it_the_first_term_is_told() -> None:
    watch = FiniteWatch("Lower it")
    note = tf.function(watch.note)
    for step, (kd, margin) in enumerate([(1.0, 2.0), (3.0, INFINITY), (INFINITY, INFINITY), (1.0, 1.0)]):
        note({"kd": tf.constant(kd), "margin/group2": tf.constant(margin)}, tf.constant(step), tf.constant(0.5**step))
    # The steps count from 1, and the rate of the second one is 0.5.
    assert told(watch) == "the training diverged: margin of group 2 is inf at step 2, where the learning rate is 0.5. Lower it"
    assert told(watch) == told(watch)


def test_terms_of_two_functions_are_kept_apart() -> None:
    watch = FiniteWatch("")
    tf.function(watch.note)({"search/st": tf.constant(1.0)}, tf.constant(0), 0.1)
    tf.function(watch.note)({"train/loss": tf.constant(1.0), "train/group1/st": tf.constant(float("nan"))}, tf.constant(0), 0.1)
    assert told(watch).startswith("the training diverged: train/st of group 1 is nan at step 1,")


def test_finite_terms_say_nothing() -> None:
    watch = FiniteWatch("")
    watch.check()
    watch.note({"kd": tf.constant(3e38)}, tf.constant(0), 0.1)
    watch.check()


def test_what_one_of_two_replicas_sees_is_told(two_replicas: tf.distribute.Strategy) -> None:
    with two_replicas.scope():
        watch = FiniteWatch("")

    @tf.function
    def step(number: tf.Tensor) -> None:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        value = tf.where((replica == 1) & (number == 2), float("nan"), 1.0)
        watch.note({"kd": value}, number, 0.25)

    for number in range(4):
        two_replicas.run(step, args=(tf.constant(number),))
    assert told(watch) == "the training diverged: kd is nan at step 3, where the learning rate is 0.25."


def test_a_long_epoch_is_not_waited_for() -> None:
    watch = FiniteWatch("")
    callback = FiniteCallback(watch)
    callback.set_model(keras.Sequential())
    watch.note({"kd": tf.constant(INFINITY)}, tf.constant(0), 0.1)
    callback.on_train_batch_end(48)
    with pytest.raises(DivergenceError):
        callback.on_train_batch_end(49)
    with pytest.raises(DivergenceError):
        callback.on_epoch_end(0)


def with_a_hole(splits: Splits) -> Splits:
    """The same images, but for one pixel of one training image, which is NaN."""
    pixels = np.asarray(splits.train.images.pixels, np.float32)
    pixels[splits.train.indices[7], 3, 3] = np.nan
    images = Images(pixels, splits.train.images.labels)
    train, searched = (Split(images, part.indices) for part in (splits.train, splits.search))
    return Splits(train, searched, splits.validation, splits.test, splits.source)


def test_distillation_names_the_step_that_saw_it_and_its_learning_rate(tiny: Tiny, splits: Splits, quick: Config) -> None:
    data = with_a_hole(splits)
    batches = (data.train + data.search).batches(20, seed=quick.seed).take(3)  # the first epoch: 60 images
    seen = [bool(np.isnan(batch["images"]).any()) for batch in batches]
    step = seen.index(True)
    # Cosine decay from 0.05 over 4 epochs of 3 steps.
    rate = 0.05 * (1 + math.cos(math.pi * step / 12)) / 2
    # A ReLU of oneDNN gives 0 for NaN, and then only the gradient shows it.
    expected = (
        f"the training diverged: (cross_entropy|gradient_norm) is nan at step {step + 1}, where the learning rate is {rate:.3g}. Lower"
    )
    with pytest.raises(DivergenceError, match=expected):
        distil(None, tiny(), data, quick)


def broken(teacher: FeatureModel) -> FeatureModel:
    """A teacher whose second group gives NaN."""
    layer = teacher.model.get_layer("group2_block1_conv")
    layer.set_weights([np.full(layer.kernel.shape, np.nan, np.float32)])
    return teacher


def test_distillation_names_the_group(tiny: Tiny, splits: Splits, quick: Config) -> None:
    config = quick.override(['distil.methods={"margin": 1}'])
    with pytest.raises(DivergenceError, match=r"diverged: margin of group 2 is nan at step 1, where the learning rate is 0\.05"):
        distil(broken(tiny(seed=1)), tiny(), splits, config)


@pytest.fixture
def eagerly() -> Iterator[None]:
    """A step takes longer to trace than to make."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.usefixtures("eagerly")
@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`:UserWarning")
@pytest.mark.parametrize(("order", "half"), [("first", "search"), ("second", "train")])
def test_the_search_names_the_group(tiny: Tiny, splits: Splits, quick: Config, order: str, half: str) -> None:
    """A step of second order looks at the training half first."""
    config = quick.override(["search.mode=joint", "search.epochs=1", "search.learning_rate=0.03", f"search.order={order}"])
    expected = rf"diverged: {half}/st of group 2 is nan at step 1, where the learning rate is 0\.03\. Lower search.learning_rate"
    with pytest.raises(DivergenceError, match=expected):
        search(broken(tiny(blocks=2, seed=1)), tiny(), splits, config)


@pytest.mark.usefixtures("eagerly")
@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`:UserWarning")
def test_the_search_names_the_step_that_saw_it(tiny: Tiny, splits: Splits, quick: Config) -> None:
    """Groups are searched one after the other, and steps count on; the hole is in the training half, which makes one step an epoch."""
    config = quick.override(["search.epochs=2", "search.learning_rate=0.03", "data.batch_size=30"])
    with pytest.raises(DivergenceError, match=r"diverged: train/st of group 1 is nan at step 1, where the learning rate is 0\.03"):
        search(tiny(blocks=2, seed=1), tiny(), with_a_hole(splits), config)
