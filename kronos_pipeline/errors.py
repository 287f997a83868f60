"""Errors for users: each message gives the problem, its place and the remedy.

Every intentional error of the project is a `KronosError`. The command line prints it as `error: ...` and exits with 2;
Dagster shows it as a `Failure` that is not retried.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from unicodedata import category

_SHOWN = 20
_NUMBER = re.compile(r"\d[\d.,:/-]*")
LINES_SHOWN = 3
"""Lines that a problem of many lines names."""


def count(many: int, word: str) -> str:
    """Format a count with its noun: `1 bar`, `2 bars`."""
    return f"{many:,} {word}{'' if many == 1 else 's'}"


def readable_size(size: int) -> str:
    """Format a number of bytes: `512 B`, `1.5 kB`, `3.0 GB`."""
    if size < 1000:
        return f"{size} B"
    scaled, units = float(size), iter(("kB", "MB", "GB", "TB", "PB"))
    unit = ""
    while scaled >= 999.95:
        scaled, unit = scaled / 1000, next(units)
    return f"{scaled:.1f} {unit}"


def join(words: Sequence[str]) -> str:
    """Join words for a sentence: "mean, distribution and volatility"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def is_plain_text(text: str) -> bool:
    """Return whether a text is one line without marks that a terminal obeys."""
    return text.isprintable() or all(mark.isprintable() or category(mark) == "Zs" for mark in text)


def printable_text(text: str) -> str:
    """Return a text in one line, with marks that a terminal obeys escaped, as names and cells of a file have them."""
    if text.isprintable():
        return text
    return escaped_text("".join(" " if mark.isspace() else mark for mark in text))


def escaped_text(text: str) -> str:
    """Return a text with every mark that cannot be printed, line breaks too, as an escape in hex."""
    if text.isprintable():
        return text
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)


def enumerate_some(items: Collection[object], limit: int = 5) -> str:
    """Join items with commas; beyond the limit, give the number of the others: "a, b, c and 5 more"."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(map(str, islice(items, limit))) + more


def cause_of(text: str) -> str:
    """Return a message without its numbers: messages of one cause are the same."""
    return _NUMBER.sub("#", text)


def group_messages(messages: Iterable[tuple[str, str]], limit: int = 3) -> list[str]:
    """Return a line per cause of messages on tickers, the most frequent first: "AAPL, AMD and 10 more: no volume".

    Messages that differ in their numbers alone have one cause; the line then quotes the first message.

    Args:
        messages: tickers and sentences.
        limit: the largest number of tickers that a line names.
    """
    causes: dict[str, list[tuple[str, str]]] = {}
    for ticker, text in messages:
        causes.setdefault(cause_of(text), []).append((ticker, text))
    lines = []
    for alike in sorted(causes.values(), key=len, reverse=True):
        tickers = list(dict.fromkeys(ticker for ticker, _ in alike))
        number = f"{len(tickers)} tickers, " if len(tickers) > limit else ""
        same = len({text for _, text in alike}) == 1
        quoted = alike[0][1] if same else f"{alike[0][1]} ({tickers[0]}; the others likewise)"
        lines.append(printable_text(f"{number}{enumerate_some(tickers, limit)}: {quoted}"))
    return lines


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
    """A problem of an input file: a rule that a line, several lines or the whole file breaks.

    Attributes:
        file: the file's name as the user knows it.
        rule: the violated rule; after "; " the remedy, unless it is obvious.
        line: the 1-based line in the file, the first of several; None for a problem of the whole file.
        column: the column's name in the file's spelling, or None.
        value: the invalid text, that of the first of several lines, or None.
        lines: the first lines, if several lines break the rule; else empty.
        count: the number of lines that break the rule.
    """

    file: str
    rule: str
    line: int | None = None
    column: str | None = None
    value: str | None = None
    lines: tuple[int, ...] = ()
    count: int = 1

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        column = f" {self.column}:" if self.column else ""
        rule, semicolon, remedy = self.rule.partition("; ")
        first = "lines" if len(self.lines) == self.count else f"{self.count:,} lines, first in"
        lines = f" in {first} {', '.join(map(str, self.lines))}" if self.lines else ""
        value = f" (found {self.value!r})" if self.value is not None else ""
        return printable_text(f"{place}:{column} {rule}{lines}{value}{semicolon}{remedy}")


def tell_once(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Merge the problems of the lines of a file that break the same rule in the same column into one problem.

    A problem that is there twice, such as for two tickers of a file, counts once.
    """
    merged: dict[tuple[object, ...], list[Problem]] = {}
    for number, problem in enumerate(dict.fromkeys(problems)):
        # Problems of whole files have no lines to count.
        kind = number if problem.line is None else None
        merged.setdefault((problem.file, problem.column, problem.rule, kind), []).append(problem)
    return tuple(_merge(same) if len(same) > 1 else same[0] for same in merged.values())


def _merge(problems: Sequence[Problem]) -> Problem:
    lines = sorted({line for problem in problems for line in (problem.lines or (problem.line or 0,))})
    first = min(problems, key=lambda problem: problem.line or 0)
    return replace(first, lines=tuple(lines[:LINES_SHOWN]), count=sum(problem.count for problem in problems))


class DataError(KronosError):
    """Invalid input data, with all problems found; the text shows twenty problems and the number of the others.

    Attributes:
        problems: the problems, in file order; lines that break the same rule in the same column are one problem.
        ticker: the symbol of the file, or None.
    """

    def __init__(self, problems: Sequence[Problem] | Problem, ticker: str | None = None) -> None:
        self.problems: tuple[Problem, ...] = tell_once([problems] if isinstance(problems, Problem) else problems)
        self.ticker = ticker
        lines = [str(problem) for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            lines.append(f"... and {len(self.problems) - _SHOWN} more problems in {self.problems[-1].file}")
        super().__init__("\n".join(lines))
