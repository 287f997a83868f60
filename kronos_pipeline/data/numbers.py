"""Parse the number columns of a CSV."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kronos_pipeline.data.bar_schedule import BoolArray
from kronos_pipeline.data.bars import FloatArray
from kronos_pipeline.data.csv_table import CsvTable


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
    cells = pc.utf8_trim_whitespace(pa.array(table.cells[name], pa.string()))
    try:
        return NumberColumn(pc.cast(cells, pa.float64()).to_numpy(), np.zeros(len(cells), bool))
    except pa.ArrowInvalid:
        pass
    values = np.full(len(cells), np.nan)
    empty = pc.equal(cells, "").to_numpy(zero_copy_only=False)
    problems = []
    for row, cell in enumerate(cells.to_pylist()):
        try:
            # float() would accept 1_000 as a thousand.
            values[row] = float(cell if "_" not in cell else "")
        except ValueError:
            if cell:
                problems.append((row, "must be a number"))
    return NumberColumn(values, empty, tuple(problems))
