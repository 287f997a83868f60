"""Forecasts of Chronos-2 (Ansari et al., 2025, arXiv 2510.15821) through the package chronos-forecasting.

The model is used as published, without training. It reads the log closes up to the cutoff, relative to the last, and
forecasts quantiles of each bar ahead; `quantile_paths` makes paths of them. In logs no quantile is a negative price.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kronos_pipeline.artifacts import read_json
from kronos_pipeline.base_models import PINNED, WeightsSource
from kronos_pipeline.errors import ArtifactError, ModelError, SettingsError, enumerate_some, first_sentence
from kronos_pipeline.evaluation.rivals.history import draws_of, read_history
from kronos_pipeline.evaluation.rivals.quantile_paths import Floats, paths_of_quantiles
from kronos_pipeline.evaluation.rivals.volatility_rivals import MIN_PATHS

if TYPE_CHECKING:
    import torch

    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet

PUBLISHED = "amazon/chronos-2"
REVISION = "29ec3766d36d6f73f0696f85560a422f50e8498c"
ARCHITECTURE = "Chronos2Model"
MAX_HISTORY = 2048
"""Largest number of known bars that the model reads, or its context if that is shorter."""
SERIES_AT_ONCE = 64


@dataclass(frozen=True)
class ChronosModel:
    """A Chronos-2 model, ready to forecast.

    Attributes:
        pipeline: chronos-forecasting's pipeline around the model.
        source: the source of the weights.
    """

    pipeline: Any
    source: WeightsSource


def find_chronos(name: str) -> WeightsSource:
    """Look up the weights of a rival's name.

    Args:
        name: `chronos` for the published model at a pinned commit, `chronos=<local folder>`, or
            `chronos=owner/name@<40 hex digits>`.

    Raises:
        ModelError: there is no such folder, and the name is no Hub repository with its commit.
    """
    _, given, place = name.partition("=")
    if not given:
        return WeightsSource(PUBLISHED, repository=PUBLISHED, revision=REVISION)
    folder = Path(os.path.expanduser(place))  # noqa: PTH111 - leaves the ~ of an unknown user, where Path raises
    if place and folder.is_dir():
        return WeightsSource(place, folder=folder)
    if pinned := PINNED.fullmatch(place):
        return WeightsSource(place, repository=pinned["repository"], revision=pinned["revision"])
    raise ModelError(
        f"--rivals {name}: no folder of that name exists. Name a local folder with config.json and model.safetensors, "
        "or a Hub repository with its commit: chronos=owner/name@<40 hex digits>."
    )


def find_chronos_folder(name: str) -> tuple[WeightsSource, Path]:
    """Return the source of a rival's weights and their folder, fetched from the Hub unless they are cached.

    Raises:
        ModelError: there is no such model, it cannot be fetched, or it is of another architecture.
    """
    from kronos_pipeline.model.loading import download_command, find_folder
    from kronos_pipeline.model.weights import CONFIG, WEIGHTS

    source = find_chronos(name)
    ways_out = (
        f"Three ways out: --rivals chronos=<folder> with a local folder that holds {CONFIG} and {WEIGHTS}; fetch it "
        f"beforehand, where there is a network, with `{download_command(source)}`; or leave chronos out of --rivals."
    )
    folder = find_folder(source, ways_out)
    if missing := [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]:
        raise ModelError(f"--rivals {name}: {folder} holds no {' and no '.join(missing)}; name another folder.")
    _check_architecture(name, folder / CONFIG)
    return source, folder


def load_chronos(name: str, device: torch.device) -> ChronosModel:
    """Load a Chronos-2 model from safetensors to a device, strictly.

    Args:
        name: see `find_chronos`.
        device: the device.

    Raises:
        SettingsError: chronos-forecasting is not installed.
        ModelError: the model is missing, damaged, of another architecture, or cannot be fetched.
    """
    check_installed()
    from chronos import Chronos2Model, Chronos2Pipeline
    from transformers.utils.logging import disable_progress_bar

    from kronos_pipeline.model.weights import CONFIG, WEIGHTS

    source, folder = find_chronos_folder(name)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, loaded = Chronos2Model.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype="float32"
        )
    except Exception as error:  # transformers and safetensors raise many kinds
        raise ModelError(f"{folder} holds no readable Chronos-2 model ({first_sentence(error)}).") from error
    # transformers fills a missing tensor with random numbers, and says so in a log alone.
    if wrong := sorted({str(key) for kind in ("missing_keys", "mismatched_keys") for key in loaded[kind]}):
        raise ModelError(f"{folder / WEIGHTS} does not fit its {CONFIG}: {enumerate_some(wrong)}; download it again.")
    return ChronosModel(Chronos2Pipeline(model.to(device).eval()), source)


def sample_chronos(model: ChronosModel, windows: WindowSet, origins: NDArray[np.int64], recipe: Recipe) -> Floats:
    """Sample closes of a ticker, `(cutoffs, paths, horizon)`, in the file's unit.

    Args:
        model: the model.
        windows: the ticker's windows.
        origins: index of the last known bar of each forecast, `(cutoffs,)`.
        recipe: horizon, minimum number of paths, and seed.
    """
    close = windows.bars.frame["close"].to_numpy(np.float64)
    longest = min(MAX_HISTORY, model.pipeline.model_context_length)
    histories = [np.log(close[max(origin + 1 - longest, 0) : origin + 1]) for origin in origins]
    levels = sorted(model.pipeline.quantiles)
    quantiles = _forecast(model.pipeline, [history - history[-1] for history in histories], recipe.horizon, levels)
    if not np.isfinite(quantiles).all():
        raise ModelError(f"Chronos-2 ({model.source.name}) forecasts no finite numbers for {windows.ticker}.")
    history = read_history(windows.bars, windows.holdout_start)
    paths = max(recipe.eval_samples, MIN_PATHS)
    draws = draws_of(history, origins, recipe.seed, paths, recipe.horizon).normal()
    closes: Floats = close[origins][:, None, None] * np.exp(paths_of_quantiles(quantiles, levels, draws))
    return closes


def check_installed() -> None:
    """Check that the package of the extra `chronos` is installed.

    Raises:
        SettingsError: it is missing.
    """
    try:
        import chronos  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            "--rivals chronos needs the package chronos-forecasting: install the extra with "
            "`pip install -e '.[chronos]'`."
        ) from error


def _check_architecture(name: str, path: Path) -> None:
    try:
        config = read_json(path)
    except ArtifactError as error:
        raise ModelError(str(error)) from error
    if config.get("architectures") != [ARCHITECTURE] or not isinstance(config.get("chronos_config"), dict):
        found = ", ".join(map(str, config.get("architectures") or ["unknown"]))
        raise ModelError(f"--rivals {name}: {path} is of the architecture {found}, and {ARCHITECTURE} is needed.")


def _forecast(pipeline: Any, histories: Sequence[Floats], horizon: int, levels: Sequence[float]) -> Floats:
    """Return the quantiles of each series, `(series, horizon, levels)`."""
    import torch

    series = [torch.from_numpy(history).float() for history in histories]
    quantiles, _ = pipeline.predict_quantiles(
        series, prediction_length=horizon, quantile_levels=list(levels), batch_size=SERIES_AT_ONCE
    )
    return np.stack([forecast[0].numpy() for forecast in quantiles]).astype(np.float64)
