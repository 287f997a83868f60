"""The IO manager: artifacts by ticker, in the same files and through the same functions as the plain command.

An asset receives and returns a mapping from ticker to artifact, for a run of one partition or of a thousand. An input
is loaded ticker by ticker on access, so that a damaged file fails its own ticker only, and memory holds the artifacts
in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from kronos_pipeline.artifacts import read_manifest
from kronos_pipeline.config import Role, settings_of
from kronos_pipeline.data.bars import Bars, load_bars, save_bars
from kronos_pipeline.data.windows import WindowSet, build_windows, load_windows, save_windows
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.orchestration.failures import as_failure
from kronos_pipeline.orchestration.resources import PipelineSettings
from kronos_pipeline.orchestration.sharing import deliver_artifacts

WINDOW_SETTINGS = ("model_name", *sorted(settings_of(Role.WINDOWS | Role.HOLDOUT)))
"""Settings that shape windows; the model's name stands for its context."""


class TickerArtifacts(Mapping[str, Any]):
    """Artifacts by ticker, each loaded on access.

    The keys are the partitions that the step depends on. Artifacts of other tickers can be read too, as a run may take
    over the tickers of other runs. A missing or damaged artifact raises `ArtifactError`, not `KeyError`.
    """

    def __init__(self, tickers: list[str], load: Callable[[str], Any]) -> None:
        self._tickers = tickers
        self._load = load

    def __getitem__(self, ticker: str) -> Any:
        return self._load(ticker)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tickers)

    def __len__(self) -> int:
        return len(self._tickers)


class ArtifactIOManager(dg.IOManager):
    """Store and load the artifacts of an output folder.

    Champions are kept in the registry, and drift in the metadata of its materialisations; the manager stores neither.
    """

    def __init__(self, settings: PipelineSettings) -> None:
        layout = self._layout = settings.layout
        self._settings = settings
        self._save: dict[str, Callable[[str, Any], None]] = {
            "raw_bars": self._save_bars,
            "windows": self._save_windows,
            **dict.fromkeys(("adapter", "holdout_metrics", "backtest", "forecast", "track_record"), self._check_stored),
            **dict.fromkeys(("champion", "drift"), _not_stored),
        }
        self._load: dict[str, Callable[[str], Any]] = {
            "raw_bars": self._load_bars,
            "windows": self._load_windows,
            "adapter": lambda ticker: _require(layout.adapter(ticker), "adapter", ticker),
            "holdout_metrics": self._load_metrics,
        }

    def handle_output(self, context: dg.OutputContext, obj: Mapping[str, Any]) -> None:
        """Store each ticker's artifact atomically, replacing the artifact before, and give it to other machines."""
        asset = context.asset_key.to_user_string()
        with as_failure(asset):
            for ticker, artifact in obj.items():
                self._save[asset](ticker, artifact)
            deliver_artifacts(asset, self._layout, list(obj))

    def load_input(self, context: dg.InputContext) -> TickerArtifacts:
        """Return the artifacts of the partitions that the step depends on, by ticker."""
        load = self._load[context.asset_key.to_user_string()]
        return TickerArtifacts(sorted(context.asset_partition_keys), load)

    def _save_bars(self, ticker: str, bars: Bars) -> None:
        save_bars(self._layout.bars(ticker), bars)

    def _load_bars(self, ticker: str) -> Bars:
        return load_bars(_require(self._layout.bars(ticker), "raw_bars", ticker))

    def _save_windows(self, ticker: str, windows: WindowSet) -> None:
        save_windows(self._layout.windows(ticker), windows, self._settings.recipe("lora"))

    def _load_windows(self, ticker: str) -> WindowSet:
        """Load a ticker's windows; cut them anew if their settings or bars are not those of this run."""
        path, bars = self._layout.windows(ticker), self._load_bars(ticker)
        if path.exists():
            stored = read_manifest(path)
            settings = stored.get("config", {})
            same = all(settings.get(name) == getattr(self._settings, name) for name in WINDOW_SETTINGS)
            if same and stored.get("bars_hash") == bars.content_hash:
                return load_windows(path, bars)
        windows = build_windows(bars, self._settings.recipe("lora"))
        self._save_windows(ticker, windows)
        return windows

    def _load_metrics(self, ticker: str) -> Path:
        path = _require(self._layout.ticker_forecasts(ticker), "holdout_metrics", ticker)
        read_manifest(path)  # raises for a damaged file
        return path

    def _check_stored(self, ticker: str, path: Path) -> None:
        # Training and evaluation publish their artifacts themselves; the manager only checks that they exist.
        if not path.exists() or not path.resolve().is_relative_to(self._layout.root.resolve()):
            raise ArtifactError(f"{ticker}: {path} is not in the output folder; materialise it again.")


@dg.io_manager(required_resource_keys={"pipeline"}, description="Artifacts below the output folder, by ticker.")
def artifact_io_manager(context: dg.InitResourceContext) -> ArtifactIOManager:
    """Return the IO manager for the output folder and the recipe of the run's settings."""
    return ArtifactIOManager(context.resources.pipeline)


def _not_stored(ticker: str, artifact: object) -> None:
    """Store nothing: the registry or Dagster itself keeps the result."""


def _require(path: Path, asset: str, ticker: str) -> Path:
    if not path.exists():
        raise ArtifactError(f"{ticker} has no {asset} yet ({path}); materialise {asset} for it first.")
    return path
