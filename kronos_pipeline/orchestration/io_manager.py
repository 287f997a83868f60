"""Artifacts of one or of many tickers, where the plain command puts them: the same files through the same functions.

An asset gets and gives a mapping from ticker to artifact, whether its run has one partition or a thousand. What it gets
is loaded ticker by ticker when it is asked for, so that a damaged file is the failure of its own ticker, and memory
holds what is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from kronos_pipeline.artifacts import read_parquet
from kronos_pipeline.config import Role, settings_of
from kronos_pipeline.data.bars import Bars, load_bars, save_bars
from kronos_pipeline.data.windows import WindowSet, load_windows, save_windows
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.orchestration.failures import failures_of
from kronos_pipeline.orchestration.resources import PipelineSettings

WINDOW_SETTINGS = ("model_name", *sorted(settings_of(Role.WINDOWS | Role.HOLDOUT)))
"""Settings that windows are cut with; the model's name stands for its context."""


class TickerArtifacts(Mapping[str, Any]):
    """Artifacts by ticker, each loaded when it is asked for.

    A ticker's artifact that is missing or damaged raises `ArtifactError`, not `KeyError`.
    """

    def __init__(self, tickers: list[str], load: Callable[[str], Any]) -> None:
        self._tickers = tickers
        self._load = load

    def __getitem__(self, ticker: str) -> Any:
        if ticker not in self._tickers:
            raise KeyError(ticker)
        return self._load(ticker)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tickers)

    def __len__(self) -> int:
        return len(self._tickers)


class ArtifactIOManager(dg.IOManager):
    """Stores and loads bars, windows and what is trained or measured below one output folder.

    Champions are in the registry, and drift in the figures of its materialisations: of these nothing is stored here.
    """

    def __init__(self, settings: PipelineSettings) -> None:
        layout = self._layout = settings.layout
        self._settings = settings
        self._save: dict[str, Callable[[str, Any], None]] = {
            "raw_bars": self._save_bars,
            "windows": self._save_windows,
            **dict.fromkeys(("adapter", "holdout_metrics", "backtest", "forecast"), self._check_stored),
            **dict.fromkeys(("champion", "drift"), _kept_elsewhere),
        }
        self._load: dict[str, Callable[[str], Any]] = {
            "raw_bars": self._load_bars,
            "windows": self._load_windows,
            "adapter": lambda ticker: _there(layout.adapter(ticker), "adapter", ticker),
            "holdout_metrics": lambda ticker: _there(layout.ticker_forecasts(ticker), "holdout_metrics", ticker),
        }

    def handle_output(self, context: dg.OutputContext, obj: Mapping[str, Any]) -> None:
        """Store each ticker's artifact, atomically one by one; the artifact before is replaced."""
        asset = context.asset_key.to_user_string()
        with failures_of(asset):
            for ticker, artifact in obj.items():
                self._save[asset](ticker, artifact)

    def load_input(self, context: dg.InputContext) -> TickerArtifacts:
        """The artifacts of the partitions that the step depends on, by ticker."""
        return TickerArtifacts(sorted(context.asset_partition_keys), self._load[context.asset_key.to_user_string()])

    def _save_bars(self, ticker: str, bars: Bars) -> None:
        save_bars(self._layout.bars(ticker), bars)

    def _load_bars(self, ticker: str) -> Bars:
        return load_bars(_there(self._layout.bars(ticker), "raw_bars", ticker))

    def _save_windows(self, ticker: str, windows: WindowSet) -> None:
        save_windows(self._layout.windows(ticker), windows, self._settings.recipe("lora"))

    def _load_windows(self, ticker: str) -> WindowSet:
        path = _there(self._layout.windows(ticker), "windows", ticker)
        _, manifest = read_parquet(path)
        cut_with = {name: manifest.get("config", {}).get(name) for name in WINDOW_SETTINGS}
        asked_for = {name: getattr(self._settings, name) for name in WINDOW_SETTINGS}
        if differing := [f"{name} {cut_with[name]}" for name in WINDOW_SETTINGS if cut_with[name] != asked_for[name]]:
            raise ArtifactError(
                f"The windows of {ticker} were cut with {', '.join(differing)}, not with the settings of this run; "
                "materialise windows for it with these settings."
            )
        return load_windows(path, self._load_bars(ticker))

    def _check_stored(self, ticker: str, path: Path) -> None:
        # What trains or evaluates publishes it too, in one step; here is only looked for it.
        if not path.exists() or not path.resolve().is_relative_to(self._layout.root.resolve()):
            raise ArtifactError(f"{ticker}: {path} is not in the output folder; materialise it again.")


@dg.io_manager(required_resource_keys={"pipeline"}, description="Artifacts below the output folder, by ticker.")
def artifact_io_manager(context: dg.InitResourceContext) -> ArtifactIOManager:
    """The IO manager, for the output folder and the recipe of the run's settings."""
    return ArtifactIOManager(context.resources.pipeline)


def _kept_elsewhere(ticker: str, artifact: object) -> None:
    """For what the registry or Dagster itself keeps."""


def _there(path: Path, asset: str, ticker: str) -> Path:
    if not path.exists():
        raise ArtifactError(f"{ticker} has no {asset} yet ({path}); materialise {asset} for it first.")
    return path
