"""Experiments from files, and those that come with the package: each is built and takes a step of every stage."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from dfa_tf import plugins
from dfa_tf.aggregation.search import search
from dfa_tf.config import Config, StudentConfig, experiments
from dfa_tf.config.experiments import load
from dfa_tf.distillation.distil import distil
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Images, Source, Split, Splits
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.pairing import keep_paired_groups

Process = Callable[..., subprocess.CompletedProcess[str]]
SHIPPED = sorted(path.stem for path in (Path(experiments.__file__).parents[2] / "configs").glob("[!_]*.py"))
SHIPPED.remove("families")  # what experiments share
# What takes long to build, and what has the networks of another.
LARGE = ("cinic10", "image_folder", "cifar100_wrn_28_4", "kd_resnet110", "kd_wrn_40_2", "bundled_tune")
SHAPES = {"bundled": ((8, 8, 1), 10), "cifar100": ((32, 32, 3), 100), "cinic10": ((32, 32, 3), 10), "image_folder": ((64, 64, 3), 10)}


def test_a_python_file_is_loaded_and_overridden(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from dfa_tf.config import Config\n\n\ndef get_config():\n    return Config(seed=5)\n", encoding="utf-8")
    assert load(str(file)) == Config(seed=5)
    assert load(str(file), ["train.epochs=2"]) == Config(seed=5).override(["train.epochs=2"])


def test_a_json_file_is_loaded_and_overridden(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(Config(seed=5).to_json(), encoding="utf-8")
    assert load(str(file)) == Config(seed=5)
    assert load(str(file), ["seed=6"]).seed == 6


def test_a_shipped_configuration_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("bundled").data.name == "bundled"
    with pytest.raises(UserError, match=r"Received: 'bundeld'. Did you mean 'bundled' or 'bundled_tune'\?"):
        load("bundeld")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_copy_of_an_experiment_gives_the_same_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = Path(experiments.__file__).parents[2] / "configs"
    monkeypatch.chdir(tmp_path)
    assert load(shutil.copy(folder / f"{name}.py", "mine.py")) == load(name)


def test_the_modules_that_experiments_share_are_none() -> None:
    with pytest.raises(UserError, match="--config must be a file or the name of a shipped config. Received: 'families'"):
        load("families")


def test_a_missing_file_names_the_nearest_beside_it(tmp_path: Path) -> None:
    (tmp_path / "experiment.py").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"--config must be a file .* Did you mean '.*experiment\.py'\?"):
        load(str(tmp_path / "experimnt.py"))
    with pytest.raises(UserError, match="--config must be a file"):
        load(str(tmp_path / "no" / "such" / "folder.json"))


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.py", "def get_config(:\n", "must be a Python file that runs. Received: SyntaxError"),
        ("b.py", "import no_such_module\n", "must be a Python file that runs. Received: ModuleNotFoundError"),
        ("c.py", "def get_config():\n    return 1 / 0\n", "must be a Python file that runs. Received: ZeroDivisionError"),
        ("d.py", "seed = 1\n", "must define get_config() that returns a Config. Received: NoneType"),
        ("e.py", "def get_config():\n    return {'seed': 1}\n", "must define get_config() that returns a Config. Received: dict"),
        ("f.py", "from dfa_tf.config import *\ndef get_config():\n    return Config(data=DataConfig(batch_size=0))\n", "data.batch_size: "),
        ("g.py", "from dfa_tf.config import *\ndef get_config():\n    return Config(sed=0)\n", "'sed'. Did you mean 'seed'?"),
        (
            "h.py",
            "from dfa_tf.config import *\ndef get_config():\n    return TrainConfig(epoch=0)\n",
            "'train.epoch'. Did you mean 'train.epochs'",
        ),
        ("i.json", "{", "a configuration must be JSON"),
        ("j.json", '{"seed": "one"}', "seed: "),
        ("k.json", "\udcff", "a configuration must be JSON"),
    ],
)
def test_a_broken_file_is_told_in_one_line(tmp_path: Path, name: str, text: str, told: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError) as caught:
        load(str(file))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_is_found_before_tensorflow_is_imported(fresh_process: Process) -> None:
    done = fresh_process(
        "import sys\n"
        "from dfa_tf import errors\nfrom dfa_tf.config import experiments\n"
        "try:\n"
        "    experiments.load('bundled', ['teacher.name=wrn_16_22'])\n"
        "except errors.UserError as error:\n"
        "    print(error)\n"
        "print(sorted({'tensorflow', 'keras', 'sklearn'} & set(sys.modules)))"
    )
    told, loaded = done.stdout.splitlines()
    assert "teacher.name: " in told
    assert "'wrn_16_2'" in told
    assert loaded == "[]"


def noise(config: Config) -> Splits:
    """Two random images a split, of the shape and with the classes of the experiment's data."""
    (shape, classes), random = SHAPES[config.data.name], np.random.default_rng(0)
    images = Images(random.integers(0, 256, (2, *shape)).astype(np.uint8), np.arange(2, dtype=np.int32))
    names = [str(number) for number in range(classes)]
    source = Source(images, images, names, [127.5] * shape[-1], [64.0] * shape[-1], "noise")
    both, none = Split(images, np.arange(2)), Split(images, np.arange(0))
    return Splits(Split(images, np.arange(2)), both, none, both, source)


def network(settings: StudentConfig, splits: Splits) -> FeatureModel:
    keras.utils.set_random_seed(0)
    model = plugins.build("models", settings.name, image_shape=splits.image_shape, num_classes=splits.num_classes)
    return FeatureModel.from_model(model)


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`:UserWarning")
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name.startswith(LARGE) else ()) for name in SHIPPED])
def test_a_shipped_experiment_is_built_and_steps_once_through_both_stages(name: str) -> None:
    short = ["data.batch_size=2", "train.epochs=1", "search.epochs=1", "search.warmup_epochs=0", "search.mode=joint"]
    gentle = ["train.learning_rate=1e-3", "search.learning_rate=1e-3"]  # two images are too few for the rates of the protocols
    config = load(name, [*short, *gentle])
    splits = noise(config)
    student, teacher = keep_paired_groups(*(network(settings, splits) for settings in (config.student, config.teacher)))
    assert len(teacher.groups) == len(student.groups) >= 2
    assert all(len(group.blocks) >= 1 for group in teacher.groups)
    before = [weight.copy() for weight in student.model.get_weights()]
    tf.config.run_functions_eagerly(True)  # a step of a deep network takes longer to trace than to make
    try:
        found = search(teacher, student, splits, config)
        trained = distil(teacher, student, splits, config, aggregation=found.weights)
    finally:
        tf.config.run_functions_eagerly(False)
    assert found.weights.groups[0].blocks == tuple(teacher.block_names()[0])
    assert all(np.isfinite(value) for row in trained.history for value in row.values())
    assert any((weight != was).any() for weight, was in zip(trained.student.get_weights(), before, strict=True))
