from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_trainings import simulated_bars

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars, make_bars
from kronos_pipeline.data.simulate import simulate_ticker
from kronos_pipeline.errors import DataError
from kronos_pipeline.evaluation.backtest.folds import Fold, plan_folds

SETTINGS = {"model_name": "kronos-nano", "lookback": 8, "selection_days": 8}


def recipe_of(horizon: int = 4, origins: int = 5, refit_every: int = 1) -> Recipe:
    return Recipe(**SETTINGS, horizon=horizon, backtest_origins=origins, backtest_refit_every=refit_every)


def cut(bars: Bars, end: int) -> Bars:
    return make_bars(bars.ticker, bars.frame.iloc[:end], source=bars.source)


def cutoffs(fold: Fold, ticker: str) -> list[pd.Timestamp]:
    (windows,) = [windows for windows in fold.windows if windows.ticker == ticker]
    return [windows.bars.frame["timestamps"].iloc[origin] for origin in windows.of_split("holdout")["origin"]]


def newest_target(fold: Fold) -> pd.Timestamp:
    """Return the time of the newest bar that the fold's training may read."""
    newest: list[pd.Timestamp] = []
    for known in fold.known:
        rows = known.rows[known.rows["split"] != "holdout"]
        assert known.counts()["train"] > 0
        newest.append(known.bars.frame["timestamps"].iloc[rows["end"].max() - 1])
    return max(newest)


@pytest.mark.slow
@settings(max_examples=40)
@given(
    bars=st.integers(60, 160),
    horizon=st.integers(1, 7),
    origins=st.integers(1, 12),
    refit_every=st.integers(1, 5),
    stride=st.integers(1, 3),
)
def test_every_cutoff_lies_after_all_that_its_weights_are_trained_on(
    bars: int, horizon: int, origins: int, refit_every: int, stride: int
) -> None:
    recipe = recipe_of(horizon, origins, refit_every).model_copy(update={"stride": stride})
    bars_of_ticker = simulated_bars("AAPL", bars)
    try:
        folds, skipped = plan_folds([{"AAPL": bars_of_ticker}], recipe)
    except DataError:
        assume(False)
    stamps = bars_of_ticker.frame["timestamps"]
    cutoffs: list[int] = []
    for fold in folds:
        (known,), (windows,) = fold.known, fold.windows
        origin = windows.of_split("holdout")["origin"].to_numpy()
        trained = pd.concat([known.of_split("train"), known.of_split("selection")])
        assert trained["end"].max() - 1 <= origin.min()
        assert len(windows.bars) == origin.max() + 1 + horizon
        assert windows.bars.frame.equals(bars_of_ticker.frame.iloc[: len(windows.bars)])
        assert 1 <= len(origin) <= refit_every
        assert (windows.of_split("holdout")["end"].to_numpy() == origin + 1 + horizon).all()
        cutoffs += origin.tolist()
    assert not skipped
    # The newest leaves one horizon of real bars, and each is a horizon after the one before.
    assert cutoffs == [bars - 1 - horizon * step for step in range(len(cutoffs), 0, -1)]
    assert len(stamps) == bars


def test_tickers_that_train_together_share_cutoffs_and_know_no_bar_that_is_newer() -> None:
    long, short = simulated_bars("AAPL", 150), cut(simulated_bars("MSFT", 150), 143)
    folds, _ = plan_folds([{"AAPL": long, "MSFT": short}], recipe_of())
    assert len(folds) == 5
    for fold in folds:
        assert cutoffs(fold, "AAPL") == cutoffs(fold, "MSFT")
        assert newest_target(fold) <= cutoffs(fold, "AAPL")[0]


def test_tickers_of_different_weeks_know_no_bar_that_is_newer_than_the_earliest_cutoff_among_them() -> None:
    stock = simulated_bars("AAPL", 200)
    start = stock.frame["timestamps"].iloc[-1] - pd.Timedelta(days=199)
    frame = simulate_ticker(3, 200, start=start, frequency="D").frame()
    folds, _ = plan_folds([{"AAPL": stock, "BTCUSD": make_bars("BTCUSD", frame, source="x.csv")}], recipe_of())
    apart = 0
    for fold in folds:
        first = [cutoffs(fold, ticker)[0] for ticker in ("AAPL", "BTCUSD")]
        assert newest_target(fold) <= min(first)
        apart += first[0] != first[1]
    assert apart


def test_a_ticker_that_ended_long_ago_is_named_and_left_out() -> None:
    folds, skipped = plan_folds(
        [{"AAPL": simulated_bars("AAPL", 150), "GONE": simulated_bars("GONE", 120)}], recipe_of()
    )
    assert "GONE.csv: its bars end before" in str(skipped["GONE"])
    assert all(windows.ticker == "AAPL" for fold in folds for windows in fold.windows)


def test_old_folds_without_bars_enough_before_them_are_left_out() -> None:
    folds, skipped = plan_folds([{"AAPL": simulated_bars("AAPL", 60)}], recipe_of(origins=40))
    assert 5 < len(folds) < 40
    assert not skipped


def test_a_ticker_without_a_cutoff_is_named_and_none_at_all_is_an_error() -> None:
    few = cut(simulated_bars("MSFT", 100), 20)
    _, skipped = plan_folds([{"AAPL": simulated_bars("AAPL", 100)}, {"MSFT": few}], recipe_of())
    assert list(skipped) == ["MSFT"]
    assert "20 bars" in str(skipped["MSFT"])
    with pytest.raises(DataError, match=r"MSFT\.csv"):
        plan_folds([{"MSFT": few}], recipe_of())


def test_a_fold_does_not_change_with_bars_that_come_after_it() -> None:
    bars = simulated_bars("AAPL", 150)
    noise = bars.frame.copy()
    rng = np.random.default_rng(0)
    folds, _ = plan_folds([{"AAPL": bars}], recipe_of())
    first = folds[0].windows[0]
    later = len(first.bars)
    noise.loc[later:, ["open", "high", "low", "close"]] *= np.exp(rng.normal(size=(len(noise) - later, 1)))
    other, _ = plan_folds([{"AAPL": make_bars("AAPL", noise, source="AAPL.csv")}], recipe_of())
    assert other[0].windows[0].training_hash == first.training_hash
    assert other[0].windows[0].bars.content_hash == first.bars.content_hash
    assert other[-1].windows[0].training_hash != folds[-1].windows[0].training_hash
