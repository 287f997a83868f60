"""Daily bars of log-price walks whose returns a test chooses."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import FEATURES, Bars, make_bars
from kronos_pipeline.data.windows import WindowSet, build_windows

FIVE_DAYS = Recipe(
    model_name="kronos-nano", lookback=32, horizon=5, validation_bars=60, selection_bars=60, eval_samples=64
)
"""Twelve cutoffs, five bars apart."""


def walk_bars(returns: np.ndarray, symbol: str = "ACME", start: str = "2021-01-04") -> Bars:
    """Return weekday bars whose four prices are the walk's close; the first return is that of the second bar."""
    close = 100 * np.exp(np.concatenate([[0.0], np.cumsum(returns)]))
    stamps = pd.date_range(start, periods=len(close), freq="B")
    columns = dict.fromkeys(FEATURES, close)
    return make_bars(symbol, pd.DataFrame({"timestamps": stamps, **columns}), source=f"{symbol}.csv")


def random_walk(seed: int, bars: int = 500, symbol: str = "ACME", recipe: Recipe = FIVE_DAYS) -> WindowSet:
    """Return the windows of a Gaussian random walk with returns of 1 %."""
    returns = 0.01 * np.random.default_rng(seed).standard_normal(bars - 1)
    return build_windows(walk_bars(returns, symbol), recipe)


def cutoffs(windows: WindowSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the holdout's cutoffs, and the bar after the last requested bar of each."""
    rows = windows.of_split("holdout")
    return rows["origin"].to_numpy(np.int64), rows["end"].to_numpy(np.int64)
