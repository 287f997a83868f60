"""`evaluation.json` and `forecasts.parquet`: the scores of the model that a run trained, beside naive and the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.artifacts import (
    ArtifactLayout,
    code_version,
    file_hash,
    package_versions,
    read_parquet,
    write_json,
    write_parquet,
)
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.evaluation.forecasts import NAIVE
from kronos_pipeline.evaluation.metrics import METRICS, UNITS, Scores, better, mean_scores, score, undefined_scores
from kronos_pipeline.evaluation.tables import evaluation_markdown, evaluation_table

if TYPE_CHECKING:
    from kronos_pipeline.base_models import BaseModelSource
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.windows import WindowSet

__all__ = [
    "build_evaluation",
    "evaluation_manifest",
    "evaluation_markdown",
    "evaluation_table",
    "load_ticker_forecasts",
    "merge_manifests",
    "save_evaluation",
    "save_ticker_evaluation",
]

BASE = "base"
_LEFT_OUT = "cutoffs above --max-cutoffs"
_PER_TICKER = ("data", "cutoffs_left_out", "mlflow_runs")


def evaluation_manifest(
    windows: Sequence[WindowSet],
    config: Recipe,
    base: BaseModelSource,
    device: str,
    mlflow_runs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What made an evaluation: data, config, base model, code, packages, device and MLflow runs.

    Args:
        windows: the evaluated tickers' windows.
        config: the run's settings.
        base: the base model.
        device: where the forecasts were made, such as "cpu".
        mlflow_runs: the id of the MLflow run that trained each ticker's model, by ticker.
    """
    return {
        "data": {one.ticker: one.bars.content_hash for one in windows},
        "cutoffs_left_out": {one.ticker: int(one.excluded.get(_LEFT_OUT, 0)) for one in windows},
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
        "code_version": code_version(),
        "packages": package_versions(),
        "mlflow_runs": dict(mlflow_runs or {}),
    }


