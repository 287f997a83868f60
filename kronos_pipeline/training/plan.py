"""Plan of the trainings of a recipe: which models are trained, and on which tickers.

    adapter none               one checkpoint over all tickers
    adapter lora               an adapter per ticker, named for it
    adapter lora, with a name  one adapter over all tickers

The command, the Dagster assets, the backtest and the leakage test all train what this plan lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kronos_pipeline.config import Recipe

if TYPE_CHECKING:
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.training.callback import Callback


@dataclass(frozen=True)
class TrainingJob:
    """Request to train one model.

    Attributes:
        adapter: the adapter's name; None for a checkpoint, that is, the whole predictor.
        windows: windows of one ticker, or of all tickers that the model is to cover.
        root: folder for its artifacts and state; by default the trainer's.
        listener: receives the events of the training.
        mlflow_run: id of the MLflow run that records this training, for the manifest.
        refit: whether the windows have no holdout, so that no evaluation can measure the model.
        state: folder of its resumable state, known when it starts; the tracking keeps the id of its run there.
    """

    adapter: str | None
    windows: Sequence[WindowSet]
    root: Path | None = None
    listener: Callback | None = None
    mlflow_run: str | None = None
    refit: bool = False
    state: Path | None = None

    @property
    def name(self) -> str:
        """The adapter's name, or "checkpoint"."""
        return self.adapter or "checkpoint"


def group_tickers(recipe: Recipe, tickers: Iterable[str]) -> list[list[str]]:
    """Return the tickers of each model that a recipe trains."""
    if recipe.adapter == "none" or recipe.adapter_name is not None:
        return [list(tickers)]
    return [[ticker] for ticker in tickers]


def plan_trainings(recipe: Recipe, windows: Iterable[WindowSet]) -> list[TrainingJob]:
    """List the trainings of a recipe, in the order of the windows.

    Args:
        recipe: the settings.
        windows: the windows of each ticker.
    """
    by_ticker: Mapping[str, WindowSet] = {ticker_windows.ticker: ticker_windows for ticker_windows in windows}
    return [
        TrainingJob(
            None if recipe.adapter == "none" else recipe.adapter_name or group[0],
            [by_ticker[ticker] for ticker in group],
        )
        for group in group_tickers(recipe, by_ticker)
    ]
