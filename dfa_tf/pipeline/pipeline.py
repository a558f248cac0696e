"""The stages from a configuration to an exported student, each skipped where the run directory has its result."""

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from dfa_tf.aggregation.search import SearchResult, search
from dfa_tf.aggregation.weights import AggregationWeights, spread
from dfa_tf.config import Config
from dfa_tf.display import figures
from dfa_tf.display.progress import Reporter
from dfa_tf.display.tables import closing_table, parity_table, spread_table
from dfa_tf.distillation.distil import Distilled, build_methods, distil, needs_search, takes_aggregation
from dfa_tf.errors import UserError, shortened
from dfa_tf.export.formats import FORMATS, check_replaceable, choose, read_student, write_all
from dfa_tf.export.parity import check
from dfa_tf.images.splits import Splits
from dfa_tf.networks.cost import count_parameters, macs_by_type
from dfa_tf.networks.features import FeatureModel
from dfa_tf.networks.keras_file import check_keras_file, load_model, save_model
from dfa_tf.networks.pairing import keep_paired_groups
from dfa_tf.networks.precision import resolved
from dfa_tf.pipeline.building import build_network, check_options
from dfa_tf.pipeline.inputs import ConfiguredInputs, RunInputs
from dfa_tf.pipeline.stages import Stages
from dfa_tf.process import status, workers
from dfa_tf.process.status import ReportStep, doing
from dfa_tf.reporting.predictions import SCHEMA, Answers, Predictions, RecordingPredictor
from dfa_tf.reporting.report import write as write_report
from dfa_tf.reporting.run_reader import files_of
from dfa_tf.storage.files import atomic, write_csv, write_json
from dfa_tf.storage.reading import digest, read_json, read_result
from dfa_tf.storage.run_directory import RunDir
from dfa_tf.storage.scratch import scratch_folder
from dfa_tf.training import strategies
from dfa_tf.training.checkpoints import Checkpoints
from dfa_tf.training.context import StageContext
from dfa_tf.training.evaluation import EvaluationCallback, Predictor, evaluate, images_per_second, is_chance, predictor
from dfa_tf.training.measuring import Stopwatch
from dfa_tf.training.teacher_cache import TeacherCache
from dfa_tf.training.tensorboard import EventLog

_LOG = logging.getLogger(__name__)
SPEED_IMAGES, CHANCE_IMAGES = 256, 1000


