"""In which precision networks compute, what this device does fast, and loss scaling."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from dfa_tf.aggregation.search import search
from dfa_tf.config import Config
from dfa_tf.distillation.distil import distil
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Splits
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.precision import choose_precision, computing_in, fast_precision, policy_name, precision, resolved
from dfa_tf.training.updates import loss_scaled, update

MIXED = ["mixed_bfloat16", "mixed_float16"]


def test_precision_is_restored_also_behind_an_error() -> None:
    before = keras.config.dtype_policy().name
    with precision("mixed_bfloat16"):
        layer = keras.layers.Dense(2)
    assert (layer.compute_dtype, layer.variable_dtype) == ("bfloat16", "float32")
    assert keras.config.dtype_policy().name == before == "float32"
    with pytest.raises(KeyError), precision("mixed_bfloat16"):
        raise KeyError("of the body")
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize(
    ("gpus", "flags", "onednn", "name", "why"),
    [
        ([(9, 0)], set(), True, "mixed_bfloat16", "the GPU has compute capability 9.0"),
        ([(8, 0)], set(), False, "mixed_bfloat16", "the GPU has compute capability 8.0"),
        ([(7, 5)], {"avx512_bf16"}, True, "mixed_float16", "the GPU has compute capability 7.5"),
        ([(9, 0), (7, 0)], set(), True, "mixed_float16", "the GPU has compute capability 7.0"),
        ([(6, 1)], {"avx512_bf16"}, True, "float32", "the GPU has compute capability 6.1"),
        ([], {"avx2", "avx512_bf16"}, True, "mixed_bfloat16", "the processor has AVX512_BF16"),
        ([], {"avx512_bf16", "amx_bf16"}, True, "mixed_bfloat16", "the processor has AMX_BF16"),
        ([], {"avx512_bf16"}, False, "float32", "the processor has no fast bfloat16"),
        ([], {"avx2", "avx512f"}, True, "float32", "the processor has no fast bfloat16"),
    ],
)
def test_auto_is_what_the_devices_do_fast(gpus: list[tuple[int, int]], flags: set[str], onednn: bool, name: str, why: str) -> None:
    assert choose_precision(gpus, flags, onednn=onednn) == (name, why)


def test_auto_stands_for_this_machine_s_own_and_other_names_for_themselves() -> None:
    assert policy_name("auto") == fast_precision()[0] in ("float32", *MIXED)
    assert [policy_name(name) for name in ("float32", *MIXED)] == ["float32", *MIXED]
    with precision("auto"):
        assert keras.config.dtype_policy().name == policy_name("auto")


def test_a_configuration_without_auto_is_itself_and_nothing_is_said() -> None:
    said: list[str] = []
    config = Config().override(["train.precision=mixed_bfloat16"])
    assert resolved(config, said.append) == config
    assert said == []


def test_auto_is_resolved_for_both_networks_and_said() -> None:
    said: list[str] = []
    config = resolved(Config().override(["train.precision=auto", "teacher.precision=auto"]), said.append)
    name, why = fast_precision()
    assert (config.train.precision, config.teacher.precision) == (name, name)
    assert said == [f"train.precision and teacher.precision=auto: {name}, because {why}"]


def test_the_hash_is_of_the_precision_that_auto_comes_to() -> None:
    auto = resolved(Config().override(["train.precision=auto"]), print)
    assert auto.stage_hash("distil") == Config().override([f"train.precision={policy_name('auto')}"]).stage_hash("distil")


def test_the_teacher_computes_as_the_student_unless_told_otherwise() -> None:
    config = Config().override(["train.precision=mixed_bfloat16"])
    assert config.teacher_precision == "mixed_bfloat16"
    assert config.override(["teacher.precision=float32"]).teacher_precision == "float32"
    assert config.stage_hash("search") != config.override(["teacher.precision=float32"]).stage_hash("search")
    assert config.stage_hash("plain") == config.override(["teacher.precision=float32"]).stage_hash("plain")


@pytest.fixture
def scaled() -> FeatureModel:
    """A network that scales its raw pixels and ends in a softmax-free Dense layer."""
    pixels = layers.Input((8, 8, 1))
    x = layers.Rescaling(1 / 255, name="scale")(pixels)
    x = layers.Conv2D(4, 3, name="block")(x)
    x = layers.ReLU()(x)
    logits = layers.Dense(10, name="answers")(layers.GlobalAveragePooling2D()(x))
    return FeatureModel.from_model(keras.Model(pixels, logits), [["block"]])


@pytest.mark.parametrize("name", MIXED)
def test_a_network_is_made_to_compute_in_another_precision(name: str, scaled: FeatureModel, digits: np.ndarray) -> None:
    copy = computing_in(name, scaled)
    half = name.removeprefix("mixed_")
    dtypes = {layer: copy.model.get_layer(layer).compute_dtype for layer in ("scale", "block", "answers")}
    assert dtypes == {"scale": "float32", "block": half, "answers": "float32"}
    features = copy.extractor()(digits)
    assert (features.logits.dtype, features.groups[0][0].dtype) == ("float32", half)
    np.testing.assert_allclose(features.logits, scaled.model(digits), atol=0.02)
    assert copy.block_names() == scaled.block_names()
    for ours, theirs in zip(copy.model.weights, scaled.model.weights, strict=True):
        assert ours is not theirs
        assert ours.dtype == "float32"
        np.testing.assert_array_equal(ours, theirs)
    back = computing_in("float32", copy)
    np.testing.assert_array_equal(back.model(digits), scaled.model(digits))


def test_a_network_that_computes_so_already_is_taken_as_it_is(scaled: FeatureModel) -> None:
    mixed = computing_in("mixed_bfloat16", scaled)
    assert computing_in("float32", scaled) is scaled
    assert computing_in("mixed_bfloat16", mixed) is mixed


def test_an_update_under_a_loss_scale_is_that_without() -> None:
    results = []
    for name in ("float32", "mixed_float16"):
        weight = keras.Variable([3.0, 4.0])
        optimizer = loss_scaled(keras.optimizers.SGD(0.5), name)
        optimizer.build([weight])
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(tf.reduce_sum(weight.value * tf.constant([30.0, 40.0])))
        update(optimizer, tape.gradient(loss, [weight.value]), [weight], weight_decay=0.1, clip_norm=5.0)
        results.append(weight.numpy())
    # The gradient [30, 40] of norm 50 is clipped to [3, 4], and that of the L2 term is 0.1 [3, 4]: w - 0.5 [3.3, 4.4].
    np.testing.assert_allclose(results, [[1.35, 1.8]] * 2, rtol=1e-6)


def test_a_step_whose_gradients_overflow_is_left_out_and_halves_the_scale() -> None:
    weight = keras.Variable([3.0])
    optimizer = loss_scaled(keras.optimizers.SGD(0.5), "mixed_float16")
    optimizer.build([weight])
    before = float(optimizer.dynamic_scale.numpy())
    update(optimizer, [tf.constant([np.inf])], [weight], weight_decay=0.1)
    assert weight.numpy() == [3.0]
    assert float(optimizer.dynamic_scale.numpy()) == before / 2
    assert int(optimizer.iterations.numpy()) == 0


def test_replicas_agree_on_a_step_that_overflows_on_one_of_them(two_replicas: tf.distribute.Strategy) -> None:
    with two_replicas.scope():
        weight = keras.Variable([3.0])
        optimizer = loss_scaled(keras.optimizers.SGD(0.5), "mixed_float16")
        optimizer.build([weight])

    @tf.function
    def step(strategy: tf.distribute.Strategy, values: tf.Tensor) -> None:
        strategy.run(lambda: update(optimizer, [values[tf.distribute.get_replica_context().replica_id_in_sync_group]], [weight]))

    # One overflows, and the scale of 2^15 is halved; then 2^14 and 2^14 add up to a gradient of 2, half of which is the step.
    for first, second, expected in ((1.0, np.inf, 3.0), (16384.0, 16384.0, 2.0)):
        values = tf.constant([[first], [second]])
        step(two_replicas, values)
        np.testing.assert_allclose([local.numpy() for local in two_replicas.experimental_local_results(weight.value)], [[expected]] * 2)


@pytest.mark.parametrize("name", MIXED)
def test_both_stages_train_in_a_mixed_precision(name: str, quick: Config, splits: Splits, tiny: Callable[..., FeatureModel]) -> None:
    config = quick.override([f"train.precision={name}", "train.ema=0.5", "search.epochs=1", "search.mode=joint"])
    teacher, student = tiny(4, 2), computing_in(name, tiny(4, 1))
    found = search(teacher, computing_in(name, tiny(4, 1)), splits, config)
    distilled = distil(teacher, student, splits, config, aggregation=found.weights)
    assert all(np.isfinite(list(row.values())).all() for row in distilled.history)
    assert distilled.history[-1]["total_loss"] < distilled.history[0]["total_loss"]
    assert {weight.dtype for weight in distilled.student.weights} == {"float32"}
    assert any(layer.compute_dtype == name.removeprefix("mixed_") for layer in distilled.student.layers)
    assert teacher.model.layers[-1].compute_dtype == "float32"


def test_the_second_order_search_is_refused_in_float16() -> None:
    with pytest.raises(UserError, match="search.order='second' has no loss scaling, which train.precision='mixed_float16' needs"):
        Config().override(["search.order=second", "train.precision=mixed_float16"])
