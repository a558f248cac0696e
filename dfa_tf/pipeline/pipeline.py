"""Running stages: some, those of a student, or all."""

from collections.abc import Sequence
from typing import Any

from dfa_tf.config import Config
from dfa_tf.display.progress import Reporter
from dfa_tf.display.run_tables import closing_table
from dfa_tf.pipeline.checking import check
from dfa_tf.pipeline.run import Run
from dfa_tf.pipeline.stages import ExportStage, Stage, all_stages, student_stages
from dfa_tf.process import workers
from dfa_tf.storage.reading import read_result
from dfa_tf.storage.run_directory import RunDir


def run_stages(
    config: Config, directory: RunDir, stages: Sequence[type[Stage]], *, overwrite: bool = False, quiet: bool = False, table: bool = False
) -> None:
    """Runs some stages.

    Args:
        config: of the run.
        directory: the run directory, held by this process.
        stages: in order.
        overwrite: replace results of another configuration.
        quiet: show no progress.
        table: print the closing table.
    """
    with _reporter(config, stages, quiet=quiet) as reporter:
        run = Run(config, directory, reporter, overwrite=overwrite)
        for stage in stages:
            stage(run).execute()
        if table:
            print_closing_table(run)


def run_all(config: Config, directory: RunDir, *, overwrite: bool = False, quiet: bool = False) -> None:
    """Checks that everything fits, runs every stage, and prints the closing table; arguments as of `run_stages`."""
    stages = all_stages(config)
    with _reporter(config, stages, quiet=quiet) as reporter:
        run = Run(config, directory, reporter, overwrite=overwrite)
        check(run)
        for stage in stages:
            stage(run).execute()
        print_closing_table(run)


def export(config: Config, directory: RunDir, formats: Sequence[str], *, overwrite: bool = False, quiet: bool = False) -> None:
    """Exports to several formats, and prints how they compare with the student; arguments as of `run_stages`."""
    with _reporter(config, [ExportStage], quiet=quiet) as reporter:
        ExportStage(Run(config, directory, reporter, overwrite=overwrite), formats, table=True).execute()


def train_student(run: Run) -> dict[str, Any]:
    """Makes the student from the teacher, holding the run directory; gives the result of its stage."""
    with run.directory.lock():
        for stage in student_stages(run.config):
            stage(run).execute()
    return read_result(run.directory.student(run.config.method))


def print_closing_table(run: Run) -> None:
    """Prints the results that the stages wrote, and where they are; of several workers at the chief."""
    if not workers.is_chief():
        return
    config, directory = run.config, run.directory
    result = read_result(directory.evaluation)
    made = {
        "teacher": directory.teacher / "model.keras",
        "plain student": directory.student("plain") / "student.keras",
        "distilled student": directory.student(config.method) / "student.keras",
        "SavedModel": directory.export / "saved_model",
        "alphas": directory.search / "alphas.json",
        "heat map": directory.search / "alphas.png",
        "report": directory.report / "index.html",
    }
    there = {what: path for what, path in made.items() if path.exists()}
    about = {"method": config.method, "description": result["description"]}
    with run.reporter.paused():
        closing_table(result["rows"], there, **about, seed=config.seed, test_images=result["test_images"])


def _reporter(config: Config, stages: Sequence[type[Stage]], *, quiet: bool) -> Reporter:
    return Reporter([stage.title(config) for stage in stages], quiet=quiet)
