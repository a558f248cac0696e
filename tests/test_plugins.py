"""Plug-ins are found by file name, known before they are imported, and built by their public names."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import keras
import pytest

from dfa_tf import plugins
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Source


def test_names_are_the_keys_of_variants_or_else_the_file_name() -> None:
    assert {"wrn_16_1", "wrn_28_4", "wrn_40_2"} <= set(plugins.names("models"))
    assert "wide_resnet" not in plugins.names("models")
    assert "bundled" in plugins.names("data")
    assert {"dfa", "kd"} <= set(plugins.names("losses"))
    for kind in plugins.KINDS:
        assert plugins.names(kind) == sorted(set(plugins.names(kind)))


def test_every_module_with_a_build_has_a_name() -> None:
    for kind in plugins.KINDS:
        folder = Path(plugins.__file__).parent / kind
        modules = {path.stem for path in folder.glob("[!_]*") if path.suffix == ".py" or (path / "__init__.py").exists()}
        found = {plugins.builder(kind, name).func.__module__ for name in plugins.names(kind)}
        assert found == {f"dfa_tf.{kind}.{name}" for name in modules}


def test_a_variant_fills_in_its_options() -> None:
    model = plugins.build("models", "wrn_10_2", image_shape=(8, 8, 1), num_classes=3)
    assert isinstance(model, keras.Model)
    assert model.name == "wrn_10_2"
    assert model.output.shape == (None, 3)


def test_data_is_built_without_options() -> None:
    assert isinstance(plugins.build("data", "bundled"), Source)


def test_option_names_are_the_keyword_only_arguments_that_the_name_leaves_open() -> None:
    assert set(plugins.arguments("models", "wrn_16_1")) == {"image_shape", "num_classes", "mean", "std"}
    assert plugins.option_names("models", "wrn_16_1") == ["mean", "std"]
    assert plugins.option_names("losses", "dfa") == ["distance"]
    with pytest.raises(UserError, match="unknown option of wrn_16_1. Received: 'depth'"):
        plugins.build("models", "wrn_16_1", image_shape=(8, 8, 1), num_classes=3, depth=22)
    assert plugins.option_names("losses", "kd") == ["temperature"]
    assert plugins.option_names("data", "bundled") == []


def test_check_accepts_every_name() -> None:
    for kind in plugins.KINDS:
        for name in plugins.names(kind):
            plugins.check(kind, name)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: plugins.names("model"), r"unknown kind of plug-in. Received: 'model'. Did you mean 'models'\?"),
        (lambda: plugins.names("zzz"), r"unknown kind of plug-in. Received: 'zzz'. Choose from data, losses, models\."),
        (lambda: plugins.check("models", "wrn_16_22"), r"unknown name in models. Received: 'wrn_16_22'. Did you mean 'wrn_16_2'"),
        (lambda: plugins.check("data", "bundle"), r"unknown name in data. Received: 'bundle'. Did you mean 'bundled'\?"),
        (lambda: plugins.builder("losses", "dfaa"), r"unknown name in losses. Received: 'dfaa'. Did you mean 'dfa'"),
        (lambda: plugins.build("models", "wide_resnet"), r"unknown name in models. Received: 'wide_resnet'"),
        (
            lambda: plugins.build("models", "wrn_10_1", image_shape=(8, 8, 1), num_class=10),
            r"unknown option of wrn_10_1. Received: 'num_class'. Did you mean 'num_classes'\?",
        ),
        (
            lambda: plugins.build("losses", "kd", None, None, temprature=2),
            r"unknown option of kd. Received: 'temprature'. Did you mean 'temperature'\?",
        ),
    ],
)
def test_a_wrong_word_is_refused_with_the_nearest(call: Callable[[], object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        call()


def test_names_are_known_without_importing_a_plug_in(fresh_process: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = fresh_process(
        "import sys\n"
        "from dfa_tf import plugins\n"
        "print(*(len(plugins.names(kind)) for kind in plugins.KINDS))\n"
        "plugins.check('models', 'wrn_100_12')\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('keras', 'tensorflow') or name.startswith('dfa_tf.models')])"
    )
    counts, loaded = done.stdout.splitlines()
    assert counts == " ".join(str(len(plugins.names(kind))) for kind in plugins.KINDS)
    assert loaded == "[]"


def test_a_value_that_does_not_fit_is_reported_with_the_plug_in() -> None:
    with pytest.raises(UserError, match="wrn_16_1 cannot be built with these options. ZeroDivisionError"):
        plugins.build("models", "wrn_16_1", image_shape=(8, 8, 1), num_classes=3, std=[0])
