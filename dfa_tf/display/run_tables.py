"""The tables of a run: its results, the spread of its searches, the parity of its exported files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dfa_tf.display.tables import Table, print_table

_NO_TEST_SET = "Without a test set there is no accuracy."
_ACCURACY = "Accuracy is on the test set after the last epoch; the best epoch was not used to choose anything."


def closing_table(
    rows: Sequence[Mapping[str, Any]], made: Mapping[str, Path], *, method: str, description: str, seed: int, test_images: int
) -> None:
    """Prints the results of a run, and where they are.

    Args:
        rows: for each network: `name`, `test_accuracy`, `test_accuracy_best` (0..1; neither without a test set),
            `parameters`, `bytes`, `images_per_second`, and `method`, which is None for the teacher.
        made: paths of the artifacts, by what they are.
        method: of the student that the run is about.
        description: of the data.
        seed: of the run.
        test_images: how many there are.
    """
    cells = [
        [
            row["name"],
            *(f"{row[key]:.2%}" if key in row else "-" for key in ("test_accuracy", "test_accuracy_best")),
            f"{row['parameters']:,}",
            f"{row['bytes'] / 1024:,.0f} KiB",
            f"{row['images_per_second']:,.0f}",
        ]
        for row in rows
    ]
    columns = ["network", "accuracy", "(best epoch)", "parameters", "file", "images/s"]
    notes = [_ACCURACY if test_images else _NO_TEST_SET, verdict(rows, method, test_images)]
    paths = [f"  {what:<18} {path}" for what, path in made.items()]
    print_table(Table(f"{description}; {test_images} test images, seed {seed}", columns, cells, [*filter(None, notes), *paths]))


def spread_table(rows: Sequence[Mapping[str, Any]], *, searches: int) -> None:
    """Prints how the aggregation weights vary between searches with other seeds.

    Args:
        rows: as `dfa_tf.aggregation.weights.spread` gives them.
        searches: how many there were.
    """
    numbers = ("mean", "std", "min", "max")
    cells = [[str(row["group"]), row["block"], *(f"{row[name]:.3f}" for name in numbers)] for row in rows]
    print_table(Table(f"alpha over {searches} searches with other seeds", ["group", "block", *numbers], cells, text=["block"]))


def parity_table(rows: Mapping[str, Mapping[str, Any]], *, title: str) -> None:
    """Prints how exported files compare with the student.

    Args:
        rows: by name of the format, the fields of `dfa_tf.export.parity.Parity`.
        title: above the table.
    """
    cells = [
        [
            name,
            f"{row['bytes'] / 1024:,.0f} KiB",
            f"{row['agreement']:.2%}",
            f"{row['max_difference']:.1e}",
            f"{row['accuracy']:.2%}",
            f"{row['milliseconds']:.2f} ms",
        ]
        for name, row in rows.items()
    ]
    counts = next(iter(rows.values()))
    note = f"Agreement and difference are to the student, on {counts['images']} test images; accuracy is on {counts['accuracy_images']}."
    print_table(Table(title, ["format", "file", "agreement", "max difference", "accuracy", "one image"], cells, [note]))


def verdict(rows: Sequence[Mapping[str, Any]], method: str, test_images: int) -> str:
    """Whether the distilled student beats the plain one, and whether by more than noise; empty where one was not tested.

    Args:
        rows: for each network `method` and, with a test set, `test_accuracy`, 0..1.
        method: of the distilled student.
        test_images: how many there are.
    """
    accuracy = {row["method"]: row["test_accuracy"] for row in rows if "test_accuracy" in row}
    if not test_images or method == "plain" or not {"plain", method} <= accuracy.keys():
        return ""
    plain, distilled = accuracy["plain"], accuracy[method]
    # Two standard errors of the difference of two shares, as if their errors were independent.
    noise = 200 * math.sqrt((plain * (1 - plain) + distilled * (1 - distilled)) / test_images)
    points = 100 * (distilled - plain)
    compared = "equals" if points == 0 else f"is {abs(points):.2f} points {'better' if points > 0 else 'worse'} than"
    certainty = "more than" if abs(points) > noise else "within"
    return f"The {method} student {compared} the plain one: {certainty} the noise of one run, about {noise:.1f} points."
