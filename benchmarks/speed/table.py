"""Tables in Markdown that read well in a terminal, and their places in a document."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Table:
    """A table of text cells; the first column names the row. `notes` are paragraphs below the table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Return the table in Markdown, with columns padded to line up."""
        widths = [max(len(cell) for cell in column) for column in zip(self.columns, *self.rows, strict=True)]
        rule = ["-" * max(3, width) for width in widths]
        lines = [
            "| " + " | ".join(cell.ljust(max(3, width)) for cell, width in zip(row, widths, strict=True)) + " |"
            for row in (self.columns, rule, *self.rows)
        ]
        return "\n".join([f"**{self.title}**", "", *lines, *(f"\n{note}" for note in self.notes)]) + "\n"


@dataclass(frozen=True)
class Goal:
    """A promised figure and the measured figure; `reached` is None if it was not measured."""

    what: str
    wanted: str
    found: str = NOT_MEASURED
    reached: bool | None = None


@dataclass(frozen=True)
class Report:
    """Tables and goals of one part of a benchmark."""

    tables: Sequence[Table]
    goals: Sequence[Goal] = ()

    def text(self) -> str:
        """Return all tables in Markdown."""
        return "\n".join(table.text() for table in self.tables)


def joined(reports: Sequence[Report]) -> Report:
    """Join reports; consecutive tables with the same title become one table, with the notes of the first."""
    tables: list[Table] = []
    for table in (table for report in reports for table in report.tables):
        if tables and tables[-1].title == table.title:
            tables[-1] = replace(tables[-1], rows=[*tables[-1].rows, *table.rows])
        else:
            tables.append(table)
    return Report(tables, [goal for report in reports for goal in report.goals])


def goal_table(goals: Sequence[Goal]) -> Table:
    """Return a table with a row per goal."""
    text = {True: "yes", False: "no", None: NOT_MEASURED}
    rows = [[goal.what, goal.wanted, goal.found, text[goal.reached]] for goal in goals]
    return Table("Goals", ("goal", "wanted", "found", "reached"), rows)


def place(path: Path, section: str) -> tuple[str, str]:
    """Split a Markdown file at a section.

    Returns:
        The text up to `<!-- section -->`, and the text from `<!-- /section -->` on, both with these markers.

    Raises:
        ValueError: the file lacks the markers.
    """
    text = path.read_text(encoding="utf-8")
    first, last = f"<!-- {section} -->", f"<!-- /{section} -->"
    match = re.search(f"{re.escape(first)}.*?{re.escape(last)}", text, re.DOTALL)
    if not match:
        raise ValueError(f"{path} has no place for the section {section}: the lines {first} and {last}.")
    return text[: match.start()] + first, last + text[match.end() :]


def put(path: Path, section: str, content: str) -> None:
    """Replace the text between `<!-- section -->` and `<!-- /section -->` in a Markdown file, atomically.

    Raises:
        ValueError: the file lacks the markers.
    """
    before, after = place(path, section)
    new = path.with_name(f".{path.name}.new")
    new.write_text(f"{before}\n\n{content.strip()}\n\n{after}", encoding="utf-8")
    new.replace(path)


def seconds(value: float) -> str:
    """Format seconds as s or ms."""
    if value >= 100:
        return f"{value:.0f} s"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def duration(value: float) -> str:
    """Format seconds as s, min or h."""
    if value < 60:
        return f"{value:.2g} s"
    return f"{value / 60:.0f} min" if value < 3600 else f"{number(value / 3600)} h"


def number(value: float) -> str:
    """Format a number with three significant digits, and thousands with commas."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percent(value: float) -> str:
    """Format a share as a percentage, with two digits below 1 %, and NaN as "not measured"."""
    if math.isnan(value):
        return NOT_MEASURED
    return f"{100 * value:.2g} %" if 0 < value < 0.01 else f"{100 * value:.0f} %"


def megabytes(value: float | None) -> str:
    """Format bytes in MB of 10^6, and None as "not measured"."""
    return NOT_MEASURED if value is None else f"{value / 1e6:,.0f} MB"
