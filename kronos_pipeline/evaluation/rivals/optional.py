"""Rivals that a user asks for by `--rivals`: checked at the start, made ready once, and forecast for each ticker."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kronos_pipeline.data.purge import outdated_tickers, purge_overlapping_targets
from kronos_pipeline.errors import DataError
from kronos_pipeline.evaluation.predictions import CHRONOS, LIGHTGBM

if TYPE_CHECKING:
    import torch

    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet
    from kronos_pipeline.evaluation.rivals.chronos import ChronosModel

Origins = NDArray[np.int64]
PathForecaster = Callable[["WindowSet", Origins, Origins, "Recipe"], NDArray[np.float64]]
"""Takes a ticker's windows, the last known bar of each forecast, the bar after the last requested bar of each, and the
recipe; returns closes, (cutoffs, paths, horizon)."""
_PACKAGES = {LIGHTGBM: ("lightgbm", "mlforecast"), CHRONOS: ("chronos-forecasting", "transformers")}


@dataclass(frozen=True)
class OptionalRivals:
    """Rivals that are ready to forecast.

    Attributes:
        forecasters: a forecaster by model name.
        left_out: by ticker and model name, the reason that a rival does not forecast the ticker.
        provenance: by model name, the versions of its packages and the hash of its weights, for manifests.
        fit_seconds: by model name, the wall time of its fit over all tickers.
    """

    forecasters: dict[str, PathForecaster]
    left_out: dict[tuple[str, str], str]
    provenance: dict[str, dict[str, str]] = field(default_factory=dict)
    fit_seconds: dict[str, float] = field(default_factory=dict)

    def forecast(
        self, windows: WindowSet, origins: Origins, ends: Origins, recipe: Recipe
    ) -> tuple[dict[str, NDArray[np.float64]], list[str], dict[str, float]]:
        """Forecast a ticker.

        Args:
            windows: the ticker's windows.
            origins: index of the last known bar of each forecast, (cutoffs,).
            ends: index of the bar after the last requested bar of each forecast, (cutoffs,).
            recipe: horizon, minimum number of paths and seed.

        Returns:
            Closes by model, each (cutoffs, paths, horizon); a sentence per rival without a forecast; and the wall time
            of each forecast, in seconds, by model.

        Raises:
            ModelError: a forecast is not finite.
        """
        closes, seconds = {}, {}
        reasons = {name: reason for (ticker, name), reason in self.left_out.items() if ticker == windows.ticker}
        for name, forecaster in self.forecasters.items():
            if name not in reasons:
                began = time.perf_counter()
                try:
                    closes[name] = forecaster(windows, origins, ends, recipe)
                except DataError as error:
                    reasons[name] = error.problems[0].rule
                seconds[name] = time.perf_counter() - began
        notes = [f"{windows.ticker}: no {name} forecast: {reason}." for name, reason in reasons.items()]
        return closes, notes, seconds


NO_RIVALS = OptionalRivals({}, {})


def check_rivals(recipe: Recipe) -> None:
    """Check that the packages and the weights of the recipe's rivals are there; weights on the Hub are fetched.

    Raises:
        SettingsError: a package is missing.
        ModelError: Chronos-2 is missing or cannot be fetched.
    """
    from kronos_pipeline.evaluation.rivals import chronos, lightgbm

    for name in recipe.rivals:
        if name == LIGHTGBM:
            lightgbm.check_installed()
        else:
            chronos.check_installed()
            chronos.find_chronos_folder(name)


def prepare_rivals(recipe: Recipe, windows: Iterable[WindowSet], device: torch.device) -> OptionalRivals:
    """Fit and load the recipe's rivals, once for all tickers of an evaluation.

    LightGBM is fitted over all tickers, on the targets that a checkpoint over them would be trained on. A ticker whose
    bars end before another ticker's holdout begins gets no forecast, as the trees have seen later bars.

    Args:
        recipe: the rivals, the seed, and whether jumps are returns.
        windows: the tickers' windows; they are read if there is something to fit.
        device: the device of Chronos-2.

    Raises:
        SettingsError: a package is missing.
        ModelError: Chronos-2 is missing, damaged or cannot be fetched.
    """
    from kronos_pipeline.evaluation.rivals.lightgbm import fit_lightgbm, sample_lightgbm

    forecasters: dict[str, PathForecaster] = {}
    left_out: dict[tuple[str, str], str] = {}
    fit_seconds: dict[str, float] = {}
    for name in recipe.rivals:
        if name != LIGHTGBM:
            forecasters[CHRONOS] = partial(_sample_chronos, _loaded_chronos(name, device))
            continue
        known, began = list(windows), time.perf_counter()
        outdated = outdated_tickers(known)
        reason = "its bars end before the holdout of other tickers, whose later bars the trees have seen"
        left_out |= {(ticker, LIGHTGBM): reason for ticker in outdated}
        try:
            model = fit_lightgbm(purge_overlapping_targets(known, outdated), recipe)
        except DataError as error:
            left_out |= {(window_set.ticker, LIGHTGBM): error.problems[0].rule for window_set in known}
        else:
            forecasters[LIGHTGBM] = partial(sample_lightgbm, model)
        fit_seconds[LIGHTGBM] = time.perf_counter() - began
    return OptionalRivals(forecasters, left_out, rivals_provenance(recipe), fit_seconds)


def rivals_provenance(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Return what shapes the forecasts of the recipe's rivals, by model name: versions of packages, hash of weights."""
    from kronos_pipeline.evaluation.rivals.chronos import find_chronos_folder
    from kronos_pipeline.model.weights import WEIGHTS

    provenance = {}
    for name in recipe.rivals:
        kind = name.partition("=")[0]
        provenance[kind] = {package: importlib.metadata.version(package) for package in _PACKAGES[kind]}
        if kind == CHRONOS:
            _, folder = find_chronos_folder(name)
            state = (folder / WEIGHTS).stat()
            provenance[kind]["weights"] = _weights_hash(folder, state.st_mtime_ns, state.st_size)
    return provenance


@lru_cache
def _weights_hash(folder: Path, *_state: int) -> str:
    from kronos_pipeline.model.weights import weights_hash

    return weights_hash(folder)


@lru_cache(maxsize=1)
def _loaded_chronos(name: str, device: torch.device) -> ChronosModel:
    """Load Chronos-2; it is kept, as a backtest asks for it in every fold."""
    from kronos_pipeline.evaluation.rivals.chronos import load_chronos

    return load_chronos(name, device)


def _sample_chronos(
    model: ChronosModel, windows: WindowSet, origins: Origins, _ends: Origins, recipe: Recipe
) -> NDArray[np.float64]:
    from kronos_pipeline.evaluation.rivals.chronos import sample_chronos

    return sample_chronos(model, windows, origins, recipe)
