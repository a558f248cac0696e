"""The stages from a configuration to an exported student, each skipped where the run directory has its result."""

import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from dfa_tf import training
from dfa_tf.aggregation import AggregationWeights, spread
from dfa_tf.building import build_network, build_splits, check_options, count_parameters
from dfa_tf.config import Config, StudentConfig
from dfa_tf.distillation import Distilled, build_methods, distil, takes_aggregation
from dfa_tf.errors import UserError, shortened
from dfa_tf.evaluation import evaluate, images_per_second, predictor
from dfa_tf.export import export_saved_model
from dfa_tf.features import FeatureModel, load_model
from dfa_tf.keras_file import check_keras_file
from dfa_tf.pairing import align
from dfa_tf.progress import Reporter
from dfa_tf.report import closing_table, heat_map, spread_table
from dfa_tf.runs import RunDir, atomic, differing, digest, read_result, write_csv, write_json, write_text, writing
from dfa_tf.search import SearchResult, search
from dfa_tf.splits import Splits
from dfa_tf.training import Step, Stopwatch

_LOG = logging.getLogger(__name__)
PARITY_IMAGES = 256
SPEED_IMAGES = 256


class Pipeline:
    """The stages of one run. Operations are made deterministic for the whole process.

    Args:
        config: of the run.
        run: the run directory, held by this process.
        reporter: shows the stages.
        overwrite: replace the results that do not fit the configuration; otherwise they are refused.
        teacher: a trained `.keras` file to use as it is, in place of the run's own.
        label: stands before the names of the stages in the display.
    """

    def __init__(
        self, config: Config, run: RunDir, reporter: Reporter, *, overwrite: bool = False, teacher: Path | None = None, label: str = ""
    ) -> None:
        tf.config.experimental.enable_op_determinism()
        check_options(config)
        training.check_cluster()
        self._strategy = training.strategy(config.strategy)
        self._config, self._run, self._overwrite = config, run, overwrite
        self._reporter, self._label, self._given_teacher = reporter, label, teacher

    @property
    def _splits(self) -> Splits:
        return build_splits(self._config)

    def check(self) -> None:
        """Builds the splits, both networks and the methods once: what does not fit is found before hours of training.

        Raises:
            UserError: if they do not fit one another.
        """
        config, splits = self._config, self._checked_splits()
        settings = config.teacher
        given = settings.path is not None
        self._teacher_inputs()
        teacher = FeatureModel.from_model(settings.path, settings.groups, settings.tap) if given else build_network(settings, config)
        student = self._student()
        for network in (teacher, student):
            training.check_fits(network, splits)
        student, teacher = align(student, teacher)
        aggregation = None
        if needs_search(config):
            for half in (splits.train, splits.search):
                half.steps(config.data.batch_size)
        else:
            aggregation = self._aggregation(teacher)
        build_methods(config, student, teacher, aggregation)

    def _checked_splits(self) -> Splits:
        """The splits, where a network can be trained on batches of them as the configuration asks."""
        data, splits = self._config.data, self._splits
        (splits.train + splits.search).batches(data.batch_size, seed=self._config.seed, **data.variation)
        training.check_batch(data.batch_size, self._strategy.num_replicas_in_sync)
        return splits

    def train_teacher(self) -> None:
        """Trains the teacher, or takes it from the file of `teacher.path`."""
        path = self._config.teacher.path

        def work(config_hash: str, report: Step) -> dict[str, Any]:
            target = self._run.teacher / "model.keras"
            watch = Stopwatch()
            if path is None:
                network = build_network(self._config.teacher, self._config)
                trained = distil(
                    None, network, self._splits, self._config, train=self._config.train, strategy=self._strategy,
                    directory=self._run.teacher, report=report,
                )  # fmt: skip
                return self._told_of_chance(self._save(trained, target, watch))
            given = FeatureModel.from_model(path, self._config.teacher.groups, self._config.teacher.tap)
            training.check_fits(given, self._checked_splits())
            accuracy, loss = evaluate(predictor(given.model), self._splits.test)
            if not math.isfinite(loss):
                raise UserError(
                    f"teacher.path must be a network with finite logits. Received: {path}, whose loss on the test set is {loss}"
                )
            report(1, 1, {"accuracy": accuracy})
            with atomic(target) as temporary:
                shutil.copyfile(path, temporary)
            history = [{"test_accuracy": accuracy, "test_loss": loss}]
            return self._told_of_chance(self._result(Distilled(given.model, history, 0), watch))

        self._stage("teacher", self._run.teacher, self._teacher_inputs(), work)

    def _told_of_chance(self, result: dict[str, Any]) -> dict[str, Any]:
        """The result of the teacher, which is warned about where it is no better than guessing; nothing is chosen by it."""
        accuracy, chance = result["test_accuracy"], 1 / self._splits.num_classes
        if accuracy <= chance:
            _LOG.warning(
                "the teacher's accuracy on the test set, %.2f %%, is no better than chance, %.2f %%: it may expect other pixels than "
                "raw ones, 0 to 255, or have its classes in another order, or be hardly trained", 100 * accuracy, 100 * chance,
            )  # fmt: skip
        return result

    def train_plain(self) -> None:
        """Trains the student without a teacher, on the schedule of the distilled one."""

        def work(config_hash: str, report: Step) -> dict[str, Any]:
            watch = Stopwatch()
            directory = self._run.student("plain")
            trained = distil(
                None, self._student(), self._splits, self._config, strategy=self._strategy, directory=directory, report=report
            )  # fmt: skip
            return self._save(trained, directory / "student.keras", watch)

        self._stage("plain", self._run.student("plain"), self._student_inputs(), work)

    def search(self) -> None:
        """Stage 1: writes `alphas.json`, `trajectory.csv` and the heat map."""
        teacher_file = self._teacher_file()

        def work(config_hash: str, report: Step) -> dict[str, Any]:
            watch = Stopwatch()
            results = [self._searched(number, config_hash, report) for number in range(self._config.search.repetitions)]
            first, variation = results[0], spread([result.weights for result in results])
            write_csv(self._run.search / "trajectory.csv", first.trajectory)
            heat_map(first.weights, self._run.search / "alphas.png")
            first.weights.save(self._run.search / "alphas.json")
            steps = sum(result.steps for result in results)
            return {"seed": self._config.seed, "spread": variation, **watch.result(steps, self._config.data.batch_size)}

        self._stage("search", self._run.search, [digest(teacher_file), *self._student_inputs()], work)
        if self._config.search.repetitions > 1:
            spread_table(read_result(self._run.search)["spread"], searches=self._config.search.repetitions)

    def _searched(self, number: int, config_hash: str, report: Step) -> SearchResult:
        """One of the repetitions: with a seed of its own, on the same splits."""
        count = self._config.search.repetitions
        config = self._config.model_copy(update={"seed": self._config.seed + number})

        def report_all(done: int, total: int, numbers: dict[str, float]) -> None:
            report(number * total + done, count * total, numbers)

        student = build_network(config.student, config)
        return search(self._teacher(), student, self._splits, config, config_hash=config_hash, report=report_all)

    def distil(self) -> None:
        """Stage 2: trains the student with the methods of `distil.methods`."""
        if not self._config.distil.methods:
            self.train_plain()
            return
        inputs = [digest(self._teacher_file()), *self._student_inputs()]
        alphas = self._alphas_file()
        if alphas is not None:
            inputs.append(digest(alphas))
        directory = self._run.student(self._config.method)

        def work(config_hash: str, report: Step) -> dict[str, Any]:
            watch = Stopwatch()
            student, teacher = align(self._student(), self._teacher())
            trained = distil(
                teacher, student, self._splits, self._config, aggregation=self._aggregation(teacher),
                strategy=self._strategy, directory=directory, report=report,
            )  # fmt: skip
            return self._save(trained, directory / "student.keras", watch)

        self._stage("distil", directory, inputs, work, title=self._config.method)

    def evaluate(self) -> None:
        """Evaluates every network of the run from its file, side by side."""
        files = self._networks()

        def work(config_hash: str, report: Step) -> dict[str, Any]:
            models = {name: load_model(file) for name, file in files.items()}
            predictors = {name: predictor(model) for name, model in models.items()}
            images = next(iter(self._splits.test.once(SPEED_IMAGES)))["images"]
            speeds = images_per_second(predictors, images)
            rows = []
            for done, (name, file) in enumerate(files.items(), start=1):
                accuracy, loss = evaluate(predictors[name], self._splits.test)
                trained = read_result(file.parent)
                rows.append(
                    {
                        "name": f"{name if name == 'teacher' else f'{name} student'} {models[name].name}",
                        "method": None if name == "teacher" else name,
                        "test_accuracy": accuracy,
                        "test_accuracy_best": trained.get("test_accuracy_best", accuracy),
                        "test_loss": loss,
                        "parameters": count_parameters(models[name]),
                        "bytes": file.stat().st_size,
                        "images_per_second": round(speeds[name], 1),
                    }
                )
                report(done, len(files), {"accuracy": accuracy})
            return {"rows": rows, "description": self._splits.source.description, "test_images": len(self._splits.test)}

        self._stage("evaluate", self._run.evaluation, [f"{name}:{digest(file)}" for name, file in files.items()], work)

    def export(self) -> None:
        """Writes the distilled student as a SavedModel, compares it with the Keras file, and notes the parity."""
        method = self._config.method
        student = self._made(self._run.student(method) / "student.keras", "distil" if method != "plain" else "plain", "distil")

        def work(config_hash: str, report: Step) -> dict[str, Any]:
            images = np.asarray(self._splits.test.images.pixels[self._splits.test.indices[:PARITY_IMAGES]])
            model = load_model(student)
            report(1, 1, {})  # before anything is written
            parity = export_saved_model(model, self._run.export / "saved_model", images)
            write_json(self._run.export / "parity.json", {"saved_model": parity._asdict()})
            return {"student": method}

        self._stage("export", self._run.export, [digest(student)], work)

    def table(self) -> None:
        """Prints the closing table from what the stages wrote."""
        result = read_result(self._run.evaluation)
        made = {
            "teacher": self._run.teacher / "model.keras",
            "plain student": self._run.student("plain") / "student.keras",
            "distilled student": self._run.student(self._config.method) / "student.keras",
            "SavedModel": self._run.export / "saved_model",
            "alphas": self._run.search / "alphas.json",
            "heat map": self._run.search / "alphas.png",
        }
        there = {what: path for what, path in made.items() if path.exists()}
        about = {"method": self._config.method, "description": result["description"]}
        closing_table(result["rows"], there, **about, seed=self._config.seed, test_images=result["test_images"])

    def _stage(
        self, stage: str, directory: Path, inputs: Sequence[str], work: Callable[[str, Step], dict[str, Any]], *, title: str = ""
    ) -> None:
        """Runs a stage unless its result is there; its `result.json` is written last.

        The work reports before it writes anything; up to then a mistake leaves all as it was.
        """
        title = self._label + (title or stage)
        fields = self._config.stage_fields(stage)
        config_hash = self._config.stage_hash(stage, *inputs)
        before = read_result(directory)
        if before.get("config_hash") == config_hash:
            self._reporter.skipped(title)
            return
        if before and not self._overwrite and stage not in ("evaluate", "export"):
            different = ", ".join(differing(before.get("config", {}), fields)) or "the artifacts that it was made from"
            raise UserError(
                f"{directory} holds the result of another configuration, which differs in: {different}. "
                "Use another --workdir, or --overwrite to replace it"
            )
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)  # better told now than after the training
        with self._reporter.stage(title) as report:
            begun = False

            def begin_and_report(done: int, total: int, numbers: dict[str, float]) -> None:
                nonlocal begun
                if not begun:
                    # All inputs are found right by now: an earlier result is no longer true from here on.
                    write_text(self._run.config, self._config.to_json())
                    (directory / "result.json").unlink(missing_ok=True)
                    begun = True
                report(done, total, numbers)

            result = work(config_hash, begin_and_report)
            write_json(directory / "result.json", {**result, "config_hash": config_hash, "config": fields})

    def _student(self) -> FeatureModel:
        return build_network(self._config.student, self._config)

    def _teacher_inputs(self) -> list[str]:
        return _file_inputs("teacher", self._config.teacher)

    def _student_inputs(self) -> list[str]:
        return _file_inputs("student", self._config.student)

    def _teacher_file(self) -> Path:
        return self._given_teacher or self._made(self._run.teacher / "model.keras", "teacher", "train")

    def _teacher(self) -> FeatureModel:
        settings = self._config.teacher
        return FeatureModel.from_model(self._teacher_file(), settings.groups, settings.tap)

    def _alphas_file(self) -> Path | None:
        """The file of aggregation weights that the methods read, if they read one."""
        if not takes_aggregation(self._config):
            return None
        if self._config.distil.aggregation == "searched":
            return self._made(self._run.search / "alphas.json", "search", "search")
        named = self._config.distil.aggregation_file
        if named is not None and not os.path.isfile(named):
            raise UserError(f"distil.aggregation must be a file of aggregation weights. Received: {shortened(named)}")
        return None if named is None else Path(named)

    def _aggregation(self, teacher: FeatureModel) -> AggregationWeights | None:
        file = self._alphas_file()
        if file is not None:
            return AggregationWeights.load(file, teacher)
        if not takes_aggregation(self._config):
            return None
        named, standardise = self._config.distil.aggregation, self._config.search.standardise
        if isinstance(named, str):
            return AggregationWeights.by_rule(named, teacher, seed=self._config.seed, standardise=standardise)
        return AggregationWeights.given(named, teacher, standardise=standardise)

    def _networks(self) -> dict[str, Path]:
        """The files of the run's networks by name: the teacher, the plain student, and the others."""
        files = {"teacher": self._teacher_file()}
        found = sorted(self._run.path.glob("distil/*/student.keras"))
        students = {file.parent.name: file for file in found if read_result(file.parent)}
        return files | {name: students[name] for name in sorted(students, key=lambda name: (name != "plain", name))}

    def _made(self, path: Path, stage: str, binary: str) -> Path:
        """A file that an earlier stage has made, if that stage is done and was done with this configuration."""
        made = read_result(path.parent)
        if not made or not path.exists():
            raise UserError(f"{path} is not there, or not done: run bin/{binary}.py with the same --config and --workdir first")
        different = differing(made.get("config", {}), self._config.stage_fields(stage))
        if different:
            raise UserError(
                f"{path} was made with another configuration, which differs in: {', '.join(different)}. "
                f"Use another --workdir, or replace it with bin/{binary}.py --overwrite"
            )
        return path

    def _save(self, trained: Distilled, path: Path, watch: Stopwatch) -> dict[str, Any]:
        with atomic(path) as temporary:
            trained.student.save(temporary)
        return self._result(trained, watch)

    def _result(self, trained: Distilled, watch: Stopwatch) -> dict[str, Any]:
        """The keys of `result.json` of a network; accuracy is the last epoch's, the best one stands beside it."""
        last = trained.history[-1]
        return {
            "test_accuracy": last["test_accuracy"],
            "test_accuracy_best": max(row["test_accuracy"] for row in trained.history if "test_accuracy" in row),
            "test_loss": last["test_loss"],
            "seed": self._config.seed,
            "parameters": count_parameters(trained.student),
            **watch.result(trained.steps, self._config.data.batch_size),
        }


