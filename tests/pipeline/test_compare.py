"""The comparison: rows and their configurations, the statistics by hand, and a grid that never trains a student twice."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfa_tf.aggregation.weights import AggregationWeights, GroupWeights
from dfa_tf.config import Config
from dfa_tf.display.tables import Table, html, markdown
from dfa_tf.errors import UserError
from dfa_tf.pipeline.compare import compare
from dfa_tf.pipeline.compare.rows import Row
from dfa_tf.pipeline.compare.statistics import Cell, interval, summarise
from dfa_tf.pipeline.compare.tables import alphas_of, notes, shown_alphas, shown_values
from dfa_tf.storage.run_directory import RunDir


def cell(row: str, seed: int, accuracy: float, best: float = 0.9, seconds: float = 10.0, search: float = 0.0) -> Cell:
    result: dict[str, Any] = {"test_accuracy": accuracy, "test_accuracy_best": best, "seconds": seconds, "examples_per_second": 100.0}
    return Cell(row, seed, {**result, "test_loss": 1.0, "parameters": 7, "steps": 3}, search)


# Rows


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("plain", Row("plain", ())),
        ("kd", Row("kd", ("kd",))),
        ("dfa+kd", Row("dfa+kd", ("dfa", "kd"))),
        ("last: dfa; distil.aggregation=last", Row("last", ("dfa",), ("distil.aggregation=last",))),
        ("st:dfa;search.objective=st;search.epochs=3", Row("st", ("dfa",), ("search.objective=st", "search.epochs=3"))),
    ],
)
def test_a_row_is_read(text: str, row: Row) -> None:
    assert Row.parse(text) == row


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kdd", "Received: 'kdd' in 'kdd'. Did you mean 'kd'"),
        ("plain+kd", "Received: 'plain'"),
        ("", "Received: ''"),
        ("dfa; distil.aggregation=last", "a row with overrides reads NAME: METHODS"),
        ("last: dfa", "a row with overrides reads NAME: METHODS"),
        ("../last: dfa; seed=1", "a row with overrides reads NAME: METHODS"),
    ],
)
def test_a_row_that_cannot_be_read_is_refused(text: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        Row.parse(text)
    assert told in str(caught.value)


def test_a_row_changes_methods_and_seed_and_keeps_the_images_weights_and_options() -> None:
    base = Config(seed=3).override(
        ['distil.methods={"dfa": 2.0}', 'distil.options={"dfa": {"distance": "l2"}}', 'distil.warmup_epochs={"dfa": 2}', "train.epochs=9"]
    )
    both = Row.parse("dfa+kd").config(base, 5)
    assert (both.seed, both.data_seed, both.train.epochs) == (5, 3, 9)
    assert both.distil.methods == {"dfa": 2.0, "kd": None}
    assert both.distil.options == {"dfa": {"distance": "l2"}}
    alone = Row.parse("kd").config(base, 5)
    assert (alone.distil.methods, alone.distil.options, alone.distil.warmup_epochs) == ({"kd": None}, {}, {})
    assert Row.parse("plain").config(base, 5).method == "plain"
    assert Row.parse("first: dfa; distil.aggregation=first").config(base, 5).distil.aggregation == "first"


# The table


def test_the_table_by_hand() -> None:
    cells = [cell("plain", 0, 0.50), cell("plain", 1, 0.54), cell("kd", 0, 0.53, 0.6, 20), cell("kd", 1, 0.55, 0.7, 30, 4)]
    kd, plain = summarise(cells, "plain")
    assert (kd["row"], plain["row"]) == ("kd", "plain"), "ranked by the last epoch"
    np.testing.assert_allclose([kd["accuracy_mean"], kd["accuracy_std"]], [0.54, 0.01 * np.sqrt(2)])
    np.testing.assert_allclose([kd["best_accuracy_mean"], kd["best_accuracy_std"]], [0.65, 0.05 * np.sqrt(2)])
    # Paired differences are 0.03 and 0.01: mean 0.02, standard error 0.01, and Student's t with one degree of freedom 12.706.
    np.testing.assert_allclose([kd["difference"], kd["interval"]], [0.02, 0.12706], rtol=1e-4)
    assert (plain["difference"], plain["interval"]) == (None, None)
    assert (kd["seconds"], kd["search_seconds"], kd["images_per_second"], kd["seeds"]) == (25.0, 2.0, 100.0, "0 1")


def test_the_best_epoch_does_not_rank() -> None:
    cells = [cell("lucky", 0, 0.5, best=0.9), cell("steady", 0, 0.6, best=0.6)]
    assert [row["row"] for row in summarise(cells, "lucky")] == ["steady", "lucky"]


def test_the_validation_split_ranks_where_there_is_one() -> None:
    overfitted, chosen = cell("overfitted", 0, 0.9), cell("chosen", 0, 0.5)
    cells = [Cell(c.row, 0, {**c.result, "validation_accuracy": value}, 0.0) for c, value in ((overfitted, 0.6), (chosen, 0.7))]
    table = summarise(cells, "chosen")
    assert [(row["row"], row["validation_mean"]) for row in table] == [("chosen", 0.7), ("overfitted", 0.6)]
    assert table[1]["difference"] == pytest.approx(-0.1), "the difference is of the accuracy that ranks"
    assert list(shown_values(table[0]))[:3] == ["row", "validation %", "accuracy %"]
    assert cells[0].numbers()["validation_accuracy"] == 0.6


def test_differences_are_of_the_seeds_that_both_rows_have() -> None:
    cells = [cell("plain", 0, 0.5), cell("kd", 0, 0.6), cell("kd", 1, 0.1)]
    row = next(row for row in summarise(cells, "plain") if row["row"] == "kd")
    assert row["difference"] == pytest.approx(0.1)
    assert row["interval"] is None
    assert summarise([cell("kd", 1, 0.1)], "plain")[0]["difference"] is None


def test_the_interval_of_equal_differences_is_a_point() -> None:
    assert interval([0.25, 0.25, 0.25]) == (0.25, 0.0)
    assert interval([0.25]) == (0.25, None)
    assert interval([]) == (None, None)


def test_people_read_percent_with_deviations_and_signs() -> None:
    (kd, plain) = map(shown_values, summarise([cell("plain", 0, 0.5), cell("kd", 0, 0.531, 0.6), cell("kd", 1, 0.551, 0.6)], "plain"))
    assert (kd["accuracy %"], kd["best epoch %"], kd["to baseline, points"]) == ("54.10 ± 1.41", "60.00 ± 0.00", "+3.10")
    assert (plain["accuracy %"], plain["to baseline, points"]) == ("50.00", "")


def test_markdown_and_html_hold_every_value() -> None:
    rows = [shown_values(row) for row in summarise([cell("plain", 0, 0.5), cell("a<b", 0, 0.25)], "plain")]
    below = notes([{"row": "a<b", "seed": 3, "failed": "it diverged"}])
    table = Table.of("Title", rows, below)
    text, page = markdown(table), html([table])
    assert "Failed: a<b with seed 3: it diverged" in text
    assert "Failed: a&lt;b with seed 3: it diverged" in page
    assert "| plain | 50.00 | 90.00 |  | 10 | 0 | 100 | 0 |" in text
    assert text.startswith("Title\n\n| row |")
    assert "a&lt;b" in page
    assert "a<b" not in page
    for row in rows:
        assert all(value in text for value in row.values())
    assert page.count("<tr>") == 3
    assert "://" not in page


def test_searched_weights_are_shown_by_row_and_group_with_their_spread() -> None:
    def searched(row: str, seed: int, *alphas: tuple[float, ...]) -> Cell:
        groups = tuple(GroupWeights(blocks=("a", "b", "c")[: len(alpha)], alpha=alpha) for alpha in alphas)
        return Cell(row, seed, cell(row, seed, 0.5).result, 1.0, AggregationWeights(teacher="t", groups=groups))

    cells = [searched("dfa", 0, (0.5, 0.5), (0.2, 0.2, 0.6)), searched("dfa", 1, (0.7, 0.3), (0.2, 0.2, 0.6)), cell("plain", 0, 0.5)]
    cells.append(searched("st", 0, (1.0, 0.0), (0.0, 0.0, 1.0)))
    assert shown_alphas(cells) == [
        {"row": "dfa", "group": "1", "block 1": "0.60 ± 0.14", "block 2": "0.40 ± 0.14", "block 3": ""},
        {"row": "dfa", "group": "2", "block 1": "0.20 ± 0.00", "block 2": "0.20 ± 0.00", "block 3": "0.60 ± 0.00"},
        {"row": "st", "group": "1", "block 1": "1.00", "block 2": "0.00", "block 3": ""},
        {"row": "st", "group": "2", "block 1": "0.00", "block 2": "0.00", "block 3": "1.00"},
    ]
    assert alphas_of(cells)[1] == {"row": "dfa", "seed": 0, "group": 1, "block": "b", "alpha": 0.5}
    assert len(alphas_of(cells)) == 15
    assert shown_alphas([cell("plain", 0, 0.5)]) == []


# The grid


@pytest.fixture(scope="module")
def small(config: Config) -> Config:
    return config.override(
        ["data.train_limit_per_class=4", "train.epochs=2", "search.epochs=1", "search.mode=joint", "teacher.name=wrn_10_1"]
    )


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_grid_goes_on_where_it_stopped_and_trains_no_student_twice(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path)
    compare(small, run, ["dfa"], [0], quiet=True)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("student.keras")}
    assert len(stamps) == 1
    folder = compare(small, run, ["dfa", "last: dfa; distil.aggregation=last"], [0, 1], baseline="last")
    shown = capsys.readouterr()
    assert shown.err.count("done before") == 3  # the teacher, one student and its search
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    cells = read(folder / "cells.csv")
    assert sorted((row["row"], row["seed"]) for row in cells) == [(name, seed) for name in ("dfa", "last") for seed in "01"]
    table = {row["row"]: row for row in read(folder / "table.csv")}
    for name, row in table.items():
        mine = [float(each["test_accuracy"]) for each in cells if each["row"] == name]
        np.testing.assert_allclose(float(row["accuracy_mean"]), np.mean(mine))
    assert float(table["dfa"]["search_seconds"]) > 0
    assert float(table["last"]["search_seconds"]) == 0
    assert table["last"]["difference"] == ""
    assert "last" in shown.out
    assert "dfa" in (folder / "table.md").read_text(encoding="utf-8")
    for seed in (0, 1):
        weights = AggregationWeights.load(tmp_path / "cells" / "usual" / f"seed{seed}" / "search" / "alphas.json")
        mine = [float(row["alpha"]) for row in read(folder / "alphas.csv") if (row["row"], row["seed"]) == ("dfa", str(seed))]
        np.testing.assert_allclose(mine, [alpha for group in weights.groups for alpha in group.alpha])
    assert "Searched aggregation weights" in shown.out
    assert "Searched aggregation weights" in (folder / "table.html").read_text(encoding="utf-8")


def test_a_student_that_diverges_does_not_stop_the_others(small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["wild: kd; train.learning_rate=100; train.weight_decay=100", "plain"]
    folder = compare(small, RunDir(tmp_path), rows, [0], quiet=True)
    cells = {row["row"]: row for row in read(folder / "cells.csv")}
    assert "diverged" in cells["wild"]["failed"]
    assert float(cells["plain"]["test_accuracy"]) > 0
    assert [row["row"] for row in read(folder / "table.csv")] == ["plain"]
    for text in ((folder / "table.md").read_text(encoding="utf-8"), (folder / "table.html").read_text(encoding="utf-8")):
        assert "Failed: wild with seed 0: the training diverged" in text
    assert "Failed: wild with seed 0" in capsys.readouterr().out


def test_rows_with_one_seed_start_from_one_student_and_one_order(small: Config, tmp_path: Path) -> None:
    rows = ["plain", 'nothing: kd; distil.methods={"kd": 0.0}']
    folder = compare(small, RunDir(tmp_path), rows, [2], quiet=True)
    plain, nothing = read(folder / "cells.csv")
    assert (plain["test_accuracy"], plain["test_loss"]) == (nothing["test_accuracy"], nothing["test_loss"])


@pytest.mark.parametrize(
    ("rows", "seeds", "baseline", "told"),
    [
        (["kd", "kd"], [0], None, "rows must be different"),
        (["kd"], [0, 0], None, "seeds must be different"),
        (["kd"], [], None, "seeds must be different"),
        ([], [0], None, "rows must be different"),
        (["kd", "dfa"], [0], "df", "the baseline must be a row. Received: 'df'. Did you mean 'dfa'"),
        (["kd", "odd: dfa; search.epoch=1"], [0], None, "Did you mean 'search.epochs'"),
    ],
)
def test_a_mistake_is_found_before_anything_is_trained(
    small: Config, tmp_path: Path, rows: list[str], seeds: list[int], baseline: str | None, told: str
) -> None:
    with pytest.raises(UserError) as caught:
        compare(small, RunDir(tmp_path), rows, seeds, baseline=baseline, quiet=True)
    assert told in str(caught.value)
    assert list(tmp_path.iterdir()) == []
