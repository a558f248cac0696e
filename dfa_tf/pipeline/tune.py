"""The search over fields of the configuration: trials of one teacher, each a student, ranked on the validation split."""

import gc
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from pydantic import JsonValue

from dfa_tf.config import Config
from dfa_tf.display import figures
from dfa_tf.display.progress import Reporter
from dfa_tf.distillation.distil import needs_search
from dfa_tf.errors import UserError
from dfa_tf.pipeline.building import build_splits, check_options
from dfa_tf.pipeline.compare import markdown, print_table
from dfa_tf.pipeline.pipeline import Pipeline
from dfa_tf.pipeline.tuners import Tuner, count_trials
from dfa_tf.process import workers
from dfa_tf.storage.files import write_csv, write_text
from dfa_tf.storage.run_directory import RunDir
from dfa_tf.storage.scratch import scratch_folder
from dfa_tf.training import strategies

LARGEST = "validation_accuracy"
_MEASURES = (LARGEST, "validation_loss")


@dataclass(frozen=True)
class Trial:
    """A configuration that was tried.

    Attributes:
        number: from 1, in the order in which they were asked for.
        values: of the fields by dotted name.
        results: what each of its students came to, a seed after the other; empty where it failed.
        directories: of these students.
        failed: why it failed; empty where it did not.
    """

    number: int
    values: Mapping[str, JsonValue]
    results: Sequence[Mapping[str, Any]] = ()
    directories: Sequence[Path] = ()
    failed: str = ""

    def mean(self, measure: str) -> float | None:
        """Over its students, of a number of their `result.json`; None where it failed."""
        return None if self.failed else float(np.mean([result[measure] for result in self.results]))

    def deviation(self, measure: str) -> float | None:
        """The standard deviation of it, as of a sample; None with less than two students."""
        return float(np.std([result[measure] for result in self.results], ddof=1)) if len(self.results) > 1 else None


