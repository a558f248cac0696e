"""The report: what the page and its figures say of a run that is made up, and so known."""

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from handmade import NAMES, PICTURED, write_network, write_run

from dfa_tf.config import Config
from dfa_tf.display.page import render
from dfa_tf.errors import UserError
from dfa_tf.reporting import report
from dfa_tf.reporting.record import Record
from dfa_tf.reporting.report_figures import Drawing, draw
from dfa_tf.reporting.run_reader import read_run
from dfa_tf.storage.run_directory import RunDir


class Page(HTMLParser):
    """A page taken apart.

    Attributes:
        tags: names of the elements, in order.
        tables: by label of its scroller, the cells by row.
        images: attributes of the pictures.
        headings: levels, in order.
        words: all of the text.
        addresses: every value of `src` and `href`.
        ids: of elements.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.words = ""
        self._label, self._open = "", ""
        self.feed(text)
        self.headings = [int(tag[1]) for tag in self.tags if re.fullmatch("h[1-6]", tag)]
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.ids |= {str(given["id"])} if "id" in given else set()
        self.addresses += [str(given[name]) for name in ("src", "href") if name in given]
        if tag == "img":
            self.images.append(given)
        if tag == "div" and given.get("role") == "region":
            self._label = str(given["aria-label"])
        if tag == "table":
            self.tables[self._label] = []
        if tag == "tr":
            self.tables[self._label].append([])
        if tag in ("th", "td"):
            self.tables[self._label][-1].append("")
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open != "style":
            self.words += data
        if self._open in ("th", "td", "code", "b") and self.tables.get(self._label):
            self.tables[self._label][-1][-1] += data


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run directory in which every stage is done."""
    return write_run(tmp_path / "run")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Such a run, which no test changes."""
    return read_run(write_run(tmp_path_factory.mktemp("kept") / "run").path)


@pytest.fixture(scope="module")
def drawings(kept: Record) -> list[Drawing]:
    """Its figures."""
    return draw(kept)


def begun(folder: Path) -> RunDir:
    """A run directory that has a configuration and nothing else."""
    run = RunDir(folder / "begun")
    run.path.mkdir()
    run.config.write_text(Config().to_json())
    return run


def page_of(*paths: Path) -> Page:
    """The page of runs, but for the figures."""
    return Page(report.render([read_run(path) for path in paths], [[]] * len(paths)))


def test_the_page_and_the_figures_are_written(run: RunDir) -> None:
    assert report.write([run.path]) == run.report / "index.html"
    assert sorted(path.name for path in run.report.iterdir()) == [
        "alphas.png", "confusion.png", "index.html", "test_accuracy.png", "test_loss.png", "training_accuracy.png", "training_loss.png",
        "trajectory.png",
    ]  # fmt: skip


def test_figures_of_what_is_no_longer_there_go(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.report.mkdir()
    for name in ("trajectory.png", "mine.png"):
        (run.report / name).write_text("earlier")
    report.write([run.path])
    assert sorted(path.name for path in run.report.iterdir()) == ["index.html", "mine.png"]


def test_a_named_page_stands_alone(tmp_path: Path) -> None:
    run = begun(tmp_path)
    target = tmp_path / "pages" / "one.html"
    assert report.write([run.path], target) == target
    assert [path.name for path in target.parent.iterdir()] == ["one.html"]
    assert not run.report.exists()


def test_equal_runs_give_equal_pages(kept: Record, drawings: list[Drawing]) -> None:
    again = read_run(kept.path)
    assert report.render([again], [draw(again)]) == report.render([kept], [drawings])


def test_a_report_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="one run directory or more"):
        report.write([])


def test_a_damaged_run_leaves_the_earlier_page(run: RunDir) -> None:
    run.report.mkdir()
    (run.report / "index.html").write_text("earlier")
    (run.teacher / "result.json").write_text("{")
    with pytest.raises(UserError):
        report.write([run.path])
    assert {path.name: path.read_text() for path in run.report.iterdir()} == {"index.html": "earlier"}


def test_the_table_of_results(run: RunDir) -> None:
    heading, *rows = page_of(run.path).tables["Results"]
    assert heading[:5] == ["network", "model", "accuracy", "(best epoch)", "parameters"]
    dash = "\N{EN DASH}"
    assert rows == [
        ["teacher", "wrn_16_2", "100.00%", "100.00%", "1,234", "5,678,901", "4 KiB", dash, "2,500", dash],
        ["plain student", "wrn_10_1", "60.00%", "65.00%", "1,234", "5,678,901", "4 KiB", dash, "2,500", dash],
        ["dfa student", "wrn_10_1", "60.00%", "65.00%", "1,234", "5,678,901", "4 KiB", "0.25 ms", "2,500", "saved_model 10 KiB"],
    ]


def test_what_is_not_there_is_a_dash_and_is_named(run: RunDir) -> None:
    for stage in (run.evaluation, run.export):
        shutil.rmtree(stage)
    page = page_of(run.path)
    assert page.tables["Results"][-1] == ["dfa student", "\N{EN DASH}", "60.00%", "65.00%", "1,234", *["\N{EN DASH}"] * 5]
    assert "What is missing Not evaluated as it is now: teacher, plain student, dfa student; bin/evaluate.py does that." in page.words
    assert "No answers on a test set were kept." in page.words
    assert "Exported files" not in page.tables


def test_a_run_that_has_only_begun_is_shown(tmp_path: Path) -> None:
    page, record = page_of(begun(tmp_path).path), read_run(tmp_path / "begun")
    for words in (
        "No network is trained yet.",
        "No student of this run has aggregation weights.",
        "Nothing was trained in this directory.",
    ):
        assert words in page.words
    assert draw(record) == page.images == []


def test_the_reading_stands_below_the_results(run: RunDir) -> None:
    assert "The dfa student equals the plain one: within the noise of one run" in page_of(run.path).words


def test_exported_files_are_compared(run: RunDir) -> None:
    assert page_of(run.path).tables["Exported files"][1:] == [
        ["saved_model", "10 KiB", "90.00% of 10", "1.6e-02", "60.00% of 10", "0.25 ms"]
    ]


def test_figures_say_in_words_what_they_show(drawings: list[Drawing]) -> None:
    told = {drawing.name: drawing.alt for drawing in drawings}
    assert told["alphas"] == "Alpha by block, from the first to the last: group 1: 0.250, 0.750; group 2: 1.000"
    assert told["trajectory"] == (
        "Alpha over the epochs of the search. group 1: a from 0.500 to 0.250, b from 0.500 to 0.750; group 2: c from 1.000 to 1.000"
    )
    assert told["test_accuracy"] == (
        "Accuracy on the test set over the epochs: teacher from 100.00% to 100.00%, plain student from 60.00% to 60.00%, "
        "dfa student from 60.00% to 60.00%"
    )
    assert told["training_loss"].endswith("dfa student from 2.5 to 1.5")
    assert told["confusion"] == "Of 10 test images 6 are on the diagonal, where the predicted class is the true one"


def test_the_students_own_weights_are_shown_where_they_are_others(kept: Record, tmp_path: Path) -> None:
    assert kept.used is not None
    record = replace(read_run(begun(tmp_path).path), searched=kept.searched, used=kept.used.discretised())
    assert [(drawing.title, drawing.alt.rpartition("last: ")[2]) for drawing in draw(record)] == [
        ("Aggregation weights that the search has found", "group 1: 0.250, 0.750; group 2: 1.000"),
        ("Aggregation weights of the dfa student", "group 1: 0.000, 1.000; group 2: 1.000"),
    ]


def test_validation_has_figures_of_its_own(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.student("dfa").mkdir(parents=True)
    (run.student("dfa") / "metrics.jsonl").write_text('{"epoch": 5, "validation_accuracy": 0.5, "validation_loss": 2.0}\n')
    assert [drawing.alt for drawing in draw(read_run(run.path))] == [
        "Accuracy on the validation split over the epochs: dfa student from 50.00% to 50.00%",
        "Cross-entropy on the validation split over the epochs: dfa student from 2 to 2",
    ]


def test_confusions_and_the_hardest_classes_are_shown(run: RunDir) -> None:
    page = page_of(run.path)
    assert page.tables["Most frequent confusions"][1:] == [
        [NAMES[1], NAMES[0], "2", "50.0%"], [NAMES[0], NAMES[1], "1", "25.0%"], [NAMES[1], NAMES[2], "1", "25.0%"],
    ]  # fmt: skip
    assert f"{NAMES[1]}: 25.0% of 4 right; taken for {NAMES[0]} (2), {NAMES[2]} (1)" in page.words
    pictures = [image["alt"] for image in page.images if str(image["alt"]).startswith("Test image")]
    assert pictures == [
        f"Test image 6: {NAMES[1]}, taken for {NAMES[0]}",
        f"Test image 5: {NAMES[1]}, taken for {NAMES[2]}",
        f"Test image 4: {NAMES[1]}, taken for {NAMES[0]}",
        f"Test image 3: {NAMES[0]}, taken for {NAMES[1]}",
    ]


def test_answers_are_of_the_last_student_where_the_runs_own_has_none(run: RunDir) -> None:
    write_network(run.student("dfa"), "student.keras", 0.7)
    assert "Of the plain student." in page_of(run.path).words


def test_the_configuration_marks_what_is_not_default_and_what_differs(run: RunDir, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", "seed=7")
    rows = {row[0]: row[1:] for row in page_of(run.path, other.path).tables["Configuration"][1:]}
    assert len(rows) == len({name.removesuffix(" ≠") for name in rows})
    assert rows["seed ≠"] == ["0", "● 7", "0"]
    assert rows["train.epochs"] == ["● 2", "● 2", str(Config().train.epochs)]
    assert rows["data.name"] == ['"bundled"', '"bundled"', '"bundled"']
    assert "seed" in {row[0] for row in page_of(run.path).tables["Configuration"]}, "one run differs from no other"


def test_how_it_was_made_has_seeds_hashes_versions_and_the_command(run: RunDir) -> None:
    page = page_of(run.path)
    stages = {row[0]: row[1:] for row in page.tables["How it was made"][1:]}
    assert list(stages) == ["teacher", "plain student", "dfa student", "search"]
    assert stages["search"][:6] == ["0", "40", "3.5", "\N{EN DASH}", "\N{EN DASH}", "fedcba9876543210"]
    assert stages["teacher"][:6] == ["0", "80", "12.5", "640", "900 MiB", "0123456789abcdef"]
    assert re.fullmatch("[0-9a-f]{16}", stages["teacher"][6])
    assert stages["teacher"][7] == "tensorflow 2.21.0, keras 3.15.0"
    assert f"python bin/run.py --config={run.config} --workdir=again/run" in page.words
    assert '"schedule": "cosine"' in page.words, "config.json is in the page"


def test_a_path_is_quoted_for_the_shell(tmp_path: Path) -> None:
    assert f"--config='{tmp_path}/my run/config.json' --workdir='again/my run'" in page_of(write_run(tmp_path / "my run").path).words


def test_a_run_with_images_from_python_says_so(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", "data.name=given").path)
    assert "handed over in Python" in page.words
    assert "python bin/run.py" not in page.words


def test_several_runs_stand_side_by_side(kept: Record, drawings: list[Drawing], tmp_path: Path) -> None:
    page = Page(report.render([kept, read_run(write_run(tmp_path / "other").path)], [drawings, drawings]))
    networks = ["teacher", "plain student", "dfa student"]
    assert [row[0] for row in page.tables["Results"][1:]] == ["run", *networks, "other", *networks]
    assert len(page.images) == 2 * (7 + len(PICTURED)), "seven figures a run"
    assert page.words.count("Confusion matrix of the dfa student") == 2


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / folder / "seed0").path for folder in ("kd", "dfa")]
    heads = [row[0] for row in page_of(*paths).tables["Results"] if len(row) == 1]
    assert heads == list(map(str, paths))


def test_nothing_is_markup_but_the_templates(run: RunDir) -> None:
    """Names of classes, files and fields come from elsewhere."""
    shutil.copytree(run.student("dfa"), run.student("<script>alert(1)<"))
    records = [read_run(run.path)]
    text = report.render(records, [[]])
    assert "<script" not in text
    assert "<b>" not in text
    assert "&lt;b&gt;dog&lt;/b&gt;" in text


def test_nothing_is_fetched(kept: Record, drawings: list[Drawing]) -> None:
    page = Page(report.render([kept], [drawings]))
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "://" not in report.render([kept], [[]])


def test_headings_come_in_order_and_pictures_have_texts(kept: Record, drawings: list[Drawing]) -> None:
    for count in (1, 2):
        page = Page(report.render([kept] * count, [drawings] * count))
        assert page.headings[0] == 1
        assert page.headings.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(page.headings))
        assert all(image["alt"] for image in page.images)
        assert {address[1:] for address in page.addresses if address.startswith("#")} <= page.ids


def test_a_field_that_a_template_lacks_is_an_error() -> None:
    with pytest.raises(Exception, match="'title' is undefined"):
        render("table.html", rows=[], columns=[], below=[])
