"""What made an evaluation: the manifest that stands in its tables and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kronos_pipeline.artifacts import package_versions
from kronos_pipeline.code_version import code_version
from kronos_pipeline.data.windows import TOO_MANY_CUTOFFS
from kronos_pipeline.evaluation.contamination import contamination
from kronos_pipeline.evaluation.precision import sampling_precision

if TYPE_CHECKING:
    from kronos_pipeline.base_models import BaseModelSource
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet

_PER_TICKER = (
    "data", "cutoffs_left_out", "contamination", "doubts", "mlflow_runs", "sampling", "mended", "weights", "folds",
    "group",
)  # fmt: skip
"""Entries that hold something of each ticker, by symbol."""


def evaluation_manifest(
    windows: Sequence[WindowSet],
    config: Recipe,
    base: BaseModelSource,
    device: str,
    mlflow_runs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What made an evaluation: data, config, base model, code, packages, device, number format and MLflow runs.

    Args:
        windows: the evaluated tickers' windows.
        config: the run's settings.
        base: the base model.
        device: where the forecasts were made, such as "cpu".
        mlflow_runs: the id of the MLflow run that trained each ticker's model, by ticker.
    """
    suspicions = {
        one.ticker: contamination(base, one.bars.frame["timestamps"].iloc[one.holdout_start]) for one in windows
    }
    return {
        "data": {one.ticker: one.bars.content_hash for one in windows},
        "cutoffs_left_out": {one.ticker: int(one.excluded.get(TOO_MANY_CUTOFFS, 0)) for one in windows},
        "contamination": {ticker: text for ticker, text in suspicions.items() if text},
        "base_model": {
            "name": base.name,
            "label": base.label,
            "demo": base.demo,
            "revision": base.predictor.revision,
            "tokenizer": base.tokenizer.name,
            "tokenizer_revision": base.tokenizer.revision,
        },
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "samples": config.eval_samples,
        "device": device,
        "precision": sampling_precision(config.precision, device),
        "code_version": code_version(),
        "packages": package_versions(),
        "mlflow_runs": dict(mlflow_runs or {}),
    }


def merge_manifests(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One manifest of several: what was recorded per ticker is joined, and what differs between them is named.

    An entry that is the same in all stays as it is; of one that is not, "differing" lists the distinct values.
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
    """A manifest of several tickers, without what it records of the others."""
    return {
        key: {name: one for name, one in value.items() if name == ticker} if key in _PER_TICKER else value
        for key, value in manifest.items()
    }
