"""What the closing table says."""

from pathlib import Path

import pytest

from dfa_tf.display.run_tables import closing_table, verdict


def row(method: str | None, accuracy: float) -> dict:
    """A row of the table as the evaluation writes it."""
    return {
        "name": f"{method or 'teacher'} wrn_10_1", "method": method, "test_accuracy": accuracy, "test_accuracy_best": accuracy + 0.01,
        "parameters": 77_562, "bytes": 427_008, "images_per_second": 25_000.4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("plain", "distilled", "words"),
    [
        (0.90, 0.91, "The dfa student is 1.00 points better than the plain one: within the noise"),
        (0.90, 0.80, "10.00 points worse than the plain one: more than the noise"),
        (0.90, 0.90, "equals the plain one: within the noise"),
    ],
)
def test_the_table_says_whether_the_distilled_student_won(plain: float, distilled: float, words: str) -> None:
    # Another student of the run directory is not what the run is about.
    text = verdict([row(None, 0.95), row("plain", plain), row("dfa", distilled), row("kd", 0.1)], "dfa", 899)
    assert words in text


def test_without_a_test_set_there_is_no_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{key: value for key, value in row(method, 0.5).items() if not key.startswith("test_")} for method in (None, "plain", "dfa")]
    closing_table(rows, {}, method="dfa", description="digits", seed=3, test_images=0)
    printed = capsys.readouterr().out
    assert "Without a test set there is no accuracy." in printed
    assert "%" not in printed


def test_noise_is_two_standard_errors_of_the_difference() -> None:
    # Two shares of one half over 100 images: 2 sqrt(0.25 / 100 + 0.25 / 100) = 0.1414.
    assert "about 14.1 points" in verdict([row("plain", 0.5), row("dfa", 0.5)], "dfa", 100)


def test_the_table_holds_every_network_and_path(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(None, 0.95), row("plain", 0.9), row("dfa", 0.91)]
    closing_table(rows, {"heat map": Path("run/search/alphas.png")}, method="dfa", description="digits", seed=3, test_images=899)
    shown = capsys.readouterr().out
    for text in ("digits; 899 test images, seed 3", "95.00%", "91.00%", "92.00%", "77,562", "417 KiB", "25,000", "run/search/alphas.png"):
        assert text in shown