def merge_manifests(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One manifest of several: what was recorded per ticker is joined, and what differs between them is named.

    An entry that is the same in all stays as it is; of one that is not, "differing" lists the distinct values.
    """
    merged: dict[str, Any] = {key: {} for key in _PER_TICKER}
    differing: dict[str, list[Any]] = {}
    for manifest in manifests:
        for key, value in manifest.items():
            if key in _PER_TICKER:
                merged[key].update(value)
            elif key in differing:
                differing[key] += [] if value in differing[key] else [value]
            elif merged.setdefault(key, value) != value:
                differing[key] = [merged.pop(key), value]
    return {**merged, "differing": differing} if differing else merged


def build_evaluation(
    forecasts: pd.DataFrame, trained: str, skipped: Sequence[Mapping[str, str]], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Score forecasts, and put together what `evaluation.json` holds.

    `aggregate` is the mean over symbols of each symbol's metric, every symbol weighing the same; its MAE and RMSE mix
    prices of different size, its MAPE does not. The plain `mae`, `rmse` and `mape` are those of the trained model. A
    metric that is undefined is null, and `undefined` beside it says why. `beats_naive` and `beats_base` compare two
    MAEs (null where there is none) and say nothing of chance.

    Args:
        forecasts: a table as `forecast_holdout` makes it, of one symbol or more.
        trained: the column of the model that this run trained, "adapter" or "checkpoint".
        skipped: {"symbol", "reason"} of each symbol that has no forecast.
        manifest: as `evaluation_manifest` makes it.

    Raises:
        ArtifactError: there is no symbol at all, or the table is not a forecast table.
    """
    if forecasts.empty:
        raise ArtifactError("No symbol was evaluated, so there are no metrics; mend what each was skipped for.")
    scores = score(forecasts)
    left_out = manifest.get("cutoffs_left_out", {})
    per_symbol = [
        _symbol_entry(str(symbol), rows, scores[str(symbol)], trained, int(left_out.get(symbol, 0)))
        for symbol, rows in forecasts.groupby("unique_id", sort=True)
    ]
    bases = manifest.get("differing", {}).get("base_model") or [manifest["base_model"]]
    return {
        "model": trained,
        "base_model": " / ".join(base["label"] for base in bases),
        "demo": any(base["demo"] for base in bases),
        "units": UNITS,
        "aggregate": _aggregate(per_symbol, trained),
        "per_symbol": per_symbol,
        "skipped": [dict(one) for one in skipped],
        "holdout": _span(forecasts),
        "device": manifest.get("device"),
        "seed": manifest.get("seed"),
        "samples": manifest.get("samples"),
        "manifest": dict(manifest),
    }


def save_evaluation(
    layout: ArtifactLayout,
    forecasts: pd.DataFrame,
    trained: str,
    skipped: Sequence[Mapping[str, str]],
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    """Write `metrics/forecasts.parquet` and `metrics/evaluation.json`; return the latter, see `build_evaluation`."""
    return _save(layout.forecasts, layout.evaluation, forecasts, trained, skipped, manifest)


def save_ticker_evaluation(
    layout: ArtifactLayout, forecasts: pd.DataFrame, trained: str, manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Write one ticker's `metrics/<T>.parquet` and `metrics/<T>.json`, in the same form; return the latter."""
    if len(symbols := forecasts["unique_id"].unique()) != 1:
        raise ArtifactError(f"One symbol's forecasts were expected, not those of {len(symbols)}; evaluate one by one.")
    ticker = str(symbols[0])
    return _save(layout.ticker_forecasts(ticker), layout.ticker_metrics(ticker), forecasts, trained, [], manifest)


def load_ticker_forecasts(layout: ArtifactLayout, tickers: Sequence[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Put the forecasts of several tickers' `metrics/<T>.parquet` together, and their manifests.

    Raises:
        ArtifactError: a ticker has none, it is damaged, or no ticker is given.
    """
    if not tickers:
        raise ArtifactError("No symbol has holdout metrics yet; evaluate one first.")
    tables, manifests = zip(*(read_parquet(layout.ticker_forecasts(ticker)) for ticker in tickers), strict=True)
    return pd.concat(tables, ignore_index=True), merge_manifests(manifests)


def _save(
    forecasts_path: Path,
    evaluation_path: Path,
    forecasts: pd.DataFrame,
    trained: str,
    skipped: Sequence[Mapping[str, str]],
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    evaluation = build_evaluation(forecasts, trained, skipped, manifest)
    write_parquet(forecasts_path, forecasts, dict(manifest))
    # Two files cannot be replaced as one; the hash tells a reader whether these numbers are of the forecasts beside.
    evaluation["files"] = {forecasts_path.name: file_hash(forecasts_path)}
    write_json(evaluation_path, evaluation)
    return evaluation


def _symbol_entry(
    symbol: str, rows: pd.DataFrame, models: Mapping[str, Scores], trained: str, left_out: int
) -> dict[str, Any]:
    own = models.get(trained) or undefined_scores(f"no forecast of the {trained} model")
    return {
        "symbol": symbol,
        **own,
        "beats_naive": better(own, models.get(NAIVE)),
        "beats_base": better(own, models.get(BASE)),
        "bars": len(rows),
        "cutoffs": int(rows["cutoff"].nunique()),
        "cutoffs_left_out": left_out,
        "holdout": _span(rows),
        "models": {**models, trained: own},
    }


def _aggregate(per_symbol: Sequence[Mapping[str, Any]], trained: str) -> dict[str, Any]:
    names = list(dict.fromkeys(name for entry in per_symbol for name in entry["models"]))
    scores = {name: [entry["models"][name] for entry in per_symbol if name in entry["models"]] for name in names}
    means = {name: {**mean_scores(scores[name]), "symbols": len(scores[name])} for name in names}
    return {
        "symbols_evaluated": len(per_symbol),
        **{key: value for key, value in means[trained].items() if key in (*METRICS, "undefined")},
        "symbols_beating_naive": sum(entry["beats_naive"] is True for entry in per_symbol),
        "symbols_beating_base": sum(entry["beats_base"] is True for entry in per_symbol),
        **{key: sum(entry[key] for entry in per_symbol) for key in ("bars", "cutoffs", "cutoffs_left_out")},
        "models": means,
    }


def _span(rows: pd.DataFrame) -> dict[str, str]:
    """First and last evaluated bar, ISO 8601 in the file's own time."""
    return {"first": rows["ds"].min().isoformat(), "last": rows["ds"].max().isoformat()}