def _file_inputs(what: str, settings: StudentConfig) -> list[str]:
    """The digest of the file that a network is taken from, if it is."""
    if settings.path is None:
        return []
    check_keras_file(settings.path, f"{what}.path")
    return [digest(Path(settings.path))]


def needs_search(config: Config) -> bool:
    """Whether stage 2 reads searched weights."""
    return takes_aggregation(config) and config.distil.aggregation == "searched"


def run_stages(config: Config, run_dir: RunDir, names: Sequence[str], *, overwrite: bool = False, quiet: bool = False) -> None:
    """Some stages, by the names of the methods of `Pipeline`, in order."""
    pipeline = Pipeline(config, run_dir, Reporter(len(names), quiet=quiet), overwrite=overwrite)
    for name in names:
        getattr(pipeline, name)()


def run(config: Config, run_dir: RunDir, *, overwrite: bool = False, quiet: bool = False) -> None:
    """Every stage, and the closing table."""
    searching = needs_search(config)
    pipeline = Pipeline(config, run_dir, Reporter(6 if searching else 5, quiet=quiet), overwrite=overwrite)
    pipeline.check()
    pipeline.train_teacher()
    pipeline.train_plain()
    if searching:
        pipeline.search()
    pipeline.distil()
    pipeline.evaluate()
    pipeline.export()
    pipeline.table()