class Pipeline:
    """The stages of one run. Operations are made deterministic for the whole process.

    Args:
        config: of the run.
        run: the run directory, held by this process.
        reporter: shows the stages.
        overwrite: replace the results that do not fit the configuration; otherwise they are refused.
        teacher: a trained `.keras` file to use as it is, in place of the run's own.
        label: stands before the names of the stages in the display.
        inputs: data and teacher; those of the configuration where None.
        test: whether the stages may look at the test set; without it they report on the validation split alone.
    """

    def __init__(
        self,
        config: Config,
        run: RunDir,
        reporter: Reporter,
        *,
        overwrite: bool = False,
        teacher: Path | None = None,
        label: str = "",
        inputs: RunInputs | None = None,
        test: bool = True,
    ) -> None:
        check_options(config)
        config = resolved(config, reporter.say)
        self._strategy = strategies.begin(config)
        self._config, self._run, self._given_teacher, self._test = config, run, teacher, test
        self._inputs = inputs or ConfiguredInputs(config)
        self._reporter = reporter
        self._stages = Stages(config, run.config, reporter, overwrite=overwrite, label=label)

    @property
    def _splits(self) -> Splits:
        splits = self._inputs.splits
        return splits if self._test else splits.without_test()

    @doing("looking whether all fits together")
    def check(self) -> None:
        """Builds the splits, both networks and the methods once: what does not fit is found before hours of training.

        Raises:
            UserError: if they do not fit one another.
        """
        config, splits = self._config, self._checked_splits()
        self._teacher_inputs()
        teacher = (
            build_network(config.teacher, config, splits)
            if (path := self._inputs.teacher_file) is None
            else self._inputs.load_teacher(path)
        )
        student = self._student()
        for network in (teacher, student):
            strategies.check_fits(network, splits)
        student, teacher = keep_paired_groups(student, teacher)
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
        (splits.train + splits.search).batches(data.batch_size, seed=self._config.seed, **self._config.augmentation)
        strategies.check_batch(data.batch_size, self._strategy.num_replicas_in_sync)
        return splits

    def train_teacher(self) -> None:
        """Trains the teacher, or takes it from the file of `teacher.path`."""
        path = self._inputs.teacher_file

        def work(checkpoints: Checkpoints, report: ReportStep) -> dict[str, Any]:
            target = self._run.teacher / "model.keras"
            watch = Stopwatch()
            if path is None:
                network = build_network(self._config.teacher, self._config, self._splits)
                trained = distil(
                    None, network, self._splits, self._config, train=self._config.train, directory=self._run.teacher,
                    context=self._context("teacher", checkpoints, report),
                )  # fmt: skip
                return self._told_of_chance(trained.student, self._save(trained, target, watch, checkpoints))
            given = self._inputs.load_teacher(path)
            strategies.check_fits(given, self._checked_splits())
            numbers: dict[str, float] = {}
            EvaluationCallback(given.model, self._splits, self._config.train).evaluate_into(numbers)
            if not all(math.isfinite(value) for value in numbers.values()):
                raise UserError(f"teacher.path must be a network with finite logits. Received: {path}, which gives {numbers}")
            report(1, 1, {name: value for name, value in numbers.items() if name == "test_accuracy"})
            trained = Distilled(given.model, [numbers], 0, numbers)
            saved = self._save(trained, target, watch, checkpoints)  # of logits, whatever the file gives
            return self._told_of_chance(given.model, saved)

        self._stages.run("teacher", self._run.teacher, self._teacher_inputs(), work, events=self._run.events("teacher"))

    def _told_of_chance(self, teacher: keras.Model, result: dict[str, Any]) -> dict[str, Any]:
        """The result of the teacher, with a warning where it is no better than guessing.

        It is told from the test set, by which nothing is chosen, or else from some of the training images.
        """
        tested, accuracy = self._splits.test, result.get("test_accuracy")
        if accuracy is None:
            tested = (self._splits.train + self._splits.search).sample(CHANCE_IMAGES)
            accuracy = evaluate(predictor(teacher), tested).accuracy
        if is_chance(accuracy, self._splits.num_classes, len(tested)):
            _LOG.warning(
                "the teacher is right on %.2f %% of %d images, which is chance: it may expect other pixels than raw ones, 0 to 255, "
                "or have its classes in another order, or be hardly trained", 100 * accuracy, len(tested),
            )  # fmt: skip
        return result

    def train_plain(self) -> None:
        """Trains the student without a teacher, on the schedule of the distilled one."""

        def work(checkpoints: Checkpoints, report: ReportStep) -> dict[str, Any]:
            watch = Stopwatch()
            directory = self._run.student("plain")
            trained = distil(
                None, self._student(), self._splits, self._config, directory=directory, context=self._context("plain", checkpoints, report)
            )  # fmt: skip
            return self._save(trained, directory / "student.keras", watch, checkpoints)

        self._stages.run("plain", self._run.student("plain"), self._student_inputs(), work, events=self._run.events("plain"))

    def search(self) -> None:
        """Stage 1: writes `alphas.json`, `trajectory.csv` and the heat map."""
        teacher_file = self._teacher_file()

        def work(checkpoints: Checkpoints, report: ReportStep) -> dict[str, Any]:
            watch = Stopwatch()
            parts = [checkpoints.part(f"repetition{number}") for number in range(1, self._config.search.repetitions + 1)]
            results = [self._searched(number, part, report) for number, part in enumerate(parts)]
            first, variation = results[0], spread([result.weights for result in results])
            write_csv(self._run.search / "trajectory.csv", first.trajectory)
            alphas, title = [group.alpha for group in first.weights.groups], f"aggregation weights of {first.weights.teacher}"
            figures.save(figures.heat_map(alphas, title=title), self._run.search / "alphas.png")
            first.weights.save(self._run.search / "alphas.json")
            steps, before = sum(result.steps for result in results), sum(part.seconds_before for part in parts)
            return {"seed": self._config.seed, "spread": variation, **watch.result(steps, self._config.data.batch_size, before)}

        inputs = [digest(teacher_file), *self._student_inputs()]
        self._stages.run("search", self._run.search, inputs, work, events=self._run.events("search"))
        if self._config.search.repetitions > 1 and workers.is_chief():
            with self._reporter.paused():
                spread_table(read_result(self._run.search)["spread"], searches=self._config.search.repetitions)

    def _searched(self, number: int, checkpoints: Checkpoints, report: ReportStep) -> SearchResult:
        """One of the repetitions: with a seed of its own, on the same splits."""
        count = self._config.search.repetitions
        data = self._config.data.model_copy(update={"seed": self._config.data_seed})
        config = self._config.model_copy(update={"seed": self._config.seed + number, "data": data})

        def report_all(done: int, total: int, numbers: dict[str, float]) -> None:
            report(number * total + done, count * total, numbers)

        status.begin(f"getting ready for search {number + 1}/{count}")
        student = build_network(config.student, config, self._splits)
        return search(
            self._teacher(), student, self._splits, config, config_hash=checkpoints.config_hash,
            context=self._context("search", checkpoints, report_all, f"repetition{number + 1}" if number else ""),
        )  # fmt: skip

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

        def work(checkpoints: Checkpoints, report: ReportStep) -> dict[str, Any]:
            watch = Stopwatch()
            student, teacher = keep_paired_groups(self._student(), self._teacher())
            aggregation = self._aggregation(teacher)
            trained = distil(
                teacher, student, self._splits, self._config, aggregation=aggregation, directory=directory,
                callbacks=self._inputs.callbacks, context=self._context("distil", checkpoints, report),
            )  # fmt: skip
            if aggregation is not None:
                aggregation.save(directory / "alphas.json")
            return self._save(trained, directory / "student.keras", watch, checkpoints)

        method = self._config.method
        self._stages.run("distil", directory, inputs, work, title=method, events=self._run.events(method))

    def train_student(self) -> dict[str, Any]:
        """Stage 1 where stage 2 reads searched weights, then stage 2, holding the run directory; gives what stage 2 came to."""
        with self._run.lock():
            if needs_search(self._config):
                self.search()
            self.distil()
        return read_result(self._run.student(self._config.method))

    def evaluate(self) -> None:
        """Evaluates every network of the run from its file, side by side. Of several workers the chief does so."""
        workers.decided(self._evaluate)

    def _evaluate(self) -> None:
        files = self._networks()

        def work(checkpoints: Checkpoints, report: ReportStep) -> dict[str, Any]:
            with doing("loading the networks"):
                models = {name: load_model(file) for name, file in files.items()}
            predictors = {name: predictor(model) for name, model in models.items()}
            images = next(iter(self._splits.examples.once(SPEED_IMAGES)))["images"]
            with doing("measuring the speed"):
                speeds = images_per_second(predictors, images)
            rows, answers, test = [], dict[str, Answers](), self._splits.test
            for done, (name, file) in enumerate(files.items(), start=1):
                recording = RecordingPredictor(predictors[name], test.classes)
                with doing(f"evaluating {name}"):
                    tested = self._tested(recording)
                rows.append(_evaluated(name, file, models[name], tested) | {"images_per_second": round(speeds[name], 1)})
                report(done, len(files), tested)
                if tested:
                    answers[name] = recording.answers
            predictions = self._run.evaluation / "predictions.npz"
            if answers:
                Predictions.of(test, self._splits.class_names, answers).save(predictions)
            else:
                predictions.unlink(missing_ok=True)
            return {"rows": rows, "description": self._splits.source.description, "test_images": len(test)}

        # With the schema, so that an evaluation that has kept less is made again.
        inputs = [f"predictions:{SCHEMA}", *(f"{name}:{digest(file)}" for name, file in files.items())]
        self._stages.run("evaluate", self._run.evaluation, inputs, work)

    def export(self, formats: Sequence[str] = ("saved_model",), *, table: bool = False) -> None:
        """Writes the distilled student in other formats, compares every file with it, and notes the parity.

        Formats that are there already are kept up: made again where the student has changed, and measured again. Of several
        workers the chief does so.

        Args:
            formats: names in `dfa_tf.export.formats.FORMATS`, or `"all"`.
            table: print the parity.

        Raises:
            UserError: if a format is unknown or its packages are missing; or if files are out of their formats' tolerance,
                which do not replace earlier ones.
        """
        workers.decided(lambda: self._export(formats, table=table))

    def _export(self, formats: Sequence[str], *, table: bool) -> None:
        method, directory = self._config.method, self._run.export
        file = self._stages.made(self._run.student(method) / "student.keras", "distil" if method != "plain" else "plain", "distil")
        before, source = read_result(directory), self._config.stage_hash("export", digest(file))
        there = before.get("formats", [])
        wanted = choose([*formats, *there])
        targets = {name: directory / FORMATS[name].file for name in wanted}
        kept = {name: targets[name] for name in there if before["source"] == source and targets[name].exists()}

        def work(checkpoints: Checkpoints, report: ReportStep) -> dict[str, Any]:
            with doing("reading the student"):
                student = read_student(file, self._splits, seed=self._config.seed)
            for name in targets.keys() - kept.keys():
                check_replaceable(targets[name])
            with scratch_folder(directory) as folder:
                made, failed = write_all([name for name in wanted if name not in kept], student, folder)
                results, refused = check(file, student.model, kept | made, self._splits.examples)
                report(1, 1, {})  # before anything is replaced
                for name in made.keys() & results.keys():
                    with atomic(targets[name]) as temporary:
                        made[name].rename(temporary)
            write_json(directory / "parity.json", {name: parity._asdict() for name, parity in results.items()})
            done = [name for name in wanted if name in results]
            return {"student": method, "source": source, "formats": done, "refused": failed | refused}

        self._stages.run("export", directory, [digest(file), *wanted], work)
        if table:
            with self._reporter.paused():
                parity_table(read_json(directory / "parity.json", "what an export writes"), title=str(file))
        if refused := read_result(directory).get("refused"):
            raise UserError("not exported: " + "; ".join(f"{name}, for {reason}" for name, reason in refused.items()))

    def report(self) -> None:
        """Writes the page that shows the run, and its figures. Of several workers the chief does so."""
        workers.decided(self._report)

    def _report(self) -> None:
        def work(checkpoints: Checkpoints, report: ReportStep) -> dict[str, Any]:
            report(1, 1, {})  # from here on config.json is that of this run
            return {"page": write_report([self._run.path]).name}

        files = [f"{file.relative_to(self._run.path)}:{digest(file)}" for file in files_of(self._run) if file != self._run.config]
        self._stages.run("report", self._run.report, [self._config.to_json(), *files], work)

    def table(self) -> None:
        """Prints the closing table from what the stages wrote; of several workers at the chief."""
        if not workers.is_chief():
            return
        result = read_result(self._run.evaluation)
        made = {
            "teacher": self._run.teacher / "model.keras",
            "plain student": self._run.student("plain") / "student.keras",
            "distilled student": self._run.student(self._config.method) / "student.keras",
            "SavedModel": self._run.export / "saved_model",
            "alphas": self._run.search / "alphas.json",
            "heat map": self._run.search / "alphas.png",
            "report": self._run.report / "index.html",
        }
        there = {what: path for what, path in made.items() if path.exists()}
        about = {"method": self._config.method, "description": result["description"]}
        with self._reporter.paused():
            closing_table(result["rows"], there, **about, seed=self._config.seed, test_images=result["test_images"])

    def _context(self, stage: str, checkpoints: Checkpoints, report: ReportStep, part: str = "") -> StageContext:
        """What a stage that trains, or a part of it, runs in."""
        events = None
        if self._config.tensorboard:
            folder = self._run.events(self._config.method if stage == "distil" else stage) / part
            events = EventLog(folder, self._config.stage_fields(stage), self._config.data.batch_size)
        cache = self._teacher_cache() if stage in ("search", "distil") else None
        return StageContext(self._strategy, checkpoints, report, events, cache)

    def _student(self) -> FeatureModel:
        return build_network(self._config.student, self._config, self._splits)

    def _teacher_inputs(self) -> list[str]:
        return _file_inputs("teacher", self._inputs.teacher_file) + self._inputs.data_digests()

    def _student_inputs(self) -> list[str]:
        path = self._config.student.path
        return _file_inputs("student", None if path is None else Path(path)) + self._inputs.data_digests()

    def _teacher_file(self) -> Path:
        return self._given_teacher or self._stages.made(self._run.teacher / "model.keras", "teacher", "train")

    def _teacher_cache(self) -> TeacherCache | None:
        """Where the teacher's outputs are kept, if they are: beside its file, and so one for all students of a comparison."""
        gib = self._config.teacher.cache_gib
        return TeacherCache(self._teacher_file().parent / "outputs", gib) if gib else None

    def _teacher(self) -> FeatureModel:
        return self._inputs.load_teacher(self._teacher_file())

    def _alphas_file(self) -> Path | None:
        """The file of aggregation weights that the methods read, if they read one."""
        if not takes_aggregation(self._config):
            return None
        if self._config.distil.aggregation == "searched":
            return self._stages.made(self._run.search / "alphas.json", "search", "search")
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

    def _tested(self, predict: Predictor) -> dict[str, float]:
        """Accuracy and loss on the test set; empty where there is none."""
        test = self._splits.test
        return {f"test_{name}": value for name, value in evaluate(predict, test)._asdict().items()} if len(test) else {}

    def _save(self, trained: Distilled, path: Path, watch: Stopwatch, checkpoints: Checkpoints) -> dict[str, Any]:
        with atomic(path) as temporary:
            save_model(trained.student, temporary)
        return self._result(trained, watch, checkpoints)

    def _result(self, trained: Distilled, watch: Stopwatch, checkpoints: Checkpoints) -> dict[str, Any]:
        """The keys of `result.json` of a network; accuracy is its own (the last epoch's), the best epoch's stands beside it.

        Without a test set there are none of the keys that tell of it, and so with the validation split.
        """
        kept = ("test_accuracy", "test_loss", "validation_accuracy", "validation_loss")
        best = [row["test_accuracy"] for row in trained.history if "test_accuracy" in row]
        return {
            **{name: trained.final[name] for name in kept if name in trained.final},
            **({"test_accuracy_best": max(best)} if best else {}),
            "seed": self._config.seed,
            "parameters": count_parameters(trained.student),
            **watch.result(trained.steps, self._config.data.batch_size, checkpoints.seconds_before),
        }