class Tuning:
    """Trials, one after the other, until the tuner asks for no more. What was trained before, also up to a kill, is not trained again.

    Args:
        config: what all trials share, and the space of what they do not.
        run: the directory of the tuning, held by this process: `teacher/` and `tuning/`.
        overwrite: replace a teacher of another configuration, which is refused otherwise.
        quiet: show no progress.

    Raises:
        UserError: if the space is empty, a field in it decides nothing, or a plug-in lacks an option.
    """

    def __init__(self, config: Config, run: RunDir, *, overwrite: bool = False, quiet: bool = False) -> None:
        check_space(config)
        self._config, self._run, self._overwrite = config, run, overwrite
        self._folder = run.path / "tuning"
        self._seeds = range(config.seed, config.seed + config.tune.seeds)
        self._count = count_trials(config)
        stages = [*(["search"] if any(needs_search(each) for each in alternatives(config)) else []), config.method]
        self._reporter = Reporter(["teacher", *(self._count * len(self._seeds) * stages)], quiet=quiet)

    def run(self) -> Path:
        """Trains what is not trained yet, and writes the tables anew after each trial.

        Returns:
            The best configuration, a file for --config.

        Raises:
            UserError: if there is no validation split, or every trial fails; and what ends the teacher's stage.
        """
        with self._reporter:
            trials = self._try_all()
        if all(trial.failed for trial in trials):
            raise UserError(f"all {len(trials)} trials failed, the first one for: {trials[0].failed}")
        if workers.is_chief():
            print_table(self._shown(trials), self._title(trials), notes(trials, self._config))
        return self._folder / "best.json"

    def _try_all(self) -> list[Trial]:
        strategies.begin(self._config)  # before the data are read, as the strategy of several workers asks for
        if not len(build_splits(self._config).validation):
            raise UserError(
                "tuning chooses by the validation split, and there is none. Received: data.validation_fraction=0. Hold out, say, 0.2"
            )
        self._pipeline(0, self._config.trial({})).check()
        Pipeline(self._config, self._run, self._reporter, overwrite=self._overwrite).train_teacher()
        trials: list[Trial] = []
        with scratch_folder() as folder:
            tuner = Tuner(self._config, folder)
            while (values := workers.decided(tuner.ask)) is not None:
                trials.append(self._tried(len(trials) + 1, values))
                if workers.is_chief():
                    tuner.tell(trials[-1].mean(self._config.tune.objective))
                self._write(trials)
                keras.backend.clear_session()
                gc.collect()
        if len(trials) < self._count:
            self._say(f"there are {len(trials)} trials and not {self._count}: the space has no further values, or too many failed")
        return trials

    def _tried(self, number: int, values: Mapping[str, JsonValue]) -> Trial:
        """A trial with its students; that values do not go together, or a training diverges, ends the trial alone."""
        told = ", ".join(f"{name}={_shown(value)}" for name, value in values.items())
        try:
            configs = [self._student(values, seed) for seed in self._seeds]
            results = [self._pipeline(number, config).train_student() for config in configs]
        except UserError as error:
            self._say(f"trial {number} failed with {told}: {error}")
            return Trial(number, values, failed=str(error))
        trial = Trial(number, values, results, [self._directory(config).student(config.method) for config in configs])
        reached = ", ".join(f"{measure} {trial.mean(measure):.4f}" for measure in _MEASURES)
        self._say(f"trial {number}: {reached} with {told}")
        return trial

    def _say(self, line: str) -> None:
        if workers.is_chief():
            self._reporter.say(line)

    def _student(self, values: Mapping[str, JsonValue], seed: int) -> Config:
        """The configuration of one student. The images are those of the tuning's own seed, which the teacher has learned from."""
        return self._config.trial({**values, "seed": seed, "data.seed": self._config.data_seed})

    def _pipeline(self, number: int, config: Config) -> Pipeline:
        label = f"trial {number}, seed {config.seed}: " if len(self._seeds) > 1 else f"trial {number}: "
        return Pipeline(
            config,
            self._directory(config),
            self._reporter,
            overwrite=self._overwrite,
            teacher=self._run.teacher / "model.keras",
            label=label,
            test=False,
        )

    def _directory(self, config: Config) -> RunDir:
        """One for each student, whatever trial it is of; students whose search is the same share that."""
        search = self._folder / "searches" / _name([config.stage_fields("search"), config.student.path])
        return RunDir(self._folder / "students" / _name(decisive(config)), search)

    def _best(self, trials: Sequence[Trial]) -> Config:
        """The configuration of the best trial, with its teacher, and so the one that gives its very numbers."""
        config = self._student(ranked(trials, self._config.tune.objective)[0].values, self._seeds[0])
        return config.trial({"teacher.path": str((self._run.teacher / "model.keras").resolve())})

    def _write(self, trials: Sequence[Trial]) -> None:
        write_csv(self._folder / "trials.csv", [_numbers(trial, self._run.path) for trial in trials])
        write_text(self._folder / "table.md", markdown(self._shown(trials), self._title(trials), notes(trials, self._config)))
        if all(trial.failed for trial in trials):
            return
        write_text(self._folder / "best.json", self._best(trials).to_json())
        objective = self._config.tune.objective
        tried = [(trial.values, trial.mean(objective)) for trial in trials]
        figure = figures.trials(tried, self._config.tune.space, objective=objective, largest=objective == LARGEST)
        figures.save(figure, self._folder / "tuning.png")

    def _shown(self, trials: Sequence[Trial]) -> list[dict[str, str]]:
        objective = self._config.tune.objective
        return [shown_values(trial, objective) for trial in ranked(trials, objective)]

    def _title(self, trials: Sequence[Trial]) -> str:
        config = self._config
        return f"{config.data.name}, student {config.student.name}, {config.tune.tuner}: {len(trials)} of {self._count} trials"


def decisive(config: Config) -> list[Any]:
    """All that decides a student of a trial, given the teacher: what its stages read, and the files that they name."""
    search = config.stage_fields("search") if needs_search(config) else None
    return [config.stage_fields("distil"), search, config.student.path, config.distil.aggregation_file]


