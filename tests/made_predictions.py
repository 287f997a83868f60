"""Tables of predictions made by hand, so that a test knows every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kronos_pipeline.evaluation.predictions import COLUMNS, INTERVALS, LEVELS

FIRST = pd.Timestamp("2024-01-01")


def made_predictions(
    y: np.ndarray,
    models: Mapping[str, np.ndarray],
    *,
    symbol: str = "AAPL",
    horizon: int = 5,
    last: float | np.ndarray = 100.0,
    scale: float = 1.0,
    half_widths: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Return forecasts of `horizon` daily bars over `y`; each model of `half_widths` has intervals around its forecast.

    The interval of 50 percent reaches one half width to each side, of 80 percent two, and of 90 percent three. Before
    recalibration each is twice as wide.
    """
    number = np.arange(len(y))
    shared = pd.DataFrame(
        {
            "unique_id": symbol,
            "cutoff": FIRST + pd.to_timedelta(number // horizon * horizon - 1, unit="D"),
            "ds": FIRST + pd.to_timedelta(number, unit="D"),
            "step": number % horizon + 1,
            "y": np.asarray(y, np.float64),
            "last": last,
            "scale": scale,
            "squared_return": 1e-4,
            "range_variance": 1e-4,
        }
    )
    tables = []
    for model, forecast in models.items():
        table = shared.assign(
            model=model, mean=np.asarray(forecast, np.float64), median=forecast, pit=0.5, variance=1e-4, p_up=0.5
        )
        table["crps"] = np.abs(table["mean"] - table["y"])
        half = (half_widths or {}).get(model, np.nan)
        for raw in ("", "raw_"):
            for factor, level in enumerate(LEVELS, start=1):
                half_width = half * factor * (2 if raw else 1)
                table[f"{raw}lo_{level}"], table[f"{raw}hi_{level}"] = (
                    table["mean"] - half_width,
                    table["mean"] + half_width,
                )
        tables.append(table)
    assert set(INTERVALS) <= set(tables[0].columns)
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)]


def predictions_of_losses(
    losses: Mapping[str, Sequence[float] | np.ndarray], *, symbol: str = "AAPL", horizon: int = 3, scale: float = 2.0
) -> pd.DataFrame:
    """Return predictions with a given scaled loss by model and cutoff."""
    cutoffs = len(next(iter(losses.values())))
    y = np.full(cutoffs * horizon, 100.0)
    models = {model: y + scale * np.repeat(np.asarray(values, np.float64), horizon) for model, values in losses.items()}
    return made_predictions(y, models, symbol=symbol, horizon=horizon, scale=scale)
