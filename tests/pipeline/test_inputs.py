"""Data and teacher of a run: from the configuration, or given in Python."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfa_tf.config import GIVEN, Config
from dfa_tf.display.progress import Reporter
from dfa_tf.errors import UserError
from dfa_tf.images.splits import Splits
from dfa_tf.networks.features import FeatureModel
from dfa_tf.pipeline.inputs import ConfiguredInputs, GivenInputs
from dfa_tf.pipeline.run import Run
from dfa_tf.storage.run_directory import RunDir


def test_a_configuration_identifies_prepared_images(config: Config) -> None:
    inputs = ConfiguredInputs(config)
    assert (inputs.teacher_file, list(inputs.callbacks), inputs.data_digests()) == (None, [], [])
    assert inputs.splits.num_classes == 10


def test_the_digest_of_an_image_folder_follows_its_images(tmp_path: Path) -> None:
    def digests(grey: int) -> list[str]:
        folder = tmp_path / str(grey)
        for part in ("train", "test"):
            for name in ("cat", "dog"):
                (folder / part / name).mkdir(parents=True)
                for number in range(4):
                    Image.fromarray(np.full((8, 8, 3), grey + number, np.uint8)).save(folder / part / name / f"{number}.png")
        values = {"data.name": "image_folder", "data.data_dir": str(folder)}
        return ConfiguredInputs(Config().replace(values)).data_digests()

    one, other = digests(10), digests(100)
    assert len(one) == len(other) == 1
    assert one != other


def test_a_teacher_is_seen_as_the_configuration_says(tmp_path: Path, teacher: FeatureModel) -> None:
    teacher.model.save(tmp_path / "teacher.keras")
    groups = [teacher.block_names()[-1]]
    config = Config().replace({"teacher.path": str(tmp_path / "teacher.keras"), "teacher.groups": groups, "teacher.tap": "output"})
    inputs = ConfiguredInputs(config)
    assert inputs.teacher_file == tmp_path / "teacher.keras"
    loaded = inputs.load_teacher(inputs.teacher_file)
    assert (loaded.block_names(), loaded.tap) == (groups, "output")


def test_what_is_given_is_used_as_it_is(config: Config, splits: Splits, teacher: FeatureModel, tmp_path: Path) -> None:
    given = GivenInputs(splits, teacher, tmp_path / "teacher.keras")
    assert given.load_teacher(Path("elsewhere.keras")) is teacher
    assert given.data_digests() == [], "data.options holds them"
    run = Run(config, RunDir(tmp_path), Reporter(quiet=True), inputs=given, test=False)
    assert len(splits.test) > 0
    assert len(run.splits.test) == 0, "the stages must not see the test set"


def test_images_given_in_python_are_in_no_configuration() -> None:
    with pytest.raises(UserError, match="handed over in Python"):
        _ = ConfiguredInputs(Config().replace({"data.name": GIVEN})).splits
