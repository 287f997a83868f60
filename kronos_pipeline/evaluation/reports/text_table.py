"""Text tables: for the terminal by rich, and as GitHub Markdown for the Dagster UI and for MLflow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kronos_pipeline.errors import printable_text

UNDEFINED = "–"


@dataclass(frozen=True)
class TextTable:
    """Text in rows and columns.

    Attributes:
        title: above the table.
        headers: headers of the columns, broken at line breaks and, by a hyphen before it, within a word. The first
            column is on the left.
        rows: cells by row.
        total: cells of a last row with totals; empty without such a row.
        notes: sentences below the table.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: Sequence[str] = ()
    notes: Sequence[str] = ()

    def terminal(self) -> Table:
        """Return the table for a terminal, 80 columns wide if its cells fit, without its notes."""
        table = Table(
            title=_plain(self.title),
            title_style="bold",
            box=SIMPLE_HEAD,
            show_edge=False,
            padding=0,
            min_width=len(self.title),  # otherwise a narrow table breaks its title
        )
        for number, header in enumerate(self.headers):
            table.add_column(header, justify="left" if number == 0 else "right", overflow="fold", vertical="bottom")
        for row in self.rows:
            table.add_row(*map(_plain, row))
        if self.total:
            table.add_section()
            table.add_row(*map(_plain, self.total), style="bold")
        return table

    def markdown(self) -> str:
        """Return the table as GitHub Markdown."""
        lines = [
            [header.replace("-\n", "").replace("\n", " ") for header in self.headers],
            ["---"] + ["---:"] * (len(self.headers) - 1),
            *self.rows,
            *([[f"**{cell}**" for cell in self.total]] if self.total else []),
        ]
        table = "\n".join(f"| {' | '.join(cells)} |".replace("\n", " ") for cells in lines)
        return "\n\n".join([self.title, table, *self.notes])


def print_tables(*tables: TextTable, console: Console | None = None) -> None:
    """Print tables to the terminal, or as plain text if the output is piped.

    Notes are as wide as their table, but a long word of a note, such as a path, is not broken.
    """
    console = console or Console()
    for table in tables:
        cells = table.terminal()
        console.print(cells)
        width = console.measure(cells).maximum
        for note in table.notes:
            for line in wrap(printable_text(note), width, break_long_words=False, break_on_hyphens=False):
                console.print(line, markup=False, highlight=False, soft_wrap=True)


def _plain(text: str) -> str:
    """Return text for a terminal, in which marks of rich and of the terminal mean nothing."""
    return escape(printable_text(text))


def price(value: float | None, digits: int = 4) -> str:
    """Format a price with a number of significant digits."""
    if value is None:
        return UNDEFINED
    decimals = digits - 1 if value == 0 else min(10, max(0, digits - 1 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{decimals}f}"


def difference(error: float | None, other: float | None, decimals: int = 0) -> str:
    """Format the relative difference of an error from another: "24 % smaller", "5 % larger" or "equal"."""
    if error is None or not other:
        return UNDEFINED
    percent = round(100 * (error / other - 1), decimals)
    return f"{abs(percent):.{decimals}f} % {'larger' if percent > 0 else 'smaller'}" if percent else "equal"


def number(value: float | None, decimals: int = 2) -> str:
    """Format a number with a number of decimals."""
    return UNDEFINED if value is None else f"{value:,.{decimals}f}"
