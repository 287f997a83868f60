"""The rivals of --rivals for an evaluation: fitted once, over all tickers, without bars of any ticker's holdout."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from price_walks import FIVE_DAYS, cutoffs, random_walk, walk_bars
from tiny_chronos import save_tiny_chronos

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.evaluation.leakage_test import with_noise
from kronos_pipeline.evaluation.rivals.optional import NO_RIVALS, prepare_rivals, rivals_provenance

CPU = torch.device("cpu")
GBM = FIVE_DAYS.model_copy(update={"rivals": ["lightgbm"]})


def forecast(windows: list[WindowSet], ticker: int, recipe: Recipe = GBM) -> tuple[dict[str, np.ndarray], list[str]]:
    rivals = prepare_rivals(recipe, windows, CPU)
    return rivals.forecast(windows[ticker], *cutoffs(windows[ticker]), recipe)[:2]


def test_without_the_flag_there_are_none_and_no_windows_are_read() -> None:
    assert prepare_rivals(FIVE_DAYS, iter(()), CPU) == NO_RIVALS


@pytest.mark.slow
def test_the_trees_see_no_bar_of_the_time_of_another_tickers_holdout() -> None:
    long, short = random_walk(0, 500, "LONG"), random_walk(1, 480, "SHORT")
    start = int(long.bars.frame["timestamps"].searchsorted(short.bars.frame["timestamps"].iloc[short.holdout_start]))
    assert start < long.holdout_start
    noisy_bars = with_noise(long.bars, start, seed=3)
    noisy = build_windows(noisy_bars, GBM.model_copy(update={"keep_jumps": True}))
    (before, _), (after, _) = forecast([long, short], 1), forecast([noisy, short], 1)
    np.testing.assert_array_equal(after["lightgbm"], before["lightgbm"])


def test_a_ticker_that_ended_long_ago_gets_no_forecast_of_trees_that_know_later_bars() -> None:
    returns = 0.01 * np.random.default_rng(2).standard_normal(399)
    delisted = build_windows(walk_bars(returns, "GONE", start="2015-01-05"), GBM)
    closes, notes = forecast([random_walk(0), delisted], 1)
    assert closes == {}
    assert notes == [
        "GONE: no lightgbm forecast: its bars end before the holdout of other tickers, whose later bars the trees have "
        "seen."
    ]


def test_too_few_bars_are_told_for_each_ticker() -> None:
    short = GBM.model_copy(update={"validation_bars": 10, "selection_bars": 10})
    closes, notes = forecast([random_walk(0, 95, recipe=short)], 0, short)
    assert closes == {}
    assert notes == ["ACME: no lightgbm forecast: it needs 50 training bars after the first 41, and there are 34."]


@pytest.mark.slow
def test_both_rivals_forecast_and_their_provenance_names_packages_and_weights(tmp_path: Path) -> None:
    folder = save_tiny_chronos(tmp_path / "chronos")
    recipe = GBM.model_copy(update={"rivals": ["lightgbm", f"chronos={folder}"]})
    closes, notes = forecast([random_walk(0)], 0, recipe)
    assert list(closes) == ["lightgbm", "chronos"]
    assert notes == []
    provenance = rivals_provenance(recipe)
    assert provenance["lightgbm"] == {name: version(name) for name in ("lightgbm", "mlforecast")}
    assert provenance["chronos"].keys() == {"chronos-forecasting", "transformers", "weights"}
    save_tiny_chronos(folder, seed=1)
    assert rivals_provenance(recipe)["chronos"]["weights"] != provenance["chronos"]["weights"]
    assert rivals_provenance(FIVE_DAYS) == {}
