from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from small import simulated_bars

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars, make_bars
from kronos_pipeline.data.simulate import simulate_ticker
from kronos_pipeline.data.together import first_held_out, known_together, outdated
from kronos_pipeline.data.windows import WindowSet, build_windows

RECIPE = Recipe(model_name="kronos-nano", lookback=8, horizon=4, validation_days=15, selection_days=30)


def windows_of(bars: Bars, **options: bool) -> WindowSet:
    return build_windows(bars, RECIPE, **options)


def every_day(ticker: str, last: pd.Timestamp, bars: int = 200) -> Bars:
    start = last - pd.Timedelta(days=bars - 1)
    frame = simulate_ticker(3, bars, start=start, frequency="D").frame()
    return make_bars(ticker, frame, source=f"{ticker}.csv")


def last_target(windows: WindowSet) -> pd.Timestamp:
    rows = windows.rows[windows.rows["split"] != "holdout"]
    return windows.bars.frame["timestamps"].iloc[rows["end"].max() - 1]


def test_a_ticker_that_trades_on_weekends_tells_nothing_of_the_others_holdout() -> None:
    stock = windows_of(simulated_bars("AAPL", 200))
    crypto = windows_of(every_day("BTCUSD", stock.bars.frame["timestamps"].iloc[-1]))
    cut = first_held_out(stock)
    assert cut is not None
    assert cut < first_held_out(crypto)  # type: ignore[operator]
    assert last_target(crypto) >= cut
    known = known_together([stock, crypto])
    assert known[0] is stock
    assert last_target(known[1]) < cut
    # Nothing else is lost: each window whose targets are older is there, and the holdout is whole.
    assert known[1].counts()["holdout"] == crypto.counts()["holdout"]
    stamps = crypto.bars.frame["timestamps"].to_numpy()
    older = stamps[crypto.rows["end"].to_numpy() - 1] < np.datetime64(cut)
    assert len(known[1].rows) == (older | (crypto.rows["split"] == "holdout").to_numpy()).sum()
    assert known[1].training_hash != crypto.training_hash


def test_a_ticker_that_ended_long_ago_cuts_nothing_and_is_named() -> None:
    now, gone = windows_of(simulated_bars("AAPL", 300)), windows_of(simulated_bars("GONE", 150))
    assert outdated([now, gone]) == ["GONE"]
    assert known_together([now, gone], ["GONE"])[0] is now
    assert last_target(known_together([now, gone])[0]) < first_held_out(gone)  # type: ignore[operator]


@pytest.mark.parametrize("hold_out", [True, False])
def test_tickers_of_one_calendar_lose_nothing(hold_out: bool) -> None:
    both = [windows_of(simulated_bars(ticker, 200), hold_out=hold_out) for ticker in ("AAPL", "MSFT")]
    assert all(one is other for one, other in zip(known_together(both), both, strict=True))
    assert outdated(both) == []


def test_windows_that_hold_nothing_out_use_the_last_bar_and_have_no_holdout() -> None:
    bars = simulated_bars("AAPL", 200)
    windows = windows_of(bars, hold_out=False)
    assert windows.counts()["holdout"] == 0
    assert first_held_out(windows) is None
    assert windows.rows["end"].max() == len(bars)
    assert windows.selection_start == len(bars) - 30
