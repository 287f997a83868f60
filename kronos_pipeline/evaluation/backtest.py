"""Walk-forward backtest: the recipe trained again and again on what was known, and scored on what came next.

A fold's predictions are kept until the backtest has ended: one that was killed goes on where it was.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.artifacts import (
    ArtifactLayout,
    code_version,
    file_hash,
    read_parquet,
    text_hash,
    write_json,
    write_parquet,
)
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.errors import KronosError
from kronos_pipeline.evaluation.candidates import Candidate, how_sampled, sampling_of
from kronos_pipeline.evaluation.folds import Fold, plan_folds
from kronos_pipeline.evaluation.forecasts import predict
from kronos_pipeline.evaluation.predictions import ADAPTER, BASE
from kronos_pipeline.evaluation.report import (
    build_evaluation,
    evaluation_manifest,
    manifest_of_ticker,
    merge_manifests,
    save_report,
)
from kronos_pipeline.evaluation.verdicts import MIN_CUTOFFS
from kronos_pipeline.training.progress import Say, duration

if TYPE_CHECKING:
    from kronos_pipeline.model.loading import KronosModel
    from kronos_pipeline.training.trainer import KronosTrainer

DEFAULT_ORIGINS = 12
"""Cutoffs where a backtest is asked for and `--backtest-origins` is not given."""
_PREDICTIONS = "predictions.parquet"


@dataclass(frozen=True)
class Backtest:
    """What a backtest found.

    Attributes:
        predictions: of all tickers and cutoffs; see `evaluation.predictions`.
        evaluation: as `build_evaluation` makes it, over all tickers.
        skipped: tickers that have no cutoff, and why.
    """

    predictions: pd.DataFrame
    evaluation: dict[str, Any]
    skipped: dict[str, KronosError]


def run_backtest(
    layout: ArtifactLayout,
    bars: Mapping[str, Bars],
    recipe: Recipe,
    base: KronosModel,
    *,
    trained: str,
    tickers_tested: int | None = None,
    say: Say = print,
) -> Backtest:
    """Backtest a recipe, and write `backtest/<trained>/<T>.*` and `backtest/<trained>.json`.

    Args:
        layout: where artifacts lie.
        bars: the tickers' bars.
        recipe: with `backtest_origins` cutoffs per ticker, or `DEFAULT_ORIGINS` where that is 0.
        base: the untouched base model.
        trained: "adapter", one per ticker or, with `adapter_name`, one over all; or "checkpoint", one over all.
        tickers_tested: tickers that verdicts are corrected for; by default those that have cutoffs.
        say: takes lines for the person who runs the pipeline.

    Raises:
        DataError: no ticker has bars enough for one cutoff.
        SettingsError, ModelError, ArtifactError: see their messages.
    """
    from kronos_pipeline.training.trainer import KronosTrainer  # imports torch

    recipe = recipe.model_copy(update={"backtest_origins": recipe.backtest_origins or DEFAULT_ORIGINS})
    alone = trained == ADAPTER and recipe.adapter_name is None
    groups = [{ticker: one} for ticker, one in bars.items()] if alone else [bars]
    folds, skipped = plan_folds(groups, recipe)

    def trainer_of(fold: Fold) -> KronosTrainer:
        folder = layout.backtest_fold(_key(fold, trained, base))
        return KronosTrainer(fold.recipe, folder, base=base, say=lambda _: None)

    say(
        _announce(
            folds, skipped, recipe, lambda fold: trainer_of(fold).expected_seconds(fold.known, lora=trained == ADAPTER)
        )
    )
    began, parts = time.monotonic(), []
    for number, fold in enumerate(folds, 1):
        parts.append(_run_fold(fold, trainer_of(fold), trained))
        left = (time.monotonic() - began) / number * (len(folds) - number)
        say(f"backtest: {_describe(parts[-1][0], trained)}; {number} of {len(folds)}, about {duration(left)} left")
    tables, manifests = zip(*parts, strict=True)
    predictions = pd.concat(tables, ignore_index=True).sort_values(["unique_id", "cutoff", "model", "step"])
    predictions = predictions.reset_index(drop=True)
    evaluation = _save(layout, predictions, trained, _merge(manifests), skipped, tickers_tested)
    for fold in folds:
        shutil.rmtree(layout.backtest_fold(_key(fold, trained, base)), ignore_errors=True)
    return Backtest(predictions, evaluation, skipped)


def _key(fold: Fold, trained: str, base: KronosModel) -> str:
    settings = json.dumps(fold.recipe.model_dump(mode="json"), sort_keys=True)
    data = [one.bars.content_hash for one in fold.windows]
    return text_hash(trained, settings, base.weights_hash, code_version(), *data)[:32]


def _run_fold(fold: Fold, trainer: KronosTrainer, trained: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Train and forecast one fold, or find what was made of it before; its predictions and their manifest."""
    from kronos_pipeline.model.loading import load_checkpoint
    from kronos_pipeline.model.lora import load_adapter

    path = trainer.layout.root / _PREDICTIONS
    if path.is_file():
        return read_parquet(path)
    recipe, base = fold.recipe, trainer.base
    if trained == ADAPTER:
        result = trainer.train_adapter(fold.known, recipe.adapter_name or fold.windows[0].ticker)
        model = load_adapter(result.folder, base)
    else:
        result = trainer.train_checkpoint(fold.known)
        model = load_checkpoint(result.folder, base)
    candidates = {BASE: Candidate(base, trainer.layout.base), trained: Candidate(model, result.folder)}
    seen = {name: result.summary[name] for name in ("steps", "best_step", "selection_loss", "seconds")}
    tables, manifests = [], []
    for one in fold.windows:
        samplings = {name: sampling_of(candidate, one, recipe) for name, candidate in candidates.items()}
        models = {name: candidate.model for name, candidate in candidates.items()}
        forecasts = predict(one, models, samplings, recipe)
        tables.append(forecasts.predictions)
        stamps = one.bars.frame["timestamps"]
        cutoffs = [stamps.iloc[origin].isoformat() for origin in one.of_split("holdout")["origin"]]
        manifests.append(
            evaluation_manifest([one], recipe, base.source, str(base.device))
            | how_sampled(one.ticker, samplings, forecasts)
            | {"folds": {one.ticker: [{"cutoffs": cutoffs, **seen}]}}
        )
    predictions, manifest = pd.concat(tables, ignore_index=True), merge_manifests(manifests)
    write_parquet(path, predictions, manifest)
    for entry in trainer.layout.root.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
    return predictions, manifest


