"""Strategies, schedules, the update with its L2 term, precision, and the callbacks."""

import inspect
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf.config import TrainConfig
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Splits
from dfa_tf.networks.batchnorm import batchnorm_switch
from dfa_tf.networks.features import FeatureModel
from dfa_tf.process import status
from dfa_tf.training.callbacks import MetricsLog, ProgressCallback
from dfa_tf.training.measuring import Stopwatch, peak_memory
from dfa_tf.training.strategies import check_batch, check_execution, check_fits, in_scope, steps_at_once, strategy
from dfa_tf.training.updates import optimizer, schedule, update


@pytest.fixture(scope="module")
def regression() -> keras.Model:
    """The least model that `fit` takes."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    return model


def test_the_cosine_schedule_falls_from_the_rate_to_zero() -> None:
    rate = schedule(TrainConfig(schedule="cosine", learning_rate=0.4), 100)
    values = [float(rate(step)) for step in (0, 25, 50, 75, 100)]
    np.testing.assert_allclose(values, [0.2 * (1 + np.cos(np.pi * step / 100)) for step in (0, 25, 50, 75, 100)], atol=1e-7)
    assert values[0] == pytest.approx(0.4)
    assert values[-1] == pytest.approx(0.0, abs=1e-7)


def test_the_step_schedule_decays_at_the_first_step_behind_each_milestone() -> None:
    config = TrainConfig(schedule="step", learning_rate=0.1, milestones=(0.3, 0.6, 0.8), decay=0.2)
    rate = schedule(config, 200 * 390)
    for epoch, times in ((0, 0), (59, 0), (60, 1), (119, 1), (120, 2), (159, 2), (160, 3), (199, 3)):
        for step in (epoch * 390, epoch * 390 + 389):
            np.testing.assert_allclose(rate(step), 0.1 * 0.2**times, rtol=1e-6)


def test_the_constant_schedule_is_the_rate() -> None:
    assert schedule(TrainConfig(schedule="constant", learning_rate=0.3), 10) == 0.3


def test_the_optimizer_is_sgd_and_leaves_weight_decay_to_the_update() -> None:
    sgd = optimizer(TrainConfig(schedule="constant", learning_rate=0.3, momentum=0.8, nesterov=False, weight_decay=0.1), 10)
    assert isinstance(sgd, keras.optimizers.SGD)
    assert (float(sgd.learning_rate), sgd.momentum, sgd.nesterov, sgd.weight_decay) == (pytest.approx(0.3), 0.8, False, None)


def test_the_update_adds_the_l2_term_to_the_gradient_and_leaves_unreached_variables() -> None:
    reached, unreached = (keras.Variable(np.array([1.0, -2.0], np.float32)) for _ in range(2))
    sgd = keras.optimizers.SGD(0.5)
    sgd.build([reached, unreached])
    gradient = tf.constant([0.3, 0.4])
    update(sgd, [gradient, None], [reached, unreached], weight_decay=0.1)
    # w - lr (g + wd w)
    np.testing.assert_allclose(reached, [1 - 0.5 * (0.3 + 0.1 * 1), -2 - 0.5 * (0.4 - 0.1 * 2)], rtol=1e-6)
    np.testing.assert_array_equal(unreached, [1.0, -2.0])
    update(sgd, [None, gradient], [reached, unreached])
    np.testing.assert_allclose(unreached, [1 - 0.5 * 0.3, -2 - 0.5 * 0.4], rtol=1e-6)
    np.testing.assert_allclose(reached, [0.8, -2.1], rtol=1e-6)


def test_the_l2_term_is_coupled_it_passes_through_the_momentum() -> None:
    variable = keras.Variable(np.array([1.0], np.float32))
    sgd = keras.optimizers.SGD(0.5, momentum=0.9)
    sgd.build([variable])
    w, velocity = 1.0, 0.0
    for _ in range(3):
        update(sgd, [tf.constant([0.2])], [variable], weight_decay=0.1)
        velocity = 0.9 * velocity - 0.5 * (0.2 + 0.1 * w)
        w += velocity
    np.testing.assert_allclose(variable, [w], rtol=1e-6)


def test_the_l2_term_counts_once_however_many_replicas(two_replicas: tf.distribute.Strategy) -> None:
    with two_replicas.scope():
        variable = keras.Variable(np.array([1.0, -2.0], np.float32))
        sgd = keras.optimizers.SGD(0.5)
        sgd.build([variable])

    @tf.function
    def step() -> None:
        two_replicas.run(lambda: update(sgd, [tf.constant([0.3, 0.4]) / 2], [variable], weight_decay=0.1))

    step()
    np.testing.assert_allclose(variable, [1 - 0.5 * (0.3 + 0.1 * 1), -2 - 0.5 * (0.4 - 0.1 * 2)], rtol=1e-6)


def test_a_gradient_is_clipped_by_its_norm_over_all_variables_before_the_l2_term() -> None:
    one, other, unreached = (keras.Variable(np.array(value, np.float32)) for value in ([1.0], [2.0], [3.0]))
    sgd = keras.optimizers.SGD(1.0)
    sgd.build([one, other, unreached])
    # The norm of (3, 4) is 5: clipped to 1 it is (0.6, 0.8).
    update(sgd, [tf.constant([3.0]), tf.constant([4.0]), None], [one, other, unreached], weight_decay=0.1, clip_norm=1.0)
    np.testing.assert_allclose([one[0], other[0], unreached[0]], [1 - 0.6 - 0.1, 2 - 0.8 - 0.2, 3], rtol=1e-6)
    update(sgd, [tf.constant([0.3]), tf.constant([0.4]), None], [one, other, unreached], clip_norm=1.0)
    np.testing.assert_allclose([one[0], other[0]], [0.3 - 0.3, 1.0 - 0.4], atol=1e-6)


def test_replicas_clip_the_norm_of_their_sum(two_replicas: tf.distribute.Strategy) -> None:
    with two_replicas.scope():
        variable = keras.Variable(np.array([0.0, 0.0], np.float32))
        sgd = keras.optimizers.SGD(1.0)
        sgd.build([variable])

    @tf.function
    def step() -> None:
        def each() -> None:
            first = tf.distribute.get_replica_context().replica_id_in_sync_group == 0
            gradient = tf.where(first, tf.constant([3.0, -5.0]), tf.constant([0.0, 9.0]))
            update(sgd, [gradient], [variable], clip_norm=1.0)

        two_replicas.run(each)

    step()
    np.testing.assert_allclose(variable, [-0.6, -0.8], rtol=1e-6)  # the sum is (3, 4)


def test_strategies_by_name() -> None:
    gpus = len(tf.config.list_logical_devices("GPU"))
    assert strategy("auto").num_replicas_in_sync == max(gpus, 1)
    mirrored = strategy("mirrored")
    assert isinstance(mirrored, tf.distribute.MirroredStrategy)
    assert mirrored.num_replicas_in_sync == (gpus or 2)


def test_a_batch_must_have_an_example_for_each_replica() -> None:
    check_batch(1, 1)
    check_batch(5, 4)
    with pytest.raises(UserError, match=r"at least the number of replicas, 4. Received: 3"):
        check_batch(3, 4)


def test_networks_must_fit_the_data(splits: Splits, tiny: Callable[..., FeatureModel], build_model: Callable[..., keras.Model]) -> None:
    check_fits(tiny(), splits)
    pixels = keras.layers.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="block")(pixels)
    logits = keras.layers.Dense(10)(keras.layers.Flatten()(x))
    with pytest.raises(UserError, match=r"data's image_shape \(8, 8, 1\). Received: \(8, 8, 3\) of 'colour'"):
        check_fits(FeatureModel.from_model(keras.Model(pixels, logits, name="colour"), [["block"]]), splits)


def test_one_device_takes_the_network_itself_and_several_a_mirrored_copy(
    two_replicas: tf.distribute.Strategy, tiny: Callable[..., FeatureModel]
) -> None:
    network = tiny()
    assert in_scope(tf.distribute.get_strategy(), network) is network
    with two_replicas.scope():
        copy = in_scope(two_replicas, network)
    assert copy.model is not network.model
    assert copy.block_names() == network.block_names()
    for ours, theirs in zip(copy.model.weights, network.model.weights, strict=True):
        assert isinstance(ours.value, tf.distribute.DistributedValues)
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_batchnorm_is_synchronised_and_no_longer(tiny: Callable[..., FeatureModel]) -> None:
    model = tiny().model
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    switch = batchnorm_switch(model)
    for on in (True, False):
        switch(on)
        assert [norm.synchronized for norm in norms] == [on, on]


def test_the_metrics_log_keeps_and_writes_a_line_for_each_epoch(regression: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text("of an earlier run\n")
    log = MetricsLog(path)
    x, y = np.ones((8, 3), np.float32), np.ones((8, 1), np.float32)
    history = regression.fit(x, y, epochs=3, callbacks=[log], verbose=0).history
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == log.rows
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    np.testing.assert_allclose([line["loss"] for line in lines], history["loss"])


def test_the_metrics_log_writes_nothing_without_a_path(regression: keras.Model) -> None:
    log = MetricsLog(None)
    regression.fit(np.ones((8, 3), np.float32), np.ones((8, 1), np.float32), epochs=1, callbacks=[log], verbose=0)
    assert [set(row) for row in log.rows] == [{"epoch", "loss"}]


def test_progress_is_told_of_each_step_with_the_numbers_that_matter(regression: keras.Model) -> None:
    told: list[tuple[int, int, dict[str, float]]] = []
    first = {"total_loss": 2.0, "accuracy": 0.5, "dfa/group1": 3.0, "dfa/group2": 4.0, "learning_rate": 0.1, "gradient_norm": 9.0}
    batches = [first, {"total_loss": 1.0, "accuracy": 0.75}]
    callback = ProgressCallback(lambda done, total, numbers: told.append((done, total, numbers)), epochs=2, steps=10, done=4)
    callback.set_model(regression)
    callback.on_epoch_begin(0)
    for batch, logs in enumerate(batches):
        callback.on_train_batch_end(batch, logs)
    # The second numbers come within half a second, in which the device is not waited for again.
    numbers = {"total_loss": 2.0, "accuracy": 0.5, "dfa": 7.0}
    assert told == [(5, 20, numbers), (6, 20, numbers)]


def test_progress_is_told_of_the_last_evaluation_too(regression: keras.Model) -> None:
    told: list[dict[str, float]] = []
    callback = ProgressCallback(lambda done, total, numbers: told.append(numbers), epochs=3, steps=1)
    callback.set_model(regression)
    for epoch, evaluated in enumerate([{"test_accuracy": 0.25, "test_loss": 9.0}, {}, {"test_accuracy": 0.5}]):
        callback._read = -math.inf  # as if half a second had gone by
        callback.on_epoch_begin(epoch)
        callback.on_train_batch_end(0, {"total_loss": 1.0})
        logs = {"total_loss": 1.0}
        callback.on_epoch_end(epoch, logs)
        logs |= evaluated  # as callbacks behind it do
    assert told == [{"total_loss": 1.0}, *2 * [{"total_loss": 1.0, "test_accuracy": 0.25}]]


def test_progress_says_which_epoch_it_is_and_when_a_step_is_traced(regression: keras.Model) -> None:
    callback, said = ProgressCallback(lambda done, total, numbers: None, epochs=4, steps=2), []

    class Listener(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
            said.append(status.now().what)

    x, y = np.ones((8, 3), np.float32), np.ones((8, 1), np.float32)
    for first in (1, 3):  # as in two phases
        regression.fit(x, y, batch_size=4, initial_epoch=first - 1, epochs=first + 1, callbacks=[callback, Listener()], verbose=0)
    phases = [[f"preparing the first step of epoch {epoch}/4", *[f"epoch {epoch}/4"], *2 * [f"epoch {epoch + 1}/4"]] for epoch in (1, 3)]
    assert said == [*phases[0], *phases[1]]


def test_progress_counts_the_steps_that_are_made_at_once() -> None:
    told: list[int] = []
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", steps_per_execution=2)
    x, y = np.ones((12, 3), np.float32), np.ones((12, 1), np.float32)
    callback = ProgressCallback(lambda done, total, numbers: told.append(done), epochs=1, steps=6)
    model.fit(x, y, batch_size=2, callbacks=[callback], verbose=0)
    assert told == [2, 4, 6]


@pytest.mark.parametrize(("asked", "steps", "made"), [(1, 7, 1), (4, 12, 4), (5, 12, 4), (7, 12, 6), (50, 12, 12), (5, 7, 1)])
def test_steps_at_once_divide_an_epoch(asked: int, steps: int, made: int) -> None:
    assert steps_at_once(TrainConfig(steps_per_execution=asked), steps) == made


@pytest.mark.parametrize(("field", "told"), [({"jit_compile": True}, "true and 1 on 2"), ({"steps_per_execution": 3}, "false and 3 on 2")])
def test_several_replicas_do_not_compile_a_step_or_make_several_at_once(field: dict[str, bool | int], told: str) -> None:
    config = TrainConfig(**field)  # type: ignore[arg-type]
    check_execution(config, 1)
    check_execution(TrainConfig(), 2)
    with pytest.raises(UserError, match=f"train.steps_per_execution above 1 need one device. Received: {told} replicas"):
        check_execution(config, 2)


def test_the_peak_of_memory_is_this_process_s_own(tmp_path: Path) -> None:
    """Started by this one, which has TensorFlow and so more than 300 MiB, a bare process has less."""
    assert peak_memory() > 300
    script = tmp_path / "bare.py"
    script.write_text(f"from pathlib import Path\n{inspect.getsource(peak_memory)}\nprint(peak_memory())\n")
    assert 1 < float(subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True).stdout) < 100


def test_the_stopwatch_tells_time_speed_and_versions() -> None:
    result = Stopwatch().result(steps=1000, batch_size=50)
    assert set(result) == {"steps", "seconds", "examples_per_second", "peak_memory_mb", "versions"}
    assert result["steps"] == 1000
    assert 0 <= result["seconds"] < 5
    assert result["examples_per_second"] > 1000 * 50 / 5
    assert result["peak_memory_mb"] > 50
    assert result["versions"]["tensorflow"] == tf.__version__
    json.dumps(result, allow_nan=False)
