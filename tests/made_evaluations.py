"""Evaluations of hand-made windows and models, as the pipeline writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from holdouts import NANO, HandMadeWindows, forecast

from kronos_pipeline.config import Recipe
from kronos_pipeline.evaluation.provenance import evaluation_manifest

CONFIG = Recipe(model_name="kronos-nano", horizon=4, lookback=8, eval_samples=3, seed=7)
SKIPPED = [{"symbol": "ACME", "reason": "ACME.csv:3: Close: a price must be above 0 (found '-1')"}]
MODELS = {"base": 0.5, "checkpoint": -0.5, "adapter": -2.0}


def windows_of(ticker: str, scale: float = 1.0, left_out: int = 0) -> HandMadeWindows:
    walk = np.cumsum(np.random.default_rng(len(ticker)).normal(size=60))
    excluded = {"cutoffs above --max-cutoffs": left_out, "gap": 3}
    return HandMadeWindows(scale * (100 + walk), holdout=10, horizon=4, ticker=ticker, excluded=excluded)


def predictions_of(windows: list[HandMadeWindows], models: dict[str, float] | None = None) -> pd.DataFrame:
    return pd.concat([forecast(ticker, models or MODELS, CONFIG).predictions for ticker in windows], ignore_index=True)


def manifest_of(windows: list[HandMadeWindows], device: str = "cpu") -> dict[str, Any]:
    runs = {ticker.ticker: f"run of {ticker.ticker}" for ticker in windows}
    parts: Any = windows  # they have what a manifest reads of a WindowSet
    return evaluation_manifest(parts, CONFIG, NANO, device, mlflow_runs=runs)
