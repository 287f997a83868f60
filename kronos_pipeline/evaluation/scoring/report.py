"""Reports in `metrics/` and `backtest/`: predictions as parquet, with their scores and verdicts as JSON.

Every number of a `.json` can be recomputed from the `.parquet` of predictions beside it, and the errors of the mean
path from `forecasts.parquet` alone. The report of a ticker has everything; the report over all tickers has the scores
and verdicts of each, see `summarise`, so that it stays readable with tens of thousands of tickers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kronos_pipeline.artifacts import ArtifactLayout, read_json, read_parquet, write_parquet, write_report
from kronos_pipeline.atomic_writes import set_aside
from kronos_pipeline.checksums import file_hash
from kronos_pipeline.errors import ArtifactError, first_sentence
from kronos_pipeline.evaluation.predictions import (
    ENSEMBLE,
    EWMA,
    KRONOS,
    check_predictions,
    models_of,
    point_table,
    without_variants,
)
from kronos_pipeline.evaluation.provenance import merge_manifests
from kronos_pipeline.evaluation.scoring.calibration import calibrations, rejections
from kronos_pipeline.evaluation.scoring.information_coefficient import information_coefficient
from kronos_pipeline.evaluation.scoring.metrics import (
    METRICS,
    UNITS,
    Scores,
    mean_scores,
    score_as_judged,
    undefined_scores,
)
from kronos_pipeline.evaluation.scoring.model_confidence import compare_all
from kronos_pipeline.evaluation.scoring.targets import DISTRIBUTION, TARGETS, ChosenVariants, Target, judged_rows
from kronos_pipeline.evaluation.scoring.verdicts import Comparison, Verdicts, judge

Say = Callable[[str], None]
Judged = Mapping[Target, Mapping[str, Verdicts]]
"""The verdicts by target and model."""
_DETAILS = ("calibration", "model_confidence", "sampling")
"""Entries of a symbol that its own report has alone: three quarters of the bytes, and no table shows them."""


def build_evaluation(
    predictions: pd.DataFrame,
    trained: str,
    skipped: Sequence[Mapping[str, str]],
    manifest: Mapping[str, Any],
    tickers_tested: int | None = None,
) -> dict[str, Any]:
    """Score predictions, reach verdicts, and return the content of a report.

    `aggregate` is the mean of each metric over symbols with equal weight; its errors in price units mix prices of
    different size, its scaled errors and those in percent do not. The metrics at the top level are those of the trained
    model, as sampled. An undefined metric is null, and `undefined` beside it has the reason. `verdicts` has an entry
    for each target, model and rival, per symbol and, in `aggregate`, over all symbols. A Kronos model is scored and
    judged by the variant of its paths that was chosen for the target; `variants` names it. `model_confidence` compares
    all models and variants of a target jointly. `calibration` has an entry for the EWMA and for each Kronos model, in
    its variant for the distribution, see `scoring.calibration`.

    Args:
        predictions: a table of one symbol or more.
        trained: the model that this run trained, "adapter" or "checkpoint".
        skipped: {"symbol", "reason"} of each symbol without a forecast.
        manifest: the result of `evaluation_manifest`.
        tickers_tested: number of symbols that verdicts are corrected for; by default the symbols of the table.

    Raises:
        ArtifactError: there is no symbol at all, or the table is not one of predictions.
    """
    if predictions.empty:
        raise ArtifactError("No symbol was evaluated, so there are no metrics; correct the reported errors.")
    check_predictions(predictions)
    variants = variants_of(manifest)
    scores = score_as_judged(predictions, variants)
    judged = judge_targets(predictions, variants, tickers_tested)
    calibrated = judged_rows(predictions, DISTRIBUTION, variants)
    calibrated_by_symbol = dict(list(calibrated.groupby("unique_id")))
    per_symbol = [
        _symbol_entry(str(symbol), rows, scores[str(symbol)], trained, judged, manifest)
        for symbol, rows in predictions.groupby("unique_id", sort=True)
    ]
    for entry in per_symbol:
        entry["calibration"] = _calibrations(calibrated_by_symbol[entry["symbol"]])
    bases = manifest.get("differing", {}).get("base_model") or [manifest["base_model"]]
    return {
        "model": trained,
        "base_model": " / ".join(base["label"] for base in bases),
        "demo": any(base["demo"] for base in bases),
        "warnings": [*_warnings(manifest.get("contamination", {})), *_warnings(_sentences(manifest.get("doubts", {})))],
        "units": UNITS,
        "aggregate": _aggregate(predictions, per_symbol, trained, judged)
        | {"calibration": _overall_calibrations(calibrated, [entry["calibration"] for entry in per_symbol])},
        "per_symbol": per_symbol,
        "skipped": [dict(entry) for entry in skipped],
        "holdout": _span(predictions),
        "device": manifest.get("device"),
        "seed": manifest.get("seed"),
        "samples": manifest.get("samples"),
        "manifest": dict(manifest),
    }


def judge_targets(predictions: pd.DataFrame, variants: ChosenVariants, tickers_tested: int | None = None) -> Judged:
    """Compare each Kronos model of a table with the rivals of each target.

    Args:
        predictions: a table of one symbol or more.
        variants: the chosen variants of the models.
        tickers_tested: number of symbols that verdicts are corrected for; by default the symbols of the table.
    """
    models = [model for model in KRONOS if model in models_of(predictions)]
    rows = {target: judged_rows(predictions, target, variants) for target in TARGETS}
    return {
        target: {model: judge(rows[target], model, target=target, tickers_tested=tickers_tested) for model in models}
        for target in TARGETS
    }


def variants_of(manifest: Mapping[str, Any]) -> ChosenVariants:
    """Return the chosen variants by ticker, model and target from the manifest of an evaluation."""
    return {
        ticker: {model: sampling.get("variants", {}) for model, sampling in models.items()}
        for ticker, models in manifest.get("sampling", {}).items()
    }


def save_evaluation(
    layout: ArtifactLayout,
    predictions: pd.DataFrame,
    trained: str,
    skipped: Sequence[Mapping[str, str]],
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    """Write `metrics/predictions.parquet`, `forecasts.parquet` and `evaluation.json`; return the whole evaluation."""
    evaluation = build_evaluation(predictions, trained, skipped, manifest)
    origin = summarise_manifest(manifest)
    write_parquet(layout.forecasts, point_table(predictions), origin)
    write_parquet(layout.predictions, predictions, origin)
    evaluation["files"] = {path.name: file_hash(path) for path in (layout.predictions, layout.forecasts)}
    write_report(layout.evaluation, summarise(evaluation))
    return evaluation


def save_ticker_evaluation(
    layout: ArtifactLayout,
    predictions: pd.DataFrame,
    trained: str,
    manifest: Mapping[str, Any],
    tickers_tested: int | None = None,
) -> dict[str, Any]:
    """Write one ticker's `metrics/<T>.parquet` and `metrics/<T>.json`, in the same form; return the latter."""
    if len(symbols := predictions["unique_id"].unique()) != 1:
        raise ArtifactError(f"Expected the forecasts of 1 symbol, found {len(symbols)} symbols; evaluate each alone.")
    ticker = str(symbols[0])
    evaluation = build_evaluation(predictions, trained, [], manifest, tickers_tested)
    return save_report(layout.ticker_metrics(ticker), layout.ticker_forecasts(ticker), evaluation, predictions)


