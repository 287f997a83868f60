"""Errors for users: each message gives the problem, its place and the remedy.

Every intentional error of the project is a `KronosError`. The command line prints it as `error: ...` and exits with 2;
Dagster shows it as a `Failure` that is not retried.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice

_SHOWN = 20


def count(many: int, word: str) -> str:
    """Format a count with its noun: `1 bar`, `2 bars`."""
    return f"{many:,} {word}{'' if many == 1 else 's'}"


def enumerate_some(items: Collection[object], limit: int = 5) -> str:
    """Join items with commas; beyond the limit, give the number of the others: "a, b, c and 5 more"."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(map(str, islice(items, limit))) + more


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of an error's root cause, such as "Connection refused", without a full stop."""
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = cause
    return re.split(r"\.?\s*\n|\.\s", str(error).strip() or type(error).__name__, maxsplit=1)[0].rstrip(".")


class KronosError(Exception):
    """A problem that the user can fix; the text is one or two plain sentences."""


class SettingsError(KronosError):
    """Invalid setting or combination of settings."""


class ModelError(KronosError):
    """Missing, damaged or incompatible base model, checkpoint or adapter."""


class ArtifactError(KronosError):
    """Artifact folder or file that cannot be read or written."""


@dataclass(frozen=True)
class Problem:
    """A single problem of an input file.

    Attributes:
        file: the file's name as the user knows it.
        rule: the violated rule, and the remedy unless it is obvious.
        line: the 1-based line in the file, or None for a problem of the whole file.
        column: the column's name in the file's spelling, or None.
        value: the invalid text, or None.
    """

    file: str
    rule: str
    line: int | None = None
    column: str | None = None
    value: str | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        column = f" {self.column}:" if self.column else ""
        value = f" (found {self.value!r})" if self.value is not None else ""
        return f"{place}:{column} {self.rule}{value}"


class DataError(KronosError):
    """Invalid input data, with all problems found; the text shows twenty problems and the number of the others.

    Attributes:
        problems: the problems, in file order.
        ticker: the symbol of the file, or None.
    """

    def __init__(self, problems: Sequence[Problem] | Problem, ticker: str | None = None) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        self.ticker = ticker
        lines = [str(problem) for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            lines.append(f"... and {len(self.problems) - _SHOWN} more problems in {self.problems[-1].file}")
        super().__init__("\n".join(lines))
