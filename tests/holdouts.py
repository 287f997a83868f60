"""Windows and samplers made by hand, so that a test controls the information of a forecast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import FEATURES, make_bars
from kronos_pipeline.evaluation.forecasting.holdout_table import Forecasts, predict
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling

CLOSE = FEATURES.index("close")


@dataclass
class HandMadeWindows:
    """Stand-in for a `WindowSet`; forecasts of `horizon` bars cover the last `holdout` bars."""

    close: np.ndarray
    holdout: int
    horizon: int
    lookback: int = 8
    ticker: str = "AAPL"
    freq: str = "B"
    excluded: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frame = pd.DataFrame(dict.fromkeys(FEATURES, self.close)).astype("float64")
        frame.insert(0, "timestamps", pd.date_range("2024-01-02", periods=len(self.close), freq=self.freq))
        self.bars = make_bars(self.ticker, frame, source=f"{self.ticker}.csv")
        stamps = pd.DatetimeIndex(frame["timestamps"])
        self.stamps = np.stack([stamps.minute, stamps.hour, stamps.weekday, stamps.day, stamps.month], axis=1).astype(
            np.uint8
        )

    @property
    def holdout_start(self) -> int:
        return len(self.close) - self.holdout

    @property
    def selection_start(self) -> int:
        return max(self.holdout_start - 20, self.lookback)

    def of_split(self, split: str) -> pd.DataFrame:
        assert split == "holdout"
        bars = len(self.close)
        origins = np.arange(bars - self.holdout - 1, bars - 1, self.horizon, dtype=np.int32)
        ends = np.minimum(origins + 1 + self.horizon, bars).astype(np.int32)
        return pd.DataFrame({"start": origins - self.lookback + 1, "origin": origins, "end": ends, "split": split})


class RecordingSampler:
    """Sampler that returns last close + model + path number + step, and records its arguments.

    A model is a number here, one per series.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, models: Sequence[float], history: np.ndarray, past: np.ndarray, ahead: np.ndarray, **settings: Any
    ) -> np.ndarray:
        self.calls.append({"models": models, "history": history, "past": past, "ahead": ahead, **settings})
        steps = np.arange(1, ahead.shape[1] + 1)
        numbers = np.arange(settings["paths"])
        starts = history[:, -1, CLOSE] + np.array(models, np.float64)
        closes = starts[:, None, None] + numbers[:, None] + steps
        return np.repeat(closes[..., None], len(FEATURES), axis=-1)


def forecast(
    windows: HandMadeWindows, models: dict[str, Any], recipe: Recipe, *, sampler: RecordingSampler | None = None
) -> Forecasts:
    """Forecast a hand-made holdout with the recipe's sampling for every model."""
    samplings = {name: plain_sampling(recipe) for name in models}
    return predict(windows, models, samplings, recipe, sampler=sampler or RecordingSampler())  # type: ignore[arg-type]


NANO = find_base_model("kronos-nano")