def save_report(
    path: Path, predictions_path: Path, evaluation: dict[str, Any], predictions: pd.DataFrame
) -> dict[str, Any]:
    """Write predictions and the evaluation that follows from them; return the latter, with the file's hash."""
    write_parquet(predictions_path, predictions, evaluation["manifest"])
    # Two files cannot be replaced as one; the hash tells a reader whether these numbers are of the table beside.
    evaluation = {**evaluation, "files": {predictions_path.name: file_hash(predictions_path)}}
    write_report(path, evaluation)
    return evaluation


def summarise(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return an evaluation of many symbols without the details that the report of each symbol has.

    Per symbol these stay: every score of every model as sampled, the reasons of the trained model's undefined scores,
    and the verdicts on the trained model and on the ensemble of its seeds. The aggregate is complete. A symbol takes
    about 14 kB, and 70 kB with the details.

    Args:
        evaluation: the result of `build_evaluation`.
    """
    judged = {evaluation["model"], ENSEMBLE}
    per_symbol = [
        {
            **{key: value for key, value in entry.items() if key not in _DETAILS},
            "models": {name: _without_reasons(entry["models"][name]) for name in without_variants(entry["models"])},
            "verdicts": {
                target: {model: verdicts for model, verdicts in models.items() if model in judged}
                for target, models in entry["verdicts"].items()
            },
        }
        for entry in evaluation["per_symbol"]
    ]
    return {**evaluation, "per_symbol": per_symbol, "manifest": summarise_manifest(evaluation["manifest"])}


def _without_reasons(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {metric: value for metric, value in scores.items() if metric != "undefined"}


def summarise_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of an evaluation with the chosen variants as all of the sampling, and without the folds.

    Arrow reads no Parquet file with a manifest of more than about 70 MB. `group` has all symbols for each symbol.
    """
    chosen = {
        ticker: {model: {"variants": of_targets} for model, of_targets in models.items()}
        for ticker, models in variants_of(manifest).items()
    }
    kept = {key: value for key, value in manifest.items() if key not in ("folds", "group")}
    return {**kept, "sampling": chosen} if "sampling" in manifest else kept


def load_evaluation(layout: ArtifactLayout, say: Say) -> dict[str, Any] | None:
    """Read `metrics/evaluation.json`; return None if there is none.

    It only sums up the evaluations of the tickers, so a damaged file stops no ticker: it is renamed to `*.damaged`,
    with a line, and the next evaluation makes it anew.
    """
    try:
        return read_json(layout.evaluation) if layout.evaluation.exists() else None
    except ArtifactError as error:
        try:
            kept = f"it is now {set_aside(layout.evaluation).name}"
        except OSError as failed:
            kept = f"it cannot be renamed ({failed.strerror})"
        say(f"{layout.evaluation} is damaged: {kept}; the next training makes it anew ({first_sentence(error)})")
        return None


def load_predictions(paths: Sequence[Path]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read and concatenate the predictions of several tickers, and merge their manifests.

    Raises:
        ArtifactError: a file is missing or damaged, or none is given.
    """
    if not paths:
        raise ArtifactError("No symbol has been evaluated yet; evaluate one first.")
    tables, manifests = zip(*(read_parquet(path) for path in paths), strict=True)
    return pd.concat(tables, ignore_index=True), merge_manifests(manifests)


def _symbol_entry(
    symbol: str,
    rows: pd.DataFrame,
    models: Mapping[str, Scores],
    trained: str,
    judged: Judged,
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    trained_scores = models.get(trained) or undefined_scores(f"no forecast of the {trained} model")
    return {
        "symbol": symbol,
        **trained_scores,
        "bars": len(rows[["ds", "cutoff"]].drop_duplicates()),
        "cutoffs": int(rows["cutoff"].nunique()),
        "cutoffs_left_out": int(manifest.get("cutoffs_left_out", {}).get(symbol, 0)),
        "holdout": _span(rows),
        "contamination": manifest.get("contamination", {}).get(symbol),
        "doubts": manifest.get("doubts", {}).get(symbol, {}),
        "models": {**models, trained: trained_scores},
        "verdicts": _verdicts(judged, lambda verdicts: verdicts.per_symbol.get(symbol, {})),
        "variants": variants_of(manifest).get(symbol, {}),
        "model_confidence": {target: compare_all(rows, target).as_dict() for target in TARGETS},
        "sampling": manifest.get("sampling", {}).get(symbol, {}),
        "mended": manifest.get("mended", {}).get(symbol, {}),
    }


def _aggregate(
    predictions: pd.DataFrame, per_symbol: Sequence[Mapping[str, Any]], trained: str, judged: Judged
) -> dict[str, Any]:
    names = list(dict.fromkeys(name for entry in per_symbol for name in entry["models"]))
    scores = {name: [entry["models"][name] for entry in per_symbol if name in entry["models"]] for name in names}
    present = models_of(predictions)
    means = {
        name: {
            **mean_scores(scores[name]),
            "symbols": len(scores[name]),
            **(information_coefficient(predictions, name).as_dict() if name in present else {}),
        }
        for name in names
    }
    return {
        "symbols_evaluated": len(per_symbol),
        **{key: value for key, value in means[trained].items() if key in (*METRICS, "undefined")},
        **{key: sum(entry[key] for entry in per_symbol) for key in ("bars", "cutoffs", "cutoffs_left_out")},
        "models": means,
        "verdicts": _verdicts(judged, lambda verdicts: verdicts.overall),
        "model_confidence": {target: compare_all(predictions, target).as_dict() for target in TARGETS},
    }


def _verdicts(judged: Judged, comparisons_of: Callable[[Verdicts], Mapping[str, Comparison]]) -> dict[str, Any]:
    """Return the comparisons for JSON, by target, model and rival."""
    return {
        target: {
            model: {rival: comparison.as_dict() for rival, comparison in comparisons.items()}
            for model, verdicts in models.items()
            if (comparisons := comparisons_of(verdicts))
        }
        for target, models in judged.items()
    }


def _calibrations(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Describe the calibration of the EWMA and of each Kronos model with forecasts."""
    present = models_of(rows)
    return calibrations(rows, [model for model in (EWMA, *KRONOS) if model in present])


def _overall_calibrations(
    rows: pd.DataFrame, of_symbols: Sequence[Mapping[str, Mapping[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """Describe the calibration over all symbols, with the number of symbols whose tests reject it."""
    return {
        model: entry | {"rejections": rejections([symbol[model] for symbol in of_symbols if model in symbol])}
        for model, entry in _calibrations(rows).items()
    }


def _sentences(doubts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {ticker: "; ".join(dict.fromkeys(of_models.values())) for ticker, of_models in doubts.items()}


def _warnings(suspicions: Mapping[str, str]) -> list[str]:
    """Return each sentence once, after its tickers."""
    tickers: dict[str, list[str]] = {}
    for ticker, sentence in sorted(suspicions.items()):
        tickers.setdefault(sentence, []).append(ticker)
    return [f"{', '.join(names)}: {sentence}" for sentence, names in tickers.items()]


def _span(rows: pd.DataFrame) -> dict[str, str]:
    """First and last evaluated bar, ISO 8601 in the file's own time."""
    return {"first": rows["ds"].min().isoformat(), "last": rows["ds"].max().isoformat()}
