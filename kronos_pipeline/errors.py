"""What a person is told when something is wrong: what it was, where, and what to do.

Every error that the project raises on purpose is a `KronosError`. The command line prints it as `error: ...` and exits
with 2; Dagster shows it as a `Failure` that is not retried.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice

_SHOWN = 20


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
    """A problem that the person who runs the pipeline can mend; its text is one or two plain sentences."""


class SettingsError(KronosError):
    """A setting, or a combination of settings, that cannot work."""


class ModelError(KronosError):
    """A base model, checkpoint or adapter that is missing, damaged or does not fit."""


class ArtifactError(KronosError):
    """An artifact folder or file that cannot be read or written."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong in one file.

    Attributes:
        file: the file's name as the user knows it.
        rule: what the file breaks, and what to do where that is not plain.
        line: the 1-based line in the file, or None where the problem is the whole file's.
        column: the column's name as the file spells it, or None.
        value: the offending text, or None.
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
    """Bad input data; it carries every problem found, not the first alone. Its text shows twenty and counts the rest.

    Attributes:
        problems: the problems, in file order.
        ticker: the symbol concerned, where there is one.
    """

    def __init__(self, problems: Sequence[Problem] | Problem, ticker: str | None = None) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        self.ticker = ticker
        lines = [str(problem) for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            lines.append(f"... and {len(self.problems) - _SHOWN} more problems in {self.problems[-1].file}")
        super().__init__("\n".join(lines))
