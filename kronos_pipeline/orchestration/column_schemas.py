"""The columns of the stored tables, for the assets' pages."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

_TIME, _FLOAT, _INT, _TEXT = "datetime64[ns]", "float64", "int32", "string"
_LEVELS = (50, 80, 90)

Columns = Mapping[str, tuple[str, str]]
"""Type and description by column."""

BARS: Columns = {
    "timestamps": (_TIME, "start of the bar, in the file's own local time"),
    "open": (_FLOAT, "price"),
    "high": (_FLOAT, "price; no lower than open, low and close"),
    "low": (_FLOAT, "price; no higher than open, high and close"),
    "close": (_FLOAT, "price"),
    "volume": (_FLOAT, "units traded"),
    "amount": (_FLOAT, "money traded"),
}
_FEATURES = tuple(name for name in BARS if name != "timestamps")
WINDOWS: Columns = {
    "start": (_INT, "number of the first lookback bar in the ticker's bars, from 0"),
    "origin": (_INT, "number of the last lookback bar"),
    "end": (_INT, "number after the last target bar"),
    "split": ("category", "train, selection or holdout, by the window's target bars"),
    **{f"mean_{name}": (_FLOAT, f"mean of {name} over the lookback") for name in _FEATURES},
    **{f"std_{name}": (_FLOAT, f"standard deviation of {name} over the lookback") for name in _FEATURES},
}
_TICKER: Columns = {
    "unique_id": (_TEXT, "ticker"),
    "cutoff": (_TIME, "last bar that the forecast knows"),
    "ds": (_TIME, "the forecast bar"),
    "step": (_INT, "bars after the cutoff, from 1"),
}
_CLOSES: Columns = {
    "mean": (_FLOAT, "mean close of the paths, price"),
    "median": (_FLOAT, "median close of the paths, price"),
    **{
        f"{side}_{level}": (_FLOAT, f"{end} of the central interval of {level} %, price")
        for level in _LEVELS
        for side, end in (("lo", "lower end"), ("hi", "upper end"))
    },
}
PREDICTIONS: Columns = {
    **_TICKER,
    "y": (_FLOAT, "real close, price"),
    "last": (_FLOAT, "close at the cutoff, price"),
    "scale": (_FLOAT, "mean absolute change of the close before the evaluation, price; divisor of scaled errors"),
    "squared_return": (_FLOAT, "squared log change of the real close"),
    "range_variance": (_FLOAT, "variance of the real bar, from open, high, low and close"),
    "model": (_TEXT, "naive, drift, ewma, base, checkpoint, adapter and others"),
    **_CLOSES,
    **{f"raw_{name}": (kind, f"{text}, before recalibration") for name, (kind, text) in _CLOSES.items() if "_" in name},
    "variance": (_FLOAT, "mean squared log change of the close over the paths"),
    "p_up": (_FLOAT, "share of paths with a close above the last, 0 to 1"),
    "crps": (_FLOAT, "continuous ranked probability score of the close, price"),
    "pit": (_FLOAT, "rank of the real close among the paths, 0 to 1"),
}
FORECAST: Columns = {
    **_TICKER,
    "last": (_FLOAT, "last known close, price"),
    "model": (_TEXT, "the models of centre and spread"),
    **_CLOSES,
    "p_up": (_FLOAT, "probability of a close above the last, 0 to 1"),
    "open": (_FLOAT, "mean open of the paths, price"),
    "high": (_FLOAT, "mean high of the paths, price"),
    "low": (_FLOAT, "mean low of the paths, price"),
    "volume": (_FLOAT, "mean volume of the paths"),
}
BY_ASSET: Mapping[str, Columns] = {
    "raw_bars": BARS,
    "windows": WINDOWS,
    "holdout_metrics": PREDICTIONS,
    "backtest": PREDICTIONS,
    "leaderboard": PREDICTIONS,
    "forecast": FORECAST,
}
"""The columns of the table that an asset stores for a ticker, or for all."""


def with_column_schema(asset: dg.AssetsDefinition) -> dg.AssetsDefinition:
    """Return the asset with the columns of its table as metadata, which its page shows."""
    columns = BY_ASSET.get(asset.key.to_user_string())
    if columns is None:
        return asset
    schema = dg.TableSchema([dg.TableColumn(name, kind, text) for name, (kind, text) in columns.items()])
    return asset.map_asset_specs(lambda spec: spec.merge_attributes(metadata={"dagster/column_schema": schema}))
