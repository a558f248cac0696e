"""The evaluation: every network of the run from its file, side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfa_tf.networks.keras_file import load_model
from dfa_tf.pipeline.results import evaluated_network
from dfa_tf.pipeline.stages.base import ChiefStage
from dfa_tf.process.status import ReportStep, doing
from dfa_tf.reporting.predictions import SCHEMA, Answers, Predictions, RecordingPredictor
from dfa_tf.storage.reading import digest, read_result
from dfa_tf.training.checkpoints import Checkpoints
from dfa_tf.training.evaluation import Predictor, evaluate, images_per_second, predictor

_SPEED_IMAGES = 256


class EvaluateStage(ChiefStage):
    """Evaluates the teacher and every student on the test set; writes `predictions.npz`."""

    name = "evaluate"

    @property
    def directory(self) -> Path:
        return self.run.directory.evaluation

    def inputs(self) -> list[str]:
        # With the schema, so that an evaluation that kept less is made again.
        return [f"predictions:{SCHEMA}", *(f"{name}:{digest(file)}" for name, file in self._files().items())]

    def _files(self) -> dict[str, Path]:
        """The files of the run's networks by name: the teacher, the plain student, and the others."""
        files = {"teacher": self.run.teacher_file()}
        found = sorted(self.run.directory.path.glob("distil/*/student.keras"))
        students = {file.parent.name: file for file in found if read_result(file.parent)}
        return files | {name: students[name] for name in sorted(students, key=lambda name: (name != "plain", name))}

    def work(self, checkpoints: Checkpoints, report: ReportStep) -> dict[str, Any]:
        files, splits = self._files(), self.run.splits
        with doing("loading the networks"):
            models = {name: load_model(file) for name, file in files.items()}
        predictors = {name: predictor(model) for name, model in models.items()}
        with doing("measuring the speed"):
            speeds = images_per_second(predictors, next(iter(splits.examples.once(_SPEED_IMAGES)))["images"])
        rows, answers = [], dict[str, Answers]()
        for done, (name, file) in enumerate(files.items(), start=1):
            recording = RecordingPredictor(predictors[name], splits.test.classes)
            with doing(f"evaluating {name}"):
                tested = self._test(recording)
            rows.append(evaluated_network(name, file, models[name], tested, speeds[name]))
            report(done, len(files), tested)
            if tested:
                answers[name] = recording.answers
        self._write(answers)
        return {"rows": rows, "description": splits.source.description, "test_images": len(splits.test)}

    def _test(self, predict: Predictor) -> dict[str, float]:
        """Accuracy and loss on the test set; empty without a test set."""
        test = self.run.splits.test
        return {f"test_{name}": value for name, value in evaluate(predict, test)._asdict().items()} if len(test) else {}

    def _write(self, answers: Mapping[str, Answers]) -> None:
        """Keeps the answers of each network; without a test set there are none, and those of before are removed."""
        file, splits = self.directory / "predictions.npz", self.run.splits
        if answers:
            Predictions.of(splits.test, splits.class_names, answers).save(file)
        else:
            file.unlink(missing_ok=True)
