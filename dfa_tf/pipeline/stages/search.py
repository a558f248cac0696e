"""Stage 1: the search for aggregation weights."""

from pathlib import Path
from typing import Any

from dfa_tf.aggregation.search import SearchResult, search
from dfa_tf.aggregation.weights import spread
from dfa_tf.display import figures
from dfa_tf.display.run_tables import spread_table
from dfa_tf.pipeline.building import build_network
from dfa_tf.pipeline.stages.base import TrainingStage
from dfa_tf.process import status, workers
from dfa_tf.process.status import ReportStep
from dfa_tf.storage.files import write_csv
from dfa_tf.storage.reading import digest, read_result
from dfa_tf.training.checkpoints import Checkpoints
from dfa_tf.training.measuring import Stopwatch


class SearchStage(TrainingStage):
    """Searches, `search.repetitions` times; writes `alphas.json`, `trajectory.csv` and `alphas.png` of the first search."""

    name = "search"
    reads_teacher = True

    @property
    def directory(self) -> Path:
        return self.run.directory.search

    def inputs(self) -> list[str]:
        return [digest(self.run.teacher_file()), *self.run.student_digests()]

    def work(self, checkpoints: Checkpoints, report: ReportStep) -> dict[str, Any]:
        watch, config = Stopwatch(), self.run.config
        parts = [checkpoints.part(f"repetition{number}") for number in range(1, config.search.repetitions + 1)]
        results = [self._search(number, part, report) for number, part in enumerate(parts)]
        self._write(results[0])
        steps, before = sum(result.steps for result in results), sum(part.seconds_before for part in parts)
        variation = spread([result.weights for result in results])
        return {"seed": config.seed, "spread": variation, **watch.result(steps, config.data.batch_size, before)}

    def _search(self, number: int, checkpoints: Checkpoints, report: ReportStep) -> SearchResult:
        """One of the repetitions: with its own seed, on the same splits."""
        run, count = self.run, self.run.config.search.repetitions
        data = run.config.data.model_copy(update={"seed": run.config.data_seed})
        config = run.config.model_copy(update={"seed": run.config.seed + number, "data": data})

        def report_all(done: int, total: int, numbers: dict[str, float]) -> None:
            report(number * total + done, count * total, numbers)

        status.begin(f"getting ready for search {number + 1}/{count}")
        student = build_network(config.student, config, run.splits)
        context = self.context(checkpoints, report_all, f"repetition{number + 1}" if number else "")
        return search(run.load_teacher(), student, run.splits, config, config_hash=checkpoints.config_hash, context=context)

    def _write(self, result: SearchResult) -> None:
        write_csv(self.directory / "trajectory.csv", result.trajectory)
        alphas, title = [group.alpha for group in result.weights.groups], f"aggregation weights of {result.weights.teacher}"
        figures.save(figures.heat_map(alphas, title=title), self.directory / "alphas.png")
        result.weights.save(self.directory / "alphas.json")

    def execute(self) -> None:
        """Runs the stage unless its result is there, and prints how the weights vary where it has searched several times."""
        super().execute()
        searches = self.run.config.search.repetitions
        if searches > 1 and workers.is_chief():
            with self.run.reporter.paused():
                spread_table(read_result(self.directory)["spread"], searches=searches)
