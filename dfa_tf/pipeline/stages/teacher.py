"""The teacher: trained, or taken from a file."""

import logging
import math
from pathlib import Path
from typing import Any

import keras

from dfa_tf.distillation.distil import Distilled, distil
from dfa_tf.errors import UserError
from dfa_tf.pipeline.building import build_network
from dfa_tf.pipeline.stages.base import TrainingStage
from dfa_tf.process.status import ReportStep
from dfa_tf.training import strategies
from dfa_tf.training.checkpoints import Checkpoints
from dfa_tf.training.evaluation import EvaluationCallback, evaluate, is_chance, predictor
from dfa_tf.training.measuring import Stopwatch

_LOG = logging.getLogger(__name__)
_CHANCE_IMAGES = 1000


class TeacherStage(TrainingStage):
    """Trains the teacher, or takes it from the file that the inputs name; writes `model.keras`."""

    name = "teacher"

    @property
    def directory(self) -> Path:
        return self.run.directory.teacher

    def inputs(self) -> list[str]:
        return self.run.teacher_digests()

    def work(self, checkpoints: Checkpoints, report: ReportStep) -> dict[str, Any]:
        watch, path = Stopwatch(), self.run.inputs.teacher_file
        trained = self._train(checkpoints, report) if path is None else self._take(path, report)
        result = self.save(trained, "model.keras", watch, checkpoints)  # a network of logits, even where the file gives probabilities
        self._warn_of_chance(trained.student, result.get("test_accuracy"))
        return result

    def _train(self, checkpoints: Checkpoints, report: ReportStep) -> Distilled:
        config, splits = self.run.config, self.run.splits
        network = build_network(config.teacher, config, splits)
        context = self.context(checkpoints, report)
        return distil(None, network, splits, config, train=config.train, directory=self.directory, context=context)

    def _take(self, path: Path, report: ReportStep) -> Distilled:
        given = self.run.inputs.load_teacher(path)
        strategies.check_fits(given, self.run.checked_splits())
        numbers: dict[str, float] = {}
        EvaluationCallback(given.model, self.run.splits, self.run.config.train).evaluate_into(numbers)
        if not all(math.isfinite(value) for value in numbers.values()):
            raise UserError(f"teacher.path must be a network with finite logits. Received: {path}, which gives {numbers}")
        report(1, 1, {name: value for name, value in numbers.items() if name == "test_accuracy"})
        return Distilled(given.model, [numbers], 0, numbers)

    def _warn_of_chance(self, teacher: keras.Model, test_accuracy: float | None) -> None:
        """Warns of a teacher that is no better than chance: on the test set, or else on some of the training images."""
        splits, accuracy = self.run.splits, test_accuracy
        tested = splits.test
        if accuracy is None:
            tested = (splits.train + splits.search).sample(_CHANCE_IMAGES)
            accuracy = evaluate(predictor(teacher), tested).accuracy
        if is_chance(accuracy, splits.num_classes, len(tested)):
            _LOG.warning(
                "the teacher is right on %.2f %% of %d images, which is chance: it may expect other pixels than raw ones, 0 to 255, "
                "or have its classes in another order, or need more training", 100 * accuracy, len(tested),
            )  # fmt: skip
