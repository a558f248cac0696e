"""The configuration that the arguments of compress come to."""

from pathlib import Path

import numpy as np
import pytest

from dfa_tf.config import Config
from dfa_tf.errors import UserError
from dfa_tf.pipeline.arguments import configure


def test_the_defaults_are_those_that_are_documented() -> None:
    config = configure((), 50_000)
    assert (config.seed, config.data.batch_size, config.data.name) == (0, 64, "given")
    assert (config.student_train.epochs, config.student_train.learning_rate, config.student_train.schedule) == (30, 0.05, "cosine")
    # A third of 30 epochs, of which a quarter warms up.
    assert (config.search.epochs, config.search.warmup_epochs, config.search.mode) == (10, 2, "joint")
    assert (config.distil.methods, config.distil.aggregation) == ({"dfa": 2.0, "kd": 1.0}, "searched")
    assert config.distil.options == {"dfa": {"distance": "l2_normalised"}}
    assert not config.train.choose_best


@pytest.mark.parametrize(("count", "batch"), [(1024, 64), (1023, 63), (160, 10), (7, 1)])
def test_few_images_come_in_sixteen_batches(count: int, batch: int) -> None:
    assert configure((), count).data.batch_size == batch


def test_arguments_stand_for_fields() -> None:
    config = configure(
        ["search.mode=group_wise", "train.epochs=5"], 5000, methods=["dfa", "pkt"], epochs=7, batch_size=np.int64(20), learning_rate=0.2,
        choose_best=True, seed=3, aggregation=Path("some/alphas.json"),
    )  # fmt: skip
    assert (config.seed, config.data.batch_size, config.train.choose_best, config.search.mode) == (3, 20, True, "group_wise")
    assert (config.student_train.epochs, config.student_train.learning_rate) == (7, 0.2)
    assert (config.search.epochs, config.search.warmup_epochs) == (2, 0)
    assert config.distil.methods == {"dfa": None, "pkt": None}
    assert config.distil.aggregation_file == "some/alphas.json"


@pytest.mark.parametrize(
    ("methods", "wanted"),
    [("kd", {"kd": None}), ({"kd": 0.9, "dfa": None}, {"kd": 0.9, "dfa": None}), ([], {}), (("pkt",), {"pkt": None})],
)
def test_methods_are_given_by_name_list_or_weights(methods: object, wanted: dict[str, float | None]) -> None:
    assert configure((), 100, methods=methods).distil.methods == wanted


def test_a_method_that_is_changed_as_a_field_leaves_no_options_of_another_behind() -> None:
    config = configure(['distil.methods={"kd": 1.0}', 'distil.options={"kd": {"temperature": 8}}'], 100)
    assert config.distil.options == {"kd": {"temperature": 8}}


def test_options_of_dfa_that_are_given_are_taken() -> None:
    assert configure(['distil.options={"dfa": {"distance": "margin"}}'], 100).distil.options == {"dfa": {"distance": "margin"}}


def test_a_whole_configuration_stands_in_place_of_the_defaults() -> None:
    whole = Config().override(['distil.methods={"dfa": 1.0}', 'distil.options={"dfa": {"distance": "l2"}}', "data.flip=true"])
    assert configure(whole, 100) == whole
    changed = configure(whole, 100, methods="kd", epochs=2)
    assert (changed.distil.methods, changed.distil.options, changed.distil.epochs) == ({"kd": None}, {}, 2)
    assert (changed.data.flip, changed.search.epochs, changed.data.batch_size) == (True, 10, 128)


def test_what_is_held_out_is_taken_from_both_halves_alike() -> None:
    config = configure((), 1000, validation_share=0.2)
    assert (config.data.validation_fraction, config.data.search_fraction) == (0.2, 0.4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"methods": "dffa"}, "unknown name in losses. Received: 'dffa'. Did you mean 'dfa'"),
        ({"methods": {"kd": -1.0}}, "distil.methods.kd: Input should be greater than or equal to 0. Received: -1.0"),
        ({"aggregation": "serched"}, "distil.aggregation: .*'searched'"),
        ({"epochs": 0}, "distil.epochs: .*greater than or equal to 1. Received: 0"),
        ({"epochs": "many"}, "distil.epochs: .*integer. Received: 'many'"),
        ({"batch_size": 2.5}, "data.batch_size: .*integer. Received: 2.5"),
        ({"learning_rate": float("nan")}, "distil.learning_rate: .*Received"),
        ({"seed": -1}, "seed: .*greater than or equal to 0"),
        ({"validation_share": 1.5}, "data.validation_fraction: .*less than 1. Received: 1.5"),
    ],
)
def test_a_wrong_argument_is_named_with_its_field(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        configure((), 100, **arguments)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (["serch.epochs=5"], "unknown field. Received: 'serch'"),
        ("search.epochs", "an override must read key.path=value. Received: 'search.epochs'"),
        ([("search.epochs", 5)], "config must be a dfa_tf.Config or a list of 'key.path=value'"),
    ],
)
def test_a_wrong_config_is_told(config: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        configure(config, 100)
