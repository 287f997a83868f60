"""Tickers that train together: none of them tells a model of days that another one's holdout is asked about.

    stocks   |------------------ train, selection --------------|===== holdout =====|
    crypto   |------------------ train, selection ------------------------|= holdout =|
                                                          the cut ^       ^ these bars are left out of training

Thirty trading days are six weeks of stocks and a month of crypto. A ticker whose bars end before the others' holdouts
begin, as one that is no longer traded, is outdated: it would cut years from all the others, and cuts nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from kronos_pipeline.data.windows import WindowSet


def first_held_out(windows: WindowSet) -> pd.Timestamp | None:
    """The time of the holdout's first bar; None where nothing is held out."""
    if windows.holdout_start >= len(windows.bars):
        return None
    return windows.bars.frame["timestamps"].iloc[windows.holdout_start]


def outdated(windows: Sequence[WindowSet]) -> list[str]:
    """The tickers whose bars end before another one's holdout begins."""
    starts = [start for one in windows if (start := first_held_out(one)) is not None]
    return [one.ticker for one in windows if starts and one.bars.frame["timestamps"].iloc[-1] < max(starts)]


def known_together(windows: Sequence[WindowSet], aside: Collection[str] = ()) -> list[WindowSet]:
    """The windows for training, without those that have a target at or after the first bar of any ticker's holdout.

    Args:
        windows: the tickers'.
        aside: tickers whose holdouts do not count, such as those that are `outdated`.
    """
    starts = [start for one in windows if one.ticker not in aside and (start := first_held_out(one)) is not None]
    return [_before(one, min(starts)) for one in windows] if starts else list(windows)


def _before(windows: WindowSet, cut: pd.Timestamp) -> WindowSet:
    last_target = windows.bars.frame["timestamps"].to_numpy()[windows.rows["end"].to_numpy() - 1]
    kept = (windows.rows["split"] == "holdout").to_numpy() | (last_target < np.datetime64(cut))
    return windows if kept.all() else replace(windows, rows=windows.rows[kept].reset_index(drop=True))
