"""A tuning: one trial after the other, each with its students, and the tables after each."""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
from pydantic import JsonValue

from dfa_tf.config import Config
from dfa_tf.display import figures
from dfa_tf.display.progress import Reporter
from dfa_tf.display.tables import Table, markdown, print_table
from dfa_tf.errors import UserError
from dfa_tf.pipeline.building import build_splits
from dfa_tf.pipeline.checking import check
from dfa_tf.pipeline.pipeline import train_student
from dfa_tf.pipeline.run import Run
from dfa_tf.pipeline.stages import TeacherStage, student_stages
from dfa_tf.pipeline.tune.space import alternatives, check_space, decisive, identify
from dfa_tf.pipeline.tune.trials import LARGEST, MEASURES, Trial, notes, ranked, shown_value, shown_values
from dfa_tf.pipeline.tune.tuners import Tuner, count_trials
from dfa_tf.process import workers
from dfa_tf.storage.files import write_csv, write_text
from dfa_tf.storage.run_directory import RunDir
from dfa_tf.storage.scratch import scratch_folder
from dfa_tf.training import strategies


class Tuning:
    """Trials, one after the other, until the tuner asks for no more. Finished students are never trained again, also after a kill.

    Args:
        config: what all trials share, and the space of what they do not.
        directory: of the tuning, held by this process: `teacher/` and `tuning/`.
        overwrite: replace a teacher of another configuration, which is refused otherwise.
        quiet: show no progress.

    Raises:
        UserError: if the space is empty, a field in it decides nothing, or a plug-in lacks an option.
    """

    def __init__(self, config: Config, directory: RunDir, *, overwrite: bool = False, quiet: bool = False) -> None:
        check_space(config)
        self._config, self._directory, self._overwrite = config, directory, overwrite
        self._folder = directory.path / "tuning"
        self._seeds = range(config.seed, config.seed + config.tune.seeds)
        self._count = count_trials(config)
        longest = max((student_stages(each) for each in alternatives(config)), key=len)
        stages = [stage.title(config) for stage in longest]
        self._reporter = Reporter([TeacherStage.title(config), *(self._count * len(self._seeds) * stages)], quiet=quiet)

    def run(self) -> Path:
        """Trains what is not trained yet, and rewrites the tables after each trial.

        Returns:
            The best configuration, a file for --config.

        Raises:
            UserError: if there is no validation split, or every trial fails; and the errors of the teacher's stage.
        """
        with self._reporter:
            trials = self._try_all()
        if all(trial.failed for trial in trials):
            raise UserError(f"all {len(trials)} trials failed, the first one for: {trials[0].failed}")
        if workers.is_chief():
            print_table(self._table(trials))
        return self._folder / "best.json"

    def _try_all(self) -> list[Trial]:
        strategies.begin(self._config)  # before the data are read, as the strategy of several workers asks for
        if not len(build_splits(self._config).validation):
            raise UserError(
                "tuning chooses by the validation split, and there is none. Received: data.validation_fraction=0. Hold out, say, 0.2"
            )
        check(self._run(0, self._config.trial({})))
        TeacherStage(Run(self._config, self._directory, self._reporter, overwrite=self._overwrite)).execute()
        trials: list[Trial] = []
        with scratch_folder() as folder:
            tuner = Tuner(self._config, folder)
            while (values := workers.decided(tuner.ask)) is not None:
                trials.append(self._try(len(trials) + 1, values))
                if workers.is_chief():
                    tuner.tell(trials[-1].mean(self._config.tune.objective))
                self._write(trials)
                keras.backend.clear_session()
                gc.collect()
        if len(trials) < self._count:
            self._say(f"there are {len(trials)} trials and not {self._count}: the space has no further values, or too many failed")
        return trials

    def _try(self, number: int, values: Mapping[str, JsonValue]) -> Trial:
        """A trial with its students. Values that do not go together, or a training that diverges, end this trial alone."""
        shown = ", ".join(f"{name}={shown_value(value)}" for name, value in values.items())
        try:
            configs = [self._student(values, seed) for seed in self._seeds]
            results = [train_student(self._run(number, config)) for config in configs]
        except UserError as error:
            self._say(f"trial {number} failed with {shown}: {error}")
            return Trial(number, values, failed=str(error))
        trial = Trial(number, values, results, [self._student_directory(config).student(config.method) for config in configs])
        reached = ", ".join(f"{measure} {trial.mean(measure):.4f}" for measure in MEASURES)
        self._say(f"trial {number}: {reached} with {shown}")
        return trial

    def _say(self, line: str) -> None:
        if workers.is_chief():
            self._reporter.say(line)

    def _student(self, values: Mapping[str, JsonValue], seed: int) -> Config:
        """The configuration of one student. The images are those of the tuning's own seed, which the teacher was trained on."""
        return self._config.trial({**values, "seed": seed, "data.seed": self._config.data_seed})

    def _run(self, number: int, config: Config) -> Run:
        label = f"trial {number}, seed {config.seed}: " if len(self._seeds) > 1 else f"trial {number}: "
        return Run(
            config,
            self._student_directory(config),
            self._reporter,
            overwrite=self._overwrite,
            teacher=self._directory.teacher / "model.keras",
            label=label,
            test=False,
        )

    def _student_directory(self, config: Config) -> RunDir:
        """One for each student, whatever trial it is of; students whose search is the same share that."""
        search = self._folder / "searches" / identify([config.stage_fields("search"), config.student.path])
        return RunDir(self._folder / "students" / identify(decisive(config)), search)

    def _best(self, trials: Sequence[Trial]) -> Config:
        """The configuration of the best trial, with its teacher: it reproduces the trial's numbers."""
        config = self._student(ranked(trials, self._config.tune.objective)[0].values, self._seeds[0])
        return config.trial({"teacher.path": str((self._directory.teacher / "model.keras").resolve())})

    def _write(self, trials: Sequence[Trial]) -> None:
        write_csv(self._folder / "trials.csv", [trial.numbers(self._directory.path) for trial in trials])
        write_text(self._folder / "table.md", markdown(self._table(trials)))
        if all(trial.failed for trial in trials):
            return
        write_text(self._folder / "best.json", self._best(trials).to_json())
        objective = self._config.tune.objective
        tried = [(trial.values, trial.mean(objective)) for trial in trials]
        figure = figures.trials(tried, self._config.tune.space, objective=objective, largest=objective == LARGEST)
        figures.save(figure, self._folder / "tuning.png")

    def _table(self, trials: Sequence[Trial]) -> Table:
        config, objective = self._config, self._config.tune.objective
        title = f"{config.data.name}, student {config.student.name}, {config.tune.tuner}: {len(trials)} of {self._count} trials"
        return Table.of(title, [shown_values(trial, objective) for trial in ranked(trials, objective)], notes(trials, config))
