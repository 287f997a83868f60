"""Provenance of an evaluation: the manifest of its tables and reports, contamination, and the sampling precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.artifacts import package_versions
from kronos_pipeline.code_version import code_version
from kronos_pipeline.data.windows import TOO_MANY_CUTOFFS

if TYPE_CHECKING:
    import torch

    from kronos_pipeline.base_models import BaseModelSource
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet

_PER_TICKER = (
    "data", "cutoffs_left_out", "contamination", "doubts", "mlflow_runs", "sampling", "mended", "weights", "folds",
    "group",
)  # fmt: skip
"""Entries with a value per ticker, by symbol."""


def evaluation_manifest(
    windows: Sequence[WindowSet],
    config: Recipe,
    base: BaseModelSource,
    device: str,
    mlflow_runs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the provenance of an evaluation: data, config, base model, code, packages, device, precision, MLflow runs.

    Args:
        windows: the evaluated tickers' windows.
        config: the run's settings.
        base: the base model.
        device: the device of the forecasts, such as "cpu".
        mlflow_runs: the id of the MLflow run that trained the ticker's model, by ticker.
    """
    contaminations = {
        window_set.ticker: contamination(base, window_set.bars.frame["timestamps"].iloc[window_set.holdout_start])
        for window_set in windows
    }
    return {
        "data": {window_set.ticker: window_set.bars.content_hash for window_set in windows},
        "cutoffs_left_out": {
            window_set.ticker: int(window_set.excluded.get(TOO_MANY_CUTOFFS, 0)) for window_set in windows
        },
        "contamination": {ticker: text for ticker, text in contaminations.items() if text},
        "base_model": {
            "name": base.name,
            "label": base.label,
            "demo": base.demo,
            "revision": base.predictor.revision,
            "tokenizer": base.tokenizer.name,
            "tokenizer_revision": base.tokenizer.revision,
        },
        "config": config.model_dump(mode="json"),
        **config.derived,
        "seed": config.seed,
        "samples": config.eval_samples,
        "device": device,
        "precision": sampling_precision(config.precision, device),
        "code_version": code_version(),
        "packages": package_versions(),
        "mlflow_runs": dict(mlflow_runs or {}),
    }


def merge_manifests(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge manifests: entries per ticker are joined, and differing entries are listed.

    An entry with one value in all manifests is kept; of a differing entry, "differing" lists the distinct values.
    """
    merged: dict[str, Any] = {}
    differing: dict[str, list[Any]] = {}
    for manifest in manifests:
        for key, value in manifest.items():
            if key in _PER_TICKER:
                merged.setdefault(key, {}).update(value)
            elif key in differing:
                differing[key] += [] if value in differing[key] else [value]
            elif merged.setdefault(key, value) != value:
                differing[key] = [merged.pop(key), value]
    return {**merged, "differing": differing} if differing else merged


def manifest_of_ticker(manifest: Mapping[str, Any], ticker: str) -> dict[str, Any]:
    """Return a manifest of several tickers without the entries of the other tickers."""
    return {
        key: {name: entry for name, entry in value.items() if name == ticker} if key in _PER_TICKER else value
        for key, value in manifest.items()
    }


def contamination(source: BaseModelSource, first_holdout: pd.Timestamp) -> str | None:
    """Return the warning that the base model may have seen the evaluated bars in pre-training, or None if it has not.

    Tables, plots, manifests and tags show the warning. A published base model learned from market bars up to May 2024,
    so scores on bars before June 2024 may show memory instead of skill; a local copy of a published model gets the same
    warning. For a model without a description the warning says that this is not known. Simulated bars give no reason
    for a warning.

    Args:
        source: the base model of the evaluated models.
        first_holdout: time of the first scored bar, in the file's own local time.
    """
    return source.contamination(first_holdout.to_pydatetime(warn=False))


def sampling_precision(precision: str, device: torch.device | str) -> str:
    """Return the number format of sampling on a device, "fp32" or "bf16", for a recipe's `precision`.

    "auto" means bf16 on a GPU with native bf16. On a CPU it means fp32, whatever a training there uses, so that a
    forecast is the same number on every CPU. fp16 is for training, which scales its losses; sampling uses fp32 instead.
    """
    if precision != "auto":
        return "bf16" if precision == "bf16" else "fp32"
    if not str(device).startswith("cuda"):
        return "fp32"
    import torch

    from kronos_pipeline.model.devices import has_native_bf16

    return "bf16" if has_native_bf16(torch.device(device)) else "fp32"
