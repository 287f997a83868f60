"""Tickers that train together: none of them tells a model of days that another one's holdout is asked about.

    stocks   |------------------ train, selection --------------|===== holdout =====|
    crypto   |------------------ train, selection ------------------------|= holdout =|
                                                          the cut ^       ^ these bars are left out of training

Thirty trading days are six weeks of stocks and a month of crypto. A ticker whose bars end before the others' holdouts
begin, as one that is no longer traded, is outdated: it would cut years from all the others, and cuts nothing.

A bar tells of all that happens until it ends, an interval after its time: a daily bar is known the next day. Times of
different zones are compared in UTC, where both files state one that does not change; otherwise a day is kept between.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from kronos_pipeline.data.bar_schedule import find_bar_schedule
from kronos_pipeline.data.timestamps import fixed_offset
from kronos_pipeline.data.windows import WindowSet

_MARGIN = pd.Timedelta(days=1)
_TICK = pd.Timedelta(1, "ns")


@dataclass(frozen=True)
class _Clock:
    """What a ticker's times mean: the zone that its file states, and how long a bar lasts."""

    zone: str | None
    interval: pd.Timedelta


def holdout_start_time(windows: WindowSet) -> pd.Timestamp | None:
    """The time of the holdout's first bar; None where nothing is held out."""
    if windows.holdout_start >= len(windows.bars):
        return None
    return windows.bars.frame["timestamps"].iloc[windows.holdout_start]


def outdated_tickers(windows: Sequence[WindowSet]) -> list[str]:
    """The tickers whose bars end before another one's holdout begins."""
    starts = [start for one in windows if (start := holdout_start_time(one)) is not None]
    return [one.ticker for one in windows if starts and one.bars.frame["timestamps"].iloc[-1] < max(starts)]


def purge_overlapping_targets(windows: Sequence[WindowSet], aside: Collection[str] = ()) -> list[WindowSet]:
    """The windows for training, without those that have a target that ends after any ticker's holdout began.

    Tickers of one zone and one interval are compared by their bars' times alone: a daily bar is told by its date,
    whatever the hour. No ticker keeps a target whose own time is that of another's first held-out bar, or later.

    Args:
        windows: the tickers'.
        aside: tickers whose holdouts do not count, such as those that are `outdated`.
    """
    clocks = [_clock(one) for one in windows]
    firsts: dict[_Clock, pd.Timestamp] = {}
    for one, clock in zip(windows, clocks, strict=True):
        start = holdout_start_time(one)
        if start is not None and one.ticker not in aside:
            firsts[clock] = min(start, firsts.get(clock, start))
    if not firsts:
        return list(windows)
    return [
        _up_to(one, min(_newest_target(own, clock, start) for clock, start in firsts.items()))
        for one, own in zip(windows, clocks, strict=True)
    ]


def _clock(windows: WindowSet) -> _Clock:
    # As the windows do: nothing of training depends on a holdout bar.
    stamps = windows.bars.frame["timestamps"].to_numpy()[: windows.holdout_start]
    return _Clock(windows.bars.time_zone, pd.Timedelta(find_bar_schedule(stamps).interval, "ns"))


def _newest_target(own: _Clock, other: _Clock, start: pd.Timestamp) -> pd.Timestamp:
    """The time, by a ticker's own clock, of the newest target beside a holdout that starts then by another's clock."""
    before = start - _TICK
    if own == other:
        return before
    offset, other_offset = fixed_offset(own.zone), fixed_offset(other.zone)
    if own.zone == other.zone:
        ahead = pd.Timedelta(0)
    elif offset is None or other_offset is None:
        ahead = -_MARGIN
    else:
        ahead = offset - other_offset
    return min(before, start + ahead - own.interval)


def _up_to(windows: WindowSet, newest: pd.Timestamp) -> WindowSet:
    last_target = windows.bars.frame["timestamps"].to_numpy()[windows.rows["end"].to_numpy() - 1]
    kept = (windows.rows["split"] == "holdout").to_numpy() | (last_target <= np.datetime64(newest))
    return windows if kept.all() else replace(windows, rows=windows.rows[kept].reset_index(drop=True))
