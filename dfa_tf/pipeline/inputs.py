"""What a run starts from: its images and, where one exists, a trained teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import keras

from dfa_tf.config import Config
from dfa_tf.images.splits import Splits
from dfa_tf.networks.features import FeatureModel
from dfa_tf.pipeline.building import build_splits, has_own_images


class RunInputs(Protocol):
    """Where a run takes its data and its teacher from."""

    @property
    def splits(self) -> Splits:
        """The data."""

    @property
    def teacher_file(self) -> Path | None:
        """A trained teacher as a `.keras` file; None where the run trains it."""

    @property
    def callbacks(self) -> Sequence[keras.callbacks.Callback]:
        """For `fit` of stage 2."""

    def load_teacher(self, file: Path) -> FeatureModel:
        """The trained teacher of the run, which is saved in `file`."""

    def data_digests(self) -> list[str]:
        """What enters the stage hashes because the configuration does not identify the images."""


class ConfiguredInputs:
    """Data and teacher that the configuration names."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.teacher_file = None if config.teacher.path is None else Path(config.teacher.path)
        self.callbacks: Sequence[keras.callbacks.Callback] = ()

    @property
    def splits(self) -> Splits:
        return build_splits(self._config)

    def load_teacher(self, file: Path) -> FeatureModel:
        return FeatureModel.from_model(file, self._config.teacher.groups, self._config.teacher.tap)

    def data_digests(self) -> list[str]:
        """The digest of an image folder. Other images are not read for it: name and options identify them."""
        return [self.splits.source.digest] if has_own_images(self._config) else []


@dataclass(frozen=True)
class GivenInputs:
    """Data and teacher given in Python.

    Attributes:
        splits: the data; `data.options` of the configuration holds their digests.
        teacher: trained.
        teacher_file: the same network as a `.keras` file.
        callbacks: for `fit` of stage 2.
    """

    splits: Splits
    teacher: FeatureModel
    teacher_file: Path
    callbacks: Sequence[keras.callbacks.Callback] = ()

    def load_teacher(self, file: Path) -> FeatureModel:
        return self.teacher

    def data_digests(self) -> list[str]:
        return []
