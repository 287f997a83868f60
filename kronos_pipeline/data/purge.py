"""Purge training windows with targets that overlap any ticker's holdout in time.

A joint model has then seen no bar of a holdout period (Lopez de Prado, Advances in Financial Machine Learning, ch. 7).

    stocks   |------------------ train, selection --------------|===== holdout =====|
    crypto   |------------------ train, selection ------------------------|= holdout =|
                                                          the cut ^       ^ these bars are left out of training

Thirty trading days are six weeks of stocks and a month of crypto. A ticker with bars that end before another holdout
begins, such as a delisted stock, is outdated: its holdout would cut years from all other tickers, so it is ignored.

A bar covers one interval from its time: a daily bar is known the next day. Times of different zones are compared in UTC
if both files state a fixed zone; otherwise a margin of one day is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from kronos_pipeline.data.bar_schedule import find_bar_schedule
from kronos_pipeline.data.time_zones import fixed_offset
from kronos_pipeline.data.windows import WindowSet

_MARGIN = pd.Timedelta(days=1)
_TICK = pd.Timedelta(1, "ns")


@dataclass(frozen=True)
class _Clock:
    """Time zone stated by a ticker's file, and duration of a bar."""

    zone: str | None
    interval: pd.Timedelta


def holdout_start_time(windows: WindowSet) -> pd.Timestamp | None:
    """Return the time of the holdout's first bar; None without a holdout."""
    if windows.holdout_start >= len(windows.bars):
        return None
    return windows.bars.frame["timestamps"].iloc[windows.holdout_start]


def outdated_tickers(windows: Sequence[WindowSet]) -> list[str]:
    """Return the tickers with bars that end before another ticker's holdout begins."""
    starts = [start for window_set in windows if (start := holdout_start_time(window_set)) is not None]
    return [
        window_set.ticker
        for window_set in windows
        if starts and window_set.bars.frame["timestamps"].iloc[-1] < max(starts)
    ]


def purge_overlapping_targets(windows: Sequence[WindowSet], ignored: Collection[str] = ()) -> list[WindowSet]:
    """Drop the training windows with a target that ends after any ticker's holdout begins.

    Tickers of one zone and one interval are compared by bar times only: a daily bar is identified by its date, at any
    hour. No ticker keeps a target at or after the time of another ticker's first holdout bar.

    Args:
        windows: a window set per ticker.
        ignored: tickers with holdouts that cut nothing, such as `outdated_tickers`.
    """
    clocks = [_clock(window_set) for window_set in windows]
    holdout_starts: dict[_Clock, pd.Timestamp] = {}
    for window_set, clock in zip(windows, clocks, strict=True):
        start = holdout_start_time(window_set)
        if start is not None and window_set.ticker not in ignored:
            holdout_starts[clock] = min(start, holdout_starts.get(clock, start))
    if not holdout_starts:
        return list(windows)
    return [
        _drop_later_targets(
            window_set, min(_newest_target(clock, other, start) for other, start in holdout_starts.items())
        )
        for window_set, clock in zip(windows, clocks, strict=True)
    ]


def _clock(windows: WindowSet) -> _Clock:
    # Use the bars before the holdout only, as `windows` does: training depends on no holdout bar.
    stamps = windows.bars.frame["timestamps"].to_numpy()[: windows.holdout_start]
    return _Clock(windows.bars.time_zone, pd.Timedelta(find_bar_schedule(stamps).interval, "ns"))


def _newest_target(clock: _Clock, other: _Clock, start: pd.Timestamp) -> pd.Timestamp:
    """Return the latest target time allowed by `clock` for a holdout that starts at `start` by `other`."""
    before = start - _TICK
    if clock == other:
        return before
    offset, other_offset = fixed_offset(clock.zone), fixed_offset(other.zone)
    if clock.zone == other.zone:
        difference = pd.Timedelta(0)
    elif offset is None or other_offset is None:
        difference = -_MARGIN
    else:
        difference = offset - other_offset
    return min(before, start + difference - clock.interval)


def _drop_later_targets(windows: WindowSet, newest: pd.Timestamp) -> WindowSet:
    """Drop the training windows with a last target later than `newest`; keep all holdout rows."""
    last_target = windows.bars.frame["timestamps"].to_numpy()[windows.rows["end"].to_numpy() - 1]
    keep = (windows.rows["split"] == "holdout").to_numpy() | (last_target <= np.datetime64(newest))
    return windows if keep.all() else replace(windows, rows=windows.rows[keep].reset_index(drop=True))
