"""Tables, described once and rendered in the terminal, as Markdown and as HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import rich.table
from rich.console import Console

from dfa_tf.display import page

_WIDTH = 140  # columns where no terminal says how many it has


@dataclass(frozen=True)
class Table:
    """What a table shows.

    Attributes:
        title: above it.
        columns: headings. The first column is text; the others are numbers, and so are aligned to the right.
        rows: a cell for each column.
        notes: paragraphs below it.
        text: headings of further columns of text.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    text: Sequence[str] = ()

    @classmethod
    def of(cls, title: str, rows: Sequence[Mapping[str, str]], notes: Sequence[str] = ()) -> Self:
        """A table of rows by heading, all with the same headings."""
        return cls(title, list(rows[0]) if rows else [], [list(row.values()) for row in rows], notes)


def print_table(table: Table) -> None:
    """Prints a table to stdout, as wide as the terminal at most."""
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    shown = rich.table.Table(title=table.title, title_justify="left", title_style="bold")
    for number, heading in enumerate(table.columns):
        is_text = number == 0 or heading in table.text
        shown.add_column(heading, justify="left" if is_text else "right", no_wrap=number == 0, overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)
    for note in table.notes:
        console.print(note, soft_wrap=True, highlight=False, markup=False)


def markdown(table: Table) -> str:
    """The table as Markdown, with its notes as paragraphs."""
    alignment = ["---" if number == 0 or heading in table.text else "---:" for number, heading in enumerate(table.columns)]
    lines = ["| " + " | ".join(line) + " |" for line in ([table.columns, alignment, *table.rows] if table.rows else [])]
    return "\n".join([f"{table.title}\n", *lines, *(f"\n{note}" for note in table.notes)]) + "\n"


def html(tables: Sequence[Table]) -> str:
    """Tables as one page, with the title of the first."""
    return page.render("table.html", tables=tables, title=tables[0].title)
