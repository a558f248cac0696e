"""Tables in the terminal: the closing table of a run, the spread of searches, the parity of exported files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def terminal() -> Console:
    """Where tables are printed: as wide as the terminal, or 120 columns where there is none."""
    console = Console()
    if not console.is_terminal:
        console.width = 120
    return console


def closing_table(
    rows: Sequence[Mapping[str, Any]], made: Mapping[str, Path], *, method: str, description: str, seed: int, test_images: int
) -> None:
    """Prints what the run came to, and where it is.

    Args:
        rows: for each network: `name`, `test_accuracy`, `test_accuracy_best` (0..1; neither without a test set),
            `parameters`, `bytes`, `images_per_second`, and `method`, which is None for the teacher.
        made: paths of what was made, by what it is.
        method: of the student that the run is about.
        description: of the data.
        seed: of the run.
        test_images: how many there are.
    """
    console = terminal()
    table = Table(title=f"{description}; {test_images} test images, seed {seed}", title_justify="left", title_style="bold")
    table.add_column("network", no_wrap=True)
    for heading in ("accuracy", "(best epoch)", "parameters", "file", "images/s"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["name"],
            *(f"{row[key]:.2%}" if key in row else "-" for key in ("test_accuracy", "test_accuracy_best")),
            f"{row['parameters']:,}",
            f"{row['bytes'] / 1024:,.0f} KiB",
            f"{row['images_per_second']:,.0f}",
        )
    console.print(table)
    console.print(reading(rows, method, test_images), soft_wrap=True, highlight=False)
    for what, path in made.items():
        console.print(f"  {what:<18} {path}", soft_wrap=True, highlight=False)


def spread_table(rows: Sequence[Mapping[str, Any]], *, searches: int) -> None:
    """Prints how the aggregation weights vary between searches with other seeds.

    Args:
        rows: as `dfa_tf.aggregation.weights.spread` gives them.
        searches: how many there were.
    """
    table = Table(title=f"alpha over {searches} searches with other seeds", title_justify="left", title_style="bold")
    table.add_column("group", justify="right")
    table.add_column("block", no_wrap=True)
    for heading in ("mean", "std", "min", "max"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(str(row["group"]), row["block"], *(f"{row[name]:.3f}" for name in ("mean", "std", "min", "max")))
    terminal().print(table)


def parity_table(rows: Mapping[str, Mapping[str, Any]], *, title: str) -> None:
    """Prints how exported files compare with the student.

    Args:
        rows: by name of the format, the fields of `dfa_tf.export.parity.Parity`.
        title: above the table.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("format", no_wrap=True)
    for heading in ("file", "agreement", "max difference", "accuracy", "one image"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['bytes'] / 1024:,.0f} KiB",
            f"{row['agreement']:.2%}",
            f"{row['max_difference']:.1e}",
            f"{row['accuracy']:.2%}",
            f"{row['milliseconds']:.2f} ms",
        )
    terminal().print(table)
    counts = next(iter(rows.values()))
    terminal().print(
        f"Agreement and difference are to the student, on {counts['images']} test images; accuracy is on {counts['accuracy_images']}.",
        highlight=False,
    )


def reading(rows: Sequence[Mapping[str, Any]], method: str, test_images: int) -> str:
    """What the table says, in words: whether the distilled student won, and whether that is more than noise."""
    if not test_images:
        return "There is no test set, and so no accuracy."
    text = "Accuracy is on the test set after the last epoch; the best epoch was not used to choose anything."
    accuracy = {row["method"]: row["test_accuracy"] for row in rows}
    if method == "plain" or not {"plain", method} <= accuracy.keys():
        return text
    plain, distilled = accuracy["plain"], accuracy[method]
    # Two standard errors of the difference of two shares, as if their errors were independent.
    noise = 200 * math.sqrt((plain * (1 - plain) + distilled * (1 - distilled)) / test_images)
    points = 100 * (distilled - plain)
    verdict = "equals" if points == 0 else f"is {abs(points):.2f} points {'better' if points > 0 else 'worse'} than"
    certainty = "more than" if abs(points) > noise else "within"
    return f"{text}\nThe {method} student {verdict} the plain one: {certainty} the noise of one run, some {noise:.1f} points."
