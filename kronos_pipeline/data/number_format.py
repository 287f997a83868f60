"""Find how a file writes its numbers: the decimal mark, and the mark between thousands.

`114.79` and `1,243.5` can be read in one way; `1,234` alone is 1234 or 1.234. The marks of all price columns together
decide, then those of volume and amount, then the order of low, open, close and high within the bars.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kronos_pipeline.data.bar_schedule import BoolArray
from kronos_pipeline.data.bars import PRICES

CURRENCIES = "$€£¥₩₹₽₺₫฿₿"
MULTIPLES = {
    **{"K": 3, "M": 6, "B": 9, "T": 12, "MN": 6, "BN": 9, "TSD.": 3, "MIO.": 6, "MRD.": 9, "MIO": 6, "MRD": 9},
    **{"千": 3, "万": 4, "萬": 4, "百万": 6, "亿": 8, "億": 8, "万亿": 12, "兆": 12},
}
"""Decimal exponents of the suffixes of numbers."""
EMPTY = ("", "-", "--", "---", "–", "—", "n/a", "na", "n.a.", "#n/a", "null", "none", "nan", "nil", ".", "\\n", "k.a.")
"""Cells without a value, in small letters."""

SUFFIX = "|".join(map(re.escape, sorted(MULTIPLES, key=len, reverse=True)))
"""Pattern of a suffix, the longest first."""

_SPACES, _APOSTROPHES = " \u00a0\u202f\u2009", "'’"
_GROUPINGS = _SPACES + _APOSTROPHES
_AROUND = rf"(?i)^[-+−]?\s*[{CURRENCIES}]?\s*[-+−]?|(?:e[-+]?\d+)?\s*(?:{SUFFIX})?\s*[{CURRENCIES}%]?$"
"""The sign, currency, exponent and suffix around the digits of a number."""
_UNMARKED = r"^\d{4,}$"


@dataclass(frozen=True)
class NumberFormat:
    """The marks in the numbers of a file: the decimal mark, and the mark between thousands or None."""

    decimal: str = "."
    thousands: str | None = None


@dataclass(frozen=True)
class Undecided:
    """Numbers that can be read in two ways: the column, and a row with such a number."""

    column: str
    row: int


def find_number_format(columns: Mapping[str, pa.StringArray], separator: str) -> NumberFormat | Undecided:
    """Find the marks in the numbers of a file.

    Args:
        columns: the trimmed cells of the number columns by feature.
        separator: the mark between the file's cells.
    """
    digits = {name: pc.replace_substring_regex(cells, _AROUND, "") for name, cells in columns.items()}
    prices = [name for name in PRICES if name in digits]
    others = [name for name in digits if name not in prices]
    decimal = _decimal(digits, prices, others, separator)
    if isinstance(decimal, Undecided):
        return decimal
    other = "." if decimal == "," else ","
    if any(_any(cells, rf"^\d+(?:\{other}\d+)+(?:\{decimal}\d*)?$") for cells in digits.values()):
        return NumberFormat(decimal, other)
    return NumberFormat(decimal, _grouping(digits.values()))


def unify_grouping(cells: pa.StringArray, mark: str | None) -> pa.StringArray:
    """Write the mark between thousands for each mark of its kind: of all spaces, or of both apostrophes."""
    for kind in (_SPACES, _APOSTROPHES):
        if mark is not None and mark in kind:
            return pc.replace_substring_regex(cells, rf"(\d)[{kind}](\d)", rf"\1{mark}\2")
    return cells


def is_empty(cells: pa.StringArray) -> pa.BooleanArray:
    """Return whether each trimmed cell has no value."""
    return pc.is_in(pc.utf8_lower(cells), value_set=pa.array(EMPTY))


def _decimal(
    digits: Mapping[str, pa.StringArray], prices: Sequence[str], others: Sequence[str], separator: str
) -> str | Undecided:
    for names in (prices, others):
        columns = [digits[name] for name in names]
        comma, dot = (sum(_count(cells, _certain(mark)) for cells in columns) for mark in ",.")
        if comma or dot:
            return "," if comma > dot else "."
        undecided = {mark: [(name, digits[name]) for name in names if _any(digits[name], _open(mark))] for mark in ",."}
        marks = [mark for mark, matches in undecided.items() if matches]
        if len(marks) == 2:
            # One mark or the other groups thousands, and no number tells.
            return _undecided(undecided[","][0], ",")
        if marks:
            [mark] = marks
            if decimal := _by_other_columns(mark, columns, [digits[name] for name in others], separator):
                return decimal
            if names is prices and (decimal := _by_bars(digits, mark)):
                return decimal
            return _undecided(undecided[mark][0], mark)
    return "."


def _by_other_columns(
    mark: str, columns: Sequence[pa.StringArray], others: Sequence[pa.StringArray], separator: str
) -> str | None:
    """Return the decimal mark if numbers elsewhere tell whether `mark` is one; None if they do not."""
    other = "." if mark == "," else ","
    everywhere = [*columns, *others]
    if any(_any(cells, _UNMARKED) for cells in columns) or _grouping(everywhere):
        return mark
    if any(_any(cells, _certain(mark)) for cells in others):
        return mark
    if any(_any(cells, _certain(other)) for cells in others):
        return other
    if any(_any(cells, _open(mark)) for cells in others):
        return None
    # A dot is the decimal mark of all programs; a semicolon between cells makes room for a decimal comma.
    if mark == "." and (separator != ";" or any(_any(cells, _UNMARKED) for cells in others)):
        return mark
    return None


def _by_bars(digits: Mapping[str, pa.StringArray], mark: str) -> str | None:
    """Return the decimal mark if only one of the two readings of `mark` makes valid bars."""
    if not set(PRICES) <= digits.keys():
        return None
    other = "." if mark == "," else ","
    valid = {mark: _valid_bars(digits, mark, "."), other: _valid_bars(digits, mark, "")}
    valid_marks = [decimal for decimal, bars in valid.items() if bars.all()]
    return valid_marks[0] if len(valid_marks) == 1 else None


def _valid_bars(digits: Mapping[str, pa.StringArray], mark: str, replacement: str) -> BoolArray:
    values = {}
    for name in PRICES:
        texts = pc.replace_substring(digits[name], mark, replacement)
        numbers = pc.match_substring_regex(texts, r"^\d+\.?\d*$")
        values[name] = pc.cast(pc.if_else(numbers, texts, None), pa.float64()).to_numpy(zero_copy_only=False)
    bodies = np.stack([values["open"], values["close"]])
    valid: BoolArray = ~((values["high"] < bodies.max(axis=0)) | (values["low"] > bodies.min(axis=0)))
    return valid


def _certain(mark: str) -> str:
    """Return the pattern of digits that can only be read with `mark` as the decimal mark."""
    other = "." if mark == "," else ","
    fraction = rf"\d*\{mark}(?:\d{{1,2}}|\d{{4,}})|\d{{4,}}\{mark}\d*|0+\{mark}\d+|\{mark}\d+"
    both = rf"\d+(?:\{other}\d{{2,3}})+\{mark}\d*"
    groups = rf"\d{{1,3}}(?:\{other}\d{{2,3}})+\{other}\d{{3}}"
    spaced = rf"\d{{1,3}}(?:[{_GROUPINGS}]\d{{3}})+\{mark}\d*"
    return rf"^(?:{fraction}|{both}|{groups}|{spaced})$"


def _open(mark: str) -> str:
    """Return the pattern of digits that can be read with `mark` as the decimal mark or between thousands."""
    return rf"^[1-9]\d{{0,2}}\{mark}\d{{3}}$"


def _grouping(columns: Collection[pa.StringArray]) -> str | None:
    """Return the space or apostrophe between thousands, or None."""
    grouped = [cells for cells in columns if _any(cells, rf"\d[{_GROUPINGS}]\d")]
    for mark in _GROUPINGS:
        if any(_any(cells, rf"^\d{{1,3}}(?:{mark}\d{{3}})+(?:[.,]\d*)?$") for cells in grouped):
            return mark
    return None


def _undecided(column: tuple[str, pa.StringArray], mark: str) -> Undecided:
    name, cells = column
    return Undecided(name, pc.index(pc.match_substring_regex(cells, _open(mark)), True).as_py())


def _any(cells: pa.StringArray, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(cells, pattern)).as_py())


def _count(cells: pa.StringArray, pattern: str) -> int:
    return pc.sum(pc.match_substring_regex(cells, pattern)).as_py() or 0
