"""Settings and simulated tickers for trainings of a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars, make_bars
from kronos_pipeline.data.simulate import simulate_ticker
from kronos_pipeline.data.windows import WindowSet, build_windows

SMALL: dict[str, Any] = {
    "lookback": 16,
    "horizon": 5,
    "validation_days": 12,
    "selection_days": 14,
    "epochs": 2,
    "learning_rate": 1e-4,
    "batch_size": 16,
    "evaluations_per_epoch": 2,
    "eval_samples": 3,
    "device": "cpu",
}


def small_recipe(base: Path, **changes: Any) -> Recipe:
    return Recipe(**{"model_name": str(base), **SMALL, **changes})


def small_flags(base: Path, **changes: Any) -> list[str]:
    """Return the settings of `small_recipe` as flags of the command."""
    settings = {"model_name": str(base), **SMALL, **changes}
    flags: list[str] = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        flags += [flag if value else f"--no-{flag[2:]}"] if isinstance(value, bool) else [flag, str(value)]
    return flags


def simulated_bars(ticker: str = "AAPL", bars: int = 130, seed: int = 1) -> Bars:
    return make_bars(ticker, simulate_ticker([seed, *ticker.encode()], bars).frame(), source=f"{ticker}.csv")


def simulated_windows(recipe: Recipe, tickers: Sequence[str] = ("AAPL",), bars: int = 130) -> list[WindowSet]:
    return [build_windows(simulated_bars(ticker, bars), recipe) for ticker in tickers]
