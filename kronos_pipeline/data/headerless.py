"""Name the columns of a CSV without a header, if the columns can be one thing only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kronos_pipeline.data.bars import PRICES
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.dialect import Row
from kronos_pipeline.errors import DataError, Problem

_KLINES = (
    *("open_time", "open", "high", "low", "close", "volume", "close_time", "quote_volume", "count"),
    *("taker_buy_volume", "taker_buy_quote_volume", "ignore"),
)
"""The columns of Binance's klines; some dumps lack the last column."""
_METATRADER = ("date", "time", "open", "high", "low", "close", "tick volume")
"""The columns of MetaTrader 4's export."""
_EPOCH = re.compile(r"\d{10}(?:\d{3}|\d{6})?(?:\.0*)?")
_CLOCK = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?")
_ORDERS = (PRICES, ("open", "close", "high", "low"), ("low", "high", "open", "close"))
"""The orders in which sites write prices without a header."""
_SAMPLE = 500


def headerless_names(file: CsvFile, rows: Sequence[Row], wanted: Mapping[str, str]) -> tuple[list[str], str]:
    """Return names for the columns of a file without a header, and the note on the decision.

    Args:
        file: the file, for messages.
        rows: its rows.
        wanted: the user's columns by meaning; a number is the place of a column, counted from 1.

    Raises:
        DataError: the columns can be more than one thing.
    """
    width = len(rows[0][1])
    if wanted and all(name.isdecimal() and 1 <= int(name) <= width for name in wanted.values()):
        return [str(position + 1) for position in range(width)], "no header: the columns are counted from 1"
    step = max(len(rows) // _SAMPLE, 1)
    sample = [[cell.strip() for cell in row] for _, row in (*rows[::step], rows[-1])]
    if all(_is_kline(row) for row in sample):
        return list(
            _KLINES[:width]
        ), f"no header: the columns are those of Binance's klines ({', '.join(_KLINES[:8])}, ...)"
    if all(_is_metatrader(row) for row in sample):
        return list(_METATRADER), f"no header: the columns are those of MetaTrader 4 ({', '.join(_METATRADER)})"
    rule = (
        "no header; write the names of the columns into line 1, such as Date,Open,High,Low,Close,Volume, or give their "
        f"places: --columns {_places(sample)}"
    )
    raise DataError(Problem(file.name, rule, rows[0][0]), file.ticker)


def _places(sample: Sequence[Sequence[str]]) -> str:
    """Return the places that the columns seem to have, as `--columns` takes them."""
    first, first_column = sample[0], 0
    columns = {}
    if len(first) > len(PRICES) + 1 and not re.search(r"\d", first[0]):
        columns["symbol"], first_column = 1, 1
    if len(first) > first_column + 1 and _CLOCK.fullmatch(first[first_column + 1]):
        columns |= {"date": first_column + 1, "time": first_column + 2}
        first_column += 2
    else:
        columns["time"] = first_column + 1
        first_column += 1
    order = next(
        (
            order
            for order in _ORDERS
            if all(_are_prices(_in_order(row[first_column : first_column + 4], order)) for row in sample)
        ),
        PRICES,
    )
    columns |= {name: first_column + 1 + position for position, name in enumerate(order)}
    if len(first) > first_column + len(PRICES):
        columns["volume"] = first_column + len(PRICES) + 1
    return ",".join(f"{name}={number}" for name, number in columns.items())


def _in_order(cells: Sequence[str], order: Sequence[str]) -> list[str]:
    """Return the cells of four columns in the order of `PRICES`."""
    cell_of = dict(zip(order, cells, strict=False))
    return [cell_of.get(name, "") for name in PRICES]


def _is_kline(row: Sequence[str]) -> bool:
    if len(row) not in (len(_KLINES), len(_KLINES) - 1) or not (_EPOCH.fullmatch(row[0]) and _EPOCH.fullmatch(row[6])):
        return False
    return float(row[0]) <= float(row[6]) and _are_prices(row[1:5])


def _is_metatrader(row: Sequence[str]) -> bool:
    if len(row) != len(_METATRADER) or not row[6].isdecimal():
        return False
    dated = re.fullmatch(r"\d{4}\.\d\d\.\d\d", row[0]) and re.fullmatch(r"\d\d:\d\d(?::\d\d)?", row[1])
    return bool(dated) and _are_prices(row[2:6])


def _are_prices(cells: Sequence[str]) -> bool:
    """Return whether four cells are open, high, low and close of a bar."""
    try:
        prices = dict(zip(PRICES, map(float, cells), strict=True))
    except ValueError:
        return False
    return (
        0
        < prices["low"]
        <= min(prices["open"], prices["close"])
        <= max(prices["open"], prices["close"])
        <= prices["high"]
    )
