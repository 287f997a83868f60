"""Tables that read alike in a terminal and in Markdown, and their places in a document."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row. `notes` follow below, a sentence or two each."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """The table in Markdown, its columns padded to line up."""
        widths = [max(len(cell) for cell in column) for column in zip(self.columns, *self.rows, strict=True)]
        rule = ["-" * max(3, width) for width in widths]
        lines = [
            "| " + " | ".join(cell.ljust(max(3, width)) for cell, width in zip(row, widths, strict=True)) + " |"
            for row in (self.columns, rule, *self.rows)
        ]
        return "\n".join([f"**{self.title}**", "", *lines, *(f"\n{note}" for note in self.notes)]) + "\n"


@dataclass(frozen=True)
class Goal:
    """What is promised, and what came of it; `reached` is None where it was not measured."""

    what: str
    wanted: str
    found: str = NOT_MEASURED
    reached: bool | None = None


@dataclass(frozen=True)
class Report:
    """What one part of a benchmark found."""

    tables: Sequence[Table]
    goals: Sequence[Goal] = ()

    def text(self) -> str:
        """All of its tables."""
        return "\n".join(table.text() for table in self.tables)


def joined(reports: Sequence[Report]) -> Report:
    """Reports as one: tables of one title that follow each other become one table, with the notes of the first."""
    tables: list[Table] = []
    for table in (table for report in reports for table in report.tables):
        if tables and tables[-1].title == table.title:
            tables[-1] = replace(tables[-1], rows=[*tables[-1].rows, *table.rows])
        else:
            tables.append(table)
    return Report(tables, [goal for report in reports for goal in report.goals])


def goal_table(goals: Sequence[Goal]) -> Table:
    """A row per goal."""
    words = {True: "yes", False: "no", None: NOT_MEASURED}
    rows = [[goal.what, goal.wanted, goal.found, words[goal.reached]] for goal in goals]
    return Table("Goals", ("goal", "wanted", "found", "reached"), rows)


def place(path: Path, section: str) -> tuple[str, str]:
    """The text of a Markdown file up to `<!-- section -->`, and from `<!-- /section -->` on, both with these lines.

    Raises:
        ValueError: the file has no such place.
    """
    text = path.read_text(encoding="utf-8")
    first, last = f"<!-- {section} -->", f"<!-- /{section} -->"
    found = re.search(f"{re.escape(first)}.*?{re.escape(last)}", text, re.DOTALL)
    if not found:
        raise ValueError(f"{path} has no place for the section {section}: the lines {first} and {last}.")
    return text[: found.start()] + first, last + text[found.end() :]


def put(path: Path, section: str, content: str) -> None:
    """Replace what stands between `<!-- section -->` and `<!-- /section -->` in a Markdown file, in one go.

    Raises:
        ValueError: the file has no such place.
    """
    before, after = place(path, section)
    new = path.with_name(f".{path.name}.new")
    new.write_text(f"{before}\n\n{content.strip()}\n\n{after}", encoding="utf-8")
    new.replace(path)


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    if value >= 100:
        return f"{value:.0f} s"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def duration(value: float) -> str:
    """Seconds in the unit that people plan by."""
    if value < 60:
        return f"{value:.2g} s"
    return f"{value / 60:.0f} min" if value < 3600 else f"{number(value / 3600)} h"


def number(value: float) -> str:
    """Three digits that count, thousands with commas."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percent(value: float) -> str:
    """A share as a percentage, with two digits below 1 %; NaN is a share of what was not measured."""
    if math.isnan(value):
        return NOT_MEASURED
    return f"{100 * value:.2g} %" if 0 < value < 0.01 else f"{100 * value:.0f} %"


def megabytes(value: float | None) -> str:
    """Bytes in MB of 10^6, or that they were not measured."""
    return NOT_MEASURED if value is None else f"{value / 1e6:,.0f} MB"