def _merge(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One manifest of all folds; a ticker's folds are listed one after another."""
    folds: dict[str, list[Any]] = {}
    for manifest in manifests:
        for ticker, some in manifest["folds"].items():
            folds.setdefault(ticker, []).extend(some)
    # The newest fold's entries stay where a ticker has several, but for what may have been seen in pre-training.
    merged = merge_manifests(manifests)
    suspicions = merge_manifests([{"contamination": one["contamination"]} for one in reversed(manifests)])
    return {**merged, **suspicions, "folds": folds}


def _save(
    layout: ArtifactLayout,
    predictions: pd.DataFrame,
    trained: str,
    manifest: dict[str, Any],
    skipped: Mapping[str, KronosError],
    tickers_tested: int | None,
) -> dict[str, Any]:
    tickers = predictions["unique_id"].unique()
    tested = max(tickers_tested or 0, len(tickers))
    files = []
    for ticker, rows in predictions.groupby("unique_id", sort=True):
        path = layout.backtest(trained, str(ticker))
        own = manifest_of_ticker(manifest, str(ticker))
        report = build_evaluation(rows, trained, [], own, tested)
        save_report(layout.backtest_report(trained, str(ticker)), path, report, rows)
        files.append(path)
    reasons = [{"symbol": ticker, "reason": str(error)} for ticker, error in skipped.items()]
    evaluation = build_evaluation(predictions, trained, reasons, manifest, tested)
    evaluation["files"] = {path.name: file_hash(path) for path in files}
    write_json(layout.backtest_evaluation(trained), evaluation)
    return evaluation


def _announce(
    folds: Sequence[Fold], skipped: Mapping[str, KronosError], recipe: Recipe, seconds_of: Callable[[Fold], float]
) -> str:
    """What the backtest will do and cost, in lines."""
    counts: dict[str, int] = {}
    for fold in folds:
        for one in fold.windows:
            counts[one.ticker] = counts.get(one.ticker, 0) + one.counts()["holdout"]
    largest = max(folds, key=_training_windows)
    share = sum(_training_windows(fold) for fold in folds) / _training_windows(largest)
    lines = [
        f"backtest: {sum(counts.values())} cutoffs of {len(counts)} tickers, {recipe.horizon} bars apart; "
        f"{len(folds)} trainings, about {duration(seconds_of(largest) * share)} at most, and the sampling"
    ]
    for ticker, found in counts.items():
        if found < recipe.backtest_origins:
            few = f"; a verdict needs {MIN_CUTOFFS}" if found < MIN_CUTOFFS else ""
            lines.append(f"{ticker}: {found} of {recipe.backtest_origins} cutoffs have enough bars before them{few}")
    lines += [f"{ticker}: no backtest: {error}" for ticker, error in skipped.items()]
    return "\n".join(lines)


def _training_windows(fold: Fold) -> int:
    return sum(one.counts()["train"] for one in fold.known)


def _describe(predictions: pd.DataFrame, trained: str) -> str:
    """A fold in one line: whose, from which cutoffs, and the scaled errors."""
    error = (predictions["mean"] - predictions["y"]).abs() / predictions["scale"]
    means = error.groupby(predictions["model"]).mean()
    shown = ", ".join(f"{name} {means[name]:.3g}" for name in (trained, BASE, "naive"))
    tickers = predictions["unique_id"].unique()
    who = tickers[0] if len(tickers) == 1 else f"{len(tickers)} tickers"
    first, last = predictions["cutoff"].min(), predictions["cutoff"].max()
    when = f"from {first:%Y-%m-%d}" if first == last else f"from {first:%Y-%m-%d} to {last:%Y-%m-%d}"
    return f"{who} {when}, scaled error {shown}"
