"""Read the bars of a DataFrame as those of a CSV: the same names of columns, times, checks and notes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from kronos_pipeline.data.bars import PRICES, Bars
from kronos_pipeline.data.column_names import TIME_MEANINGS
from kronos_pipeline.data.columns import ChosenColumns, choose_columns, header_meanings, meaning_notes
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.csv_table import CsvTable
from kronos_pipeline.data.ingest import read_table
from kronos_pipeline.errors import DataError, Problem, count, enumerate_some
from kronos_pipeline.names import NAME, NAME_RULE

FEWEST_BARS = 2
"""Bars that a forecast needs."""


def read_frame(frame: pd.DataFrame, ticker: str, *, name: str = "df", first_row: int = 0) -> Bars:
    """Read and validate the bars of one ticker.

    Args:
        frame: bars with a DatetimeIndex or a column of times, open, high, low and close, and, if known, volume and
            amount; names of columns are those of CSVs, in any case. A column of symbols names the ticker.
        ticker: the symbol of a frame without a column of symbols.
        name: name of the frame in messages.
        first_row: number of the first row in messages.

    Raises:
        DataError: a column is missing or there are two for it, the frame has several tickers or fewer than two bars, or
            rows are invalid; the error names each row with its column and value.
    """
    frame = _with_times(_one_level(frame, name))
    if len(frame) < FEWEST_BARS:
        bars = count(len(frame), "bar")
        raise _bad(name, f"a forecast needs 2 bars or more, and there {'is' if len(frame) == 1 else 'are'} {bars}")
    names = [str(column) for column in frame.columns]
    meanings = header_meanings(names, {})

    def cells_of(position: int) -> list[str]:
        return [_text(cell) for cell in frame.iloc[:, position]]

    chosen = choose_columns(names, meanings, lambda position: pa.array(cells_of(position), pa.string()), ticker)
    _check_columns(names, chosen, name)
    cells = {meaning: cells_of(position) for meaning, position in chosen.positions.items()}
    cells = {meaning: texts for meaning, texts in cells.items() if meaning in PRICES or any(texts)}
    features = {meaning: names[chosen.positions[meaning]] for meaning in cells}
    file = CsvFile(_symbol(cells.pop("symbol", []), features.pop("symbol", ""), ticker, name), Path(name))
    times = {names[position]: cells_of(position) for position in chosen.times}
    notes = (*chosen.notes, *meaning_notes(features, notes=chosen.notes))
    rows = range(first_row, first_row + len(frame))
    return read_table(CsvTable(file, features, cells, rows, (), time_cells=times, notes=notes))


def _one_level(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Drop the levels of column names that have one value, such as the ticker of a download of one ticker."""
    if not isinstance(frame, pd.DataFrame):
        raise _bad(name, f"a pandas DataFrame is needed, not {type(frame).__name__}")
    columns = frame.columns
    for level in reversed(range(columns.nlevels)):
        if columns.nlevels > 1 and len(columns.unique(level)) == 1:
            columns = columns.droplevel(level)
    if columns.nlevels > 1:
        levels = [columns.unique(level) for level in range(columns.nlevels)]
        level, values = next(
            (level, values) for level, values in enumerate(levels) if "close" not in [str(v).lower() for v in values]
        )
        rule = f"the columns are of {len(values)} tickers ({enumerate_some(values)})"
        raise _bad(name, f"{rule}; choose one: {name}.xs({values[0]!r}, axis=1, level={level})")
    return frame.set_axis(columns, axis=1)


def _with_times(frame: pd.DataFrame) -> pd.DataFrame:
    """Make a column of the index if it holds the times."""
    index = frame.index.to_timestamp() if isinstance(frame.index, pd.PeriodIndex) else frame.index
    meanings = header_meanings([str(column) for column in frame.columns], {})
    times = [meaning is not None and meaning[0] in TIME_MEANINGS for meaning in meanings]
    if not isinstance(index, pd.DatetimeIndex) and (any(times) or pd.api.types.is_integer_dtype(index)):
        return frame
    return frame.loc[:, [not of_time for of_time in times]].assign(timestamps=index)


def _check_columns(names: Sequence[str], chosen: ChosenColumns, name: str) -> None:
    shown = enumerate_some(names, 30)
    problems = [
        Problem(name, f"{rule.partition(';')[0]}; drop the others", column=meaning) for meaning, rule in chosen.problems
    ]
    known = chosen.positions.keys() | {meaning for meaning, _ in chosen.problems}
    if absent := [price for price in PRICES if price not in known]:
        rule = f"no column {', '.join(absent)} among {shown}"
        problems.append(Problem(name, f"{rule}; rename yours: {name}.rename(columns={{'...': {absent[0]!r}}})"))
    if not chosen.times:
        rule = f"no times: the index is none, and no column among {shown} is called timestamps, date or time"
        problems.append(Problem(name, f"{rule}; set them: {name}.set_index('...')"))
    if problems:
        raise DataError(problems)


def _symbol(cells: Sequence[str], column: str, ticker: str, name: str) -> str:
    """Return the only symbol of a column of symbols; without such a column, the given ticker."""
    symbols = list(dict.fromkeys(filter(None, cells)))
    if len(symbols) > 1:
        rule = f"{column} names {len(symbols)} tickers ({enumerate_some(symbols)})"
        raise _bad(name, f"{rule}; choose one: {name}[{name}[{column!r}] == {symbols[0]!r}]")
    if not symbols:
        return ticker
    if not NAME.fullmatch(symbols[0]):
        raise _bad(name, f"{column} {symbols[0]!r} is no symbol: {NAME_RULE}")
    return symbols[0].upper()


def _text(cell: object) -> str:
    return "" if cell is None or cell is pd.NaT or cell != cell else str(cell)


def _bad(name: str, rule: str) -> DataError:
    return DataError(Problem(name, rule))
