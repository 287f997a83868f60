"""Rolling forecasts over a ticker's holdout: naive and every model side by side, one row per holdout bar.

    holdout bars   |----------------- n bars ------------------|
    roll 1      ...x = = = horizon = = =
    roll 2      .......................x = = = horizon = = =
    roll 3      ...........................................x = =      (cut at the last bar)

`x` is a cutoff: the last bar that the roll's forecast may know. Each roll knows the real bars up to its cutoff, never
an earlier roll's forecasts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kronos_pipeline.artifacts import text_hash
from kronos_pipeline.data.bars import FEATURES
from kronos_pipeline.errors import ModelError

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet

NAIVE = "naive"
KEYS = ("unique_id", "ds", "cutoff", "y")
"""The columns of a forecast table that are not models; the names are Nixtla's."""

Sampler = Callable[..., np.ndarray]
"""Called as `model.decoding.sample_paths` is; returns (series, paths, horizon, features) in price units."""


def forecast_holdout(
    windows: WindowSet, models: Mapping[str, Any], config: Recipe, *, sampler: Sampler | None = None
) -> pd.DataFrame:
    """Forecast every bar of a ticker's holdout by the naive forecast and by each model.

    All cutoffs of the ticker go through a model in one batch, and every model draws with the same seed, so that a
    difference between two columns is one between their models.

    Args:
        windows: the ticker's windows; its holdout rows are the rolls.
        models: a `KronosModel` by column name: "base", "checkpoint", "adapter".
        config: horizon (bars), paths per forecast, temperature, top_p and seed.
        sampler: what draws the paths; by default `kronos_pipeline.model.decoding.sample_paths`.

    Returns:
        A row per evaluated holdout bar, by time: `unique_id`; `ds` and `cutoff`, timestamps in the file's own time;
        `y`, the real close; `naive`, the close at the cutoff; and per model the close of its mean path. Prices are in
        the file's unit.

    Raises:
        ModelError: a model's forecast is not finite.
    """
    rolls = windows.of_split("holdout")
    frame = windows.bars.frame
    close, stamps = frame["close"].to_numpy(np.float64), frame["timestamps"].to_numpy()
    origins, ends = rolls["origin"].to_numpy(np.int64), rolls["end"].to_numpy(np.int64)
    lengths = ends - origins - 1
    targets = np.concatenate([np.arange(origin + 1, end) for origin, end in zip(origins, ends, strict=True)])
    cutoffs = np.repeat(origins, lengths)
    table = pd.DataFrame(
        {
            "unique_id": windows.ticker,
            "ds": stamps[targets],
            "cutoff": stamps[cutoffs],
            "y": close[targets],
            NAIVE: close[cutoffs],
        }
    )
    inputs = _inputs(windows, origins, ends, config.horizon)
    for name, model in models.items():
        paths = (sampler or _default_sampler())(
            model,
            *inputs,
            paths=config.eval_samples,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=sampling_seed(config.seed, windows.ticker),
        )
        closes = np.asarray(paths, np.float64)[..., FEATURES.index("close")].mean(axis=1)  # (rolls, horizon)
        table[name] = np.concatenate([row[:length] for row, length in zip(closes, lengths, strict=True)])
        _check_finite(table, name)
    return table


def sampling_seed(seed: int, ticker: str) -> int:
    """The seed of a ticker's paths, below 2**32: the same for every model, and in every process (`hash` is not)."""
    return int(text_hash(str(seed), ticker)[:8], 16)


def _inputs(
    windows: WindowSet, origins: np.ndarray, ends: np.ndarray, horizon: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rolls' lookback bars (rolls, lookback, 6), their stamps (.., 5), and the stamps ahead (rolls, horizon, 5).

    The stamps ahead are the holdout's own, as the calendar is known in advance. Where the last roll is cut they repeat
    the last one: a forecast never looks at later stamps, and the bars beyond the cut are dropped.
    """
    values = windows.bars.frame[list(FEATURES)].to_numpy(np.float64)
    past = origins[:, None] + np.arange(1 - windows.lookback, 1)
    ahead = np.minimum(origins[:, None] + np.arange(1, horizon + 1), ends[:, None] - 1)
    return values[past], windows.stamps[past], windows.stamps[ahead]


def _check_finite(table: pd.DataFrame, name: str) -> None:
    bad = int((~np.isfinite(table[name])).sum())
    if bad:
        ticker = table["unique_id"].iloc[0]
        raise ModelError(
            f"The {name} model's forecast of {ticker} is not a finite number for {bad} of {len(table)} holdout bars; "
            "train it again with a lower --learning-rate, or with --precision fp32."
        )


def _default_sampler() -> Sampler:
    from kronos_pipeline.model.decoding import sample_paths  # imports torch

    return sample_paths