def _name(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def alternatives(config: Config) -> list[Config]:
    """The configuration without its space, and with each extreme of each field alone, as far as it agrees with the others."""
    found = [config.trial({})]
    for name, domain in config.tune.space.items():
        found += _agreeing(config, [{name: value} for value in domain.extremes])
    return found


def _agreeing(config: Config, several: Sequence[Mapping[str, JsonValue]]) -> list[Config]:
    found = []
    for values in several:
        try:
            found.append(config.trial(values))
        except UserError:  # that each value fits its field, the configuration has seen to
            continue
    return found


def check_space(config: Config) -> None:
    """Raises UserError unless there is a space, each field in it decides something, and each plug-in has its options."""
    space = config.tune.space
    if not space:
        raise UserError("tune.space must name a field and its values. Received: {}")
    bases = alternatives(config)
    for each in bases:
        check_options(each)
    for name, domain in space.items():
        several = [{name: value} for value in domain.extremes]
        if not any(_differ(_agreeing(base, several)) for base in bases):
            raise UserError(f"every field of tune.space must decide something of a student. Received: {name!r}, which decides nothing here")


def _differ(configs: Sequence[Config]) -> bool:
    """Whether configurations give different students; also where there are no two to tell."""
    return len(configs) < 2 or len({_name(decisive(config)) for config in configs}) > 1


def _numbers(trial: Trial, root: Path) -> dict[str, Any]:
    """A row of the CSV."""
    measures: dict[str, float | None] = {}
    for measure in _MEASURES:
        measures |= {measure: trial.mean(measure), f"{measure}_std": trial.deviation(measure)}
    students = " ".join(str(directory.relative_to(root)) for directory in trial.directories)
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in trial.values.items()}
    return {"trial": trial.number, **measures, **values, "failed": trial.failed, "students": students}


def ranked(trials: Sequence[Trial], objective: str) -> list[Trial]:
    """The best one first, of equal ones the earlier; those that failed last."""
    sign = -1 if objective == LARGEST else 1
    return sorted(trials, key=lambda trial: (bool(trial.failed), sign * (trial.mean(objective) or 0.0)))


def shown_values(trial: Trial, objective: str) -> dict[str, str]:
    """A row of the table as people read it: the objective first, accuracy in percent."""

    def spread(measure: str) -> str:
        scale, digits = (100, 2) if measure == LARGEST else (1, 4)
        mean, deviation = trial.mean(measure), trial.deviation(measure)
        if mean is None:
            return "failed"
        return f"{scale * mean:.{digits}f}" + ("" if deviation is None else f" ± {scale * deviation:.{digits}f}")

    headings = {"validation_accuracy": "validation %", "validation_loss": "validation loss"}
    shown = {headings[measure]: spread(measure) for measure in sorted(_MEASURES, key=lambda measure: measure != objective)}
    return {"trial": str(trial.number), **shown, **{name: _shown(value) for name, value in trial.values.items()}}


def _shown(value: JsonValue) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def notes(trials: Sequence[Trial], config: Config) -> list[str]:
    """What stands below the table: how to read it, and why trials failed."""
    count = config.tune.seeds
    spread = f" Mean ± standard deviation over {count} seeds." if count > 1 else ""
    reading = f"Ranked by {config.tune.objective}, of the student as it is in the end; trials never see the test set.{spread}"
    return [reading, *(f"Failed: trial {trial.number}: {trial.failed}" for trial in trials if trial.failed)]


def tune(config: Config, run: RunDir, *, overwrite: bool = False, quiet: bool = False) -> Path:
    """Tries values of the fields of `tune.space`, and writes the tables.

    Args:
        config: what all trials share, and the space.
        run: the directory of the tuning, held by this process.
        overwrite: replace a teacher of another configuration.
        quiet: show no progress.

    Returns:
        The best configuration, a file for --config, beside `trials.csv`, `table.md` and `tuning.png`.

    Raises:
        UserError: if the space or the configuration is mistaken, or every trial fails.
    """
    return Tuning(config, run, overwrite=overwrite, quiet=quiet).run()
