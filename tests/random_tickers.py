"""Hypothesis strategies: tickers with holes and flat stretches, and settings that cut windows from them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import FEATURES, Bars, make_bars
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.errors import DataError


def cases(examples: int) -> settings:
    """Settings of Hypothesis: no health check fails on a slow machine, or if many draws do not fit a ticker."""
    suppressed = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(max_examples=examples, suppress_health_check=suppressed)


recipes = st.builds(
    Recipe,
    lookback=st.integers(2, 40),
    horizon=st.integers(1, 12),
    validation_bars=st.integers(1, 40),
    selection_bars=st.integers(2, 50),
    stride=st.integers(1, 9),
    max_gap=st.integers(1, 4),
    max_cutoffs=st.integers(1, 12),
)


@st.composite
def tickers(draw: st.DrawFn, symbol: str = "ACME") -> Bars:
    """Draw daily or 5-minute bars with holes and flat stretches."""
    count = draw(st.integers(60, 260))
    holes = draw(st.lists(st.tuples(st.integers(5, count - 5), st.integers(1, 8)), max_size=4))
    flat = draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(1, 60)), max_size=2))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = np.ones(count, np.int64)
    for bar, missing in holes:
        steps[bar] += missing
    interval = draw(st.sampled_from([np.timedelta64(1, "D"), np.timedelta64(5, "m")]))
    times = np.datetime64("2024-01-01T00:00", "ns") + np.cumsum(steps) * interval
    close = 10.0 ** draw(st.integers(-3, 6)) * np.exp(np.cumsum(0.02 * rng.standard_normal(count)))
    for first, length in flat:
        close[first : first + length] = close[first]
    columns = dict.fromkeys(FEATURES, close) | {
        "volume": rng.uniform(0, 1e6, count),
        "amount": rng.uniform(0, 1e9, count),
    }
    return make_bars(symbol, pd.DataFrame({"timestamps": times, **columns}), source=f"{symbol}.csv")


def build(bars: Bars, recipe: Recipe) -> WindowSet:
    """Build the windows; skip a ticker that is too short for the recipe."""
    try:
        return build_windows(bars, recipe)
    except DataError:
        assume(False)
        raise
