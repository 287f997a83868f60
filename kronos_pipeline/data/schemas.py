"""Validation rules of bars and window rows, as pandera models.

One call checks the bars of many tickers, as a call costs milliseconds at any size. Numbers are parsed first: a single
text cell would hide all other failures of its column.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.typing.pandas import Series

from kronos_pipeline.data.bars import FEATURES

SPLITS = ("train", "selection", "holdout")
"""The blocks of a ticker's bars, oldest first."""
STATISTICS = (*(f"mean_{name}" for name in FEATURES), *(f"std_{name}" for name in FEATURES))
"""Columns of window rows with the lookback's statistics, float64."""

VALIDATION_BATCH = 50
"""Tickers per call of pandera, which costs milliseconds at any size; a larger batch only needs more memory."""

RULES = {
    "not_nullable": "must be a number",
    "finite": "must be a finite number",
    "positive": "must be above 0",
    "not_negative": "must not be negative",
}
"""The message for a cell that fails a check, by the check's name."""
ORDER_RULES = {
    "high_is_highest": ("high", "is below the low, open or close of its bar"),
    "low_is_lowest": ("low", "is above the open or close of its bar"),
}
"""Column and message of the checks on the prices of a bar."""


class BarFrame(pa.DataFrameModel):
    """Bars of one or more tickers, one after another, numbered by `ticker`.

    The output of each check tells the failing rows; pandera would take a millisecond to format each of them, so it
    formats one.
    """

    ticker: Series[int]
    timestamps: Series[pa.DateTime]
    open: Series[float]
    high: Series[float]
    low: Series[float]
    close: Series[float]
    volume: Series[float]
    amount: Series[float]

    @pa.check("open", "high", "low", "close", name="positive", n_failure_cases=1)
    def _positive(cls, values: pd.Series) -> pd.Series:  # noqa: N805
        return values > 0

    @pa.check("volume", "amount", name="not_negative", n_failure_cases=1)
    def _not_negative(cls, values: pd.Series) -> pd.Series:  # noqa: N805
        return values >= 0

    @pa.check("open", "high", "low", "close", "volume", "amount", name="finite", n_failure_cases=1)
    def _is_finite(cls, values: pd.Series) -> pd.Series:  # noqa: N805
        return values.abs() < float("inf")

    @pa.dataframe_check(name="high_is_highest", n_failure_cases=1)
    def _high_is_highest(cls, frame: pd.DataFrame) -> pd.Series:  # noqa: N805
        high = frame["high"]
        return ~((high < frame["open"]) | (high < frame["low"]) | (high < frame["close"]))

    @pa.dataframe_check(name="low_is_lowest", n_failure_cases=1)
    def _low_is_lowest(cls, frame: pd.DataFrame) -> pd.Series:  # noqa: N805
        return ~((frame["open"] < frame["low"]) | (frame["close"] < frame["low"]))

    @pa.dataframe_check(name="later_than_before", n_failure_cases=1)
    def _later_than_before(cls, frame: pd.DataFrame) -> pd.Series:  # noqa: N805
        times = frame["timestamps"]
        if times.hasnans:
            times = frame.groupby("ticker")["timestamps"].ffill()
        return ~((frame["ticker"].diff() == 0) & (times.diff() <= pd.Timedelta(0)))


class WindowRows(pa.DataFrameModel):
    """Window rows, see `WindowSet.rows`; the `STATISTICS` columns follow these."""

    start: Series[np.int32] = pa.Field(ge=0)
    origin: Series[np.int32]
    end: Series[np.int32]
    split: Series[pd.CategoricalDtype] = pa.Field(isin=SPLITS, nullable=False)

    @pa.dataframe_check(name="finite_statistics")
    def _finite_statistics(cls, rows: pd.DataFrame) -> bool:  # noqa: N805
        # Check all twelve columns at once: a check per column costs half a millisecond per ticker.
        return bool(np.isfinite(rows[list(STATISTICS)].to_numpy(np.float64)).all())

    @pa.dataframe_check(name="known_before_targets")
    def _known_before_targets(cls, rows: pd.DataFrame) -> pd.Series:  # noqa: N805
        return (rows["start"] < rows["origin"]) & (rows["origin"] < rows["end"] - 1)

    @pa.dataframe_check(name="lookback_moves")
    def _lookback_moves(cls, rows: pd.DataFrame) -> pd.Series:  # noqa: N805
        return rows["std_close"] > 0
