"""Parse the number columns of a CSV: decimal marks, marks between thousands, suffixes, currencies, empty cells."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kronos_pipeline.data.bar_schedule import BoolArray
from kronos_pipeline.data.bars import FloatArray
from kronos_pipeline.data.csv_table import CsvTable
from kronos_pipeline.data.number_format import CURRENCIES, MULTIPLES, SUFFIX, is_empty, unify_grouping


@dataclass(frozen=True)
class NumberColumn:
    """A parsed number column.

    Attributes:
        values: `(rows,)`, NaN where the cell is empty or no number.
        empty: `(rows,)`, True where the cell has no value.
        problems: (row, rule) of each cell that is no number, by row.
        notes: decisions about the whole column.
    """

    values: FloatArray
    empty: BoolArray
    problems: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()


def parse_numbers(table: CsvTable, name: str) -> NumberColumn:
    """Parse the column of a feature."""
    if name in table.numbers:
        values = table.numbers[name]
        return NumberColumn(values, np.isnan(values))
    cells = unify_grouping(pc.utf8_trim_whitespace(pa.array(table.cells[name], pa.string())), table.thousands)
    empty = is_empty(cells)
    fields = pc.extract_regex(cells, _pattern(table.decimal, table.thousands))
    readable = pc.and_(fields.is_valid(), pc.invert(empty))
    currencies, suffixes = _joined(fields, "currency", "currency_after"), pc.struct_field(fields, "suffix")
    digits = pc.struct_field(fields, "digits")
    if table.thousands is not None:
        digits = pc.replace_substring(digits, table.thousands, "")
    digits = pc.binary_join_element_wise(
        pc.replace_substring(digits, table.decimal, "."), pc.struct_field(fields, "exponent"), ""
    )
    for suffix in _distinct(suffixes):
        # An exponent in place of a factor: 1.17e6 is rounded once, and 1.17 times a million twice.
        scaled = pc.binary_join_element_wise(digits, f"e{MULTIPLES[suffix.upper()]}", "")
        digits = pc.if_else(pc.equal(suffixes, suffix), scaled, digits)
    minus = pc.match_substring_regex(_joined(fields, "sign", "inner_sign"), "[-−]")
    digits = pc.binary_join_element_wise(pc.if_else(minus, "-", ""), digits, "")
    values = pc.cast(pc.if_else(readable, digits, pa.scalar(None, pa.string())), pa.float64())

    problems = {
        int(row): _rule(table, cells[int(row)].as_py())
        for row in np.flatnonzero(~pc.or_(readable, empty).to_numpy(zero_copy_only=False))
    }
    notes = _suffix_notes(table.names[name], cells, suffixes, values)
    if signs := _distinct(currencies):
        usual = max(signs, key=lambda sign: pc.sum(pc.equal(currencies, sign)).as_py())
        others = pc.and_(pc.not_equal(currencies, usual), pc.not_equal(currencies, "")).fill_null(False)
        rule = f"has another currency sign than the {usual} of the other lines"
        problems |= {int(row): rule for row in np.flatnonzero(others.to_numpy(zero_copy_only=False))}
        notes.append(f"numbers have the sign {usual}")
    numbers = values.to_numpy(zero_copy_only=False).copy()
    numbers[list(problems)] = np.nan
    return NumberColumn(numbers, empty.to_numpy(zero_copy_only=False), tuple(sorted(problems.items())), tuple(notes))


def _pattern(decimal: str, thousands: str | None) -> str:
    mark = re.escape(decimal)
    group = re.escape(thousands or "")
    integer = rf"(?:\d{{1,3}}(?:{group}\d{{2,3}})*{group}\d{{3}}|\d+)" if thousands else r"\d+"
    number = rf"(?:{integer}(?:{mark}\d*)?|{mark}\d+|inf|infinity)"
    sign, currency = "[-+−]?", f"[{CURRENCIES}]?"
    return (
        rf"(?i)^(?P<sign>{sign})\s*(?P<currency>{currency})\s*(?P<inner_sign>{sign})(?P<digits>{number})"
        rf"(?:(?P<exponent>e[-+]?\d+)|\s*(?P<suffix>{SUFFIX}))?\s*(?P<currency_after>{currency})$"
    )


def _joined(fields: pa.StructArray, first: str, second: str) -> pa.StringArray:
    return pc.binary_join_element_wise(pc.struct_field(fields, first), pc.struct_field(fields, second), "")


def _distinct(texts: pa.StringArray) -> list[str]:
    return [text for text in pc.unique(texts).to_pylist() if text]


def _rule(table: CsvTable, cell: str) -> str:
    if "%" in cell:
        return "is a percentage; say with --columns which column to read"
    if table.decimal == ",":
        return "must be a number with a decimal comma, as in the other lines"
    return "must be a number"


def _suffix_notes(column: str, cells: pa.StringArray, suffixes: pa.StringArray, values: pa.DoubleArray) -> list[str]:
    """Return a note with the first number that has a suffix."""
    row = pc.index(pc.not_equal(suffixes, "").fill_null(False), True).as_py()
    if row < 0:
        return []
    return [f"{column} has suffixes: {cells[row].as_py()} is read as {values[row].as_py():,.0f}"]