def _evaluated(name: str, file: Path, model: keras.Model, tested: dict[str, float]) -> dict[str, Any]:
    """What the evaluation says of a network, but for its speed."""
    best = {"test_accuracy_best": read_result(file.parent).get("test_accuracy_best", tested["test_accuracy"])} if tested else {}
    return {
        "name": f"{name if name == 'teacher' else f'{name} student'} {model.name}",
        "method": None if name == "teacher" else name,
        **tested,
        **best,
        "parameters": count_parameters(model),
        "macs": _macs(model),
        "bytes": file.stat().st_size,
        "digest": digest(file),
    }


def _macs(model: keras.Model) -> int | None:
    """Multiply-accumulates of one image; None where some of them are not known."""
    try:
        counts, not_counted = macs_by_type(model)
    except UserError:
        return None
    return None if not_counted else sum(counts.values())


def _file_inputs(what: str, path: Path | None) -> list[str]:
    """The digest of the file that a network is taken from, if it is."""
    if path is None:
        return []
    check_keras_file(path, f"{what}.path")
    return [digest(path)]


def run_stages(config: Config, run_dir: RunDir, names: Sequence[str], *, overwrite: bool = False, quiet: bool = False) -> None:
    """Some stages, by the names of the methods of `Pipeline`, in order."""
    with _reporter(config, names, quiet=quiet) as reporter:
        pipeline = Pipeline(config, run_dir, reporter, overwrite=overwrite)
        for name in names:
            getattr(pipeline, name)()


def _reporter(config: Config, names: Sequence[str], *, quiet: bool) -> Reporter:
    """For stages by the names of the methods of `Pipeline`."""
    titles = {"train_teacher": "teacher", "train_plain": "plain", "distil": config.method}
    return Reporter([titles.get(name, name) for name in names if name != "table"], quiet=quiet)


def export(config: Config, run_dir: RunDir, formats: Sequence[str], *, overwrite: bool = False, quiet: bool = False) -> None:
    """The export to several formats, with its table."""
    with _reporter(config, ["export"], quiet=quiet) as reporter:
        Pipeline(config, run_dir, reporter, overwrite=overwrite).export(formats, table=True)


def run(config: Config, run_dir: RunDir, *, overwrite: bool = False, quiet: bool = False) -> None:
    """Every stage, and the closing table."""
    names = ["train_teacher", "train_plain", *(["search"] if needs_search(config) else []), "distil", "evaluate", "export", "report"]
    with _reporter(config, names, quiet=quiet) as reporter:
        pipeline = Pipeline(config, run_dir, reporter, overwrite=overwrite)
        pipeline.check()
        for name in (*names, "table"):
            getattr(pipeline, name)()
