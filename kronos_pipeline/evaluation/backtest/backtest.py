"""Walk-forward backtest: train a recipe repeatedly on the bars up to a cutoff, and score it on the bars after it.

A fold's predictions are kept while its data, settings and code stay the same: a killed backtest resumes, and a backtest
with a few new bars computes only the new folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kronos_pipeline.artifacts import ArtifactLayout, read_manifest, read_parquet, write_report
from kronos_pipeline.atomic_writes import write_file
from kronos_pipeline.checksums import file_hash
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.errors import ArtifactError, KronosError, ModelError, count, group_messages
from kronos_pipeline.evaluation.backtest.fold_runs import (
    fold_key,
    fold_predictions_file,
    is_stored,
    prune_folds,
    run_folds,
)
from kronos_pipeline.evaluation.backtest.folds import BacktestError, Fold, plan_folds
from kronos_pipeline.evaluation.cost import measure_evaluation
from kronos_pipeline.evaluation.predictions import ADAPTER, BASE, trained_model
from kronos_pipeline.evaluation.provenance import manifest_of_ticker, merge_manifests
from kronos_pipeline.evaluation.rivals.optional import check_rivals
from kronos_pipeline.evaluation.scoring.calibration import calibrations
from kronos_pipeline.evaluation.scoring.report import build_evaluation, load_predictions, save_report, summarise
from kronos_pipeline.evaluation.scoring.verdicts import MIN_CUTOFFS
from kronos_pipeline.training.plan import group_tickers
from kronos_pipeline.training.progress import Progress, Say, duration, without_lines

if TYPE_CHECKING:
    from kronos_pipeline.model.loading import KronosModel

DEFAULT_ORIGINS = 12
"""Number of cutoffs of a backtest without `--backtest-origins`."""


@dataclass(frozen=True)
class Backtest:
    """The result of a backtest.

    Attributes:
        predictions: predictions of all tickers and cutoffs; see `evaluation.predictions`.
        evaluation: the result of `build_evaluation` over all tickers.
        skipped: the error of each ticker without a cutoff, a training or a forecast.
        plots: each ticker's plot files by kind, "steps" and "reliability".
    """

    predictions: pd.DataFrame
    evaluation: dict[str, Any]
    skipped: dict[str, KronosError]
    plots: dict[str, dict[str, Path]]


def run_backtest(
    layout: ArtifactLayout,
    bars: Mapping[str, Bars],
    recipe: Recipe,
    base: KronosModel,
    *,
    tickers_tested: int | None = None,
    say: Say = print,
) -> Backtest:
    """Backtest a recipe, and write `backtest/<trained>/<T>.*` and `backtest/<trained>.json`.

    Args:
        layout: the layout of the artifacts.
        bars: the tickers' bars.
        recipe: the recipe, with `backtest_origins` cutoffs per ticker, or `DEFAULT_ORIGINS` if that is 0. `trained` is
            the model that it trains, "adapter" or "checkpoint".
        base: the untouched base model.
        tickers_tested: number of tickers that verdicts are corrected for; by default the tickers with cutoffs.
        say: prints progress lines.

    Raises:
        BacktestError: no ticker has enough bars for a cutoff, or could be trained and forecast.
        SettingsError, ModelError, ArtifactError: see their messages.
    """
    check_rivals(recipe)
    recipe = recipe.model_copy(update={"backtest_origins": recipe.backtest_origins or DEFAULT_ORIGINS})
    trained = trained_model(recipe)
    groups = [{ticker: bars[ticker] for ticker in tickers} for tickers in group_tickers(recipe, bars)]
    folds, skipped = plan_folds(groups, recipe, _anchors(layout, trained, list(bars)))
    fold_folders = {layout.backtest_fold(fold_key(fold, base)): fold for fold in folds}
    new = {root: fold for root, fold in fold_folders.items() if not is_stored(root)}
    seconds = _expected_seconds(new, base, lora=trained == ADAPTER)
    say("\n".join(_announce(folds, len(new), seconds, skipped, recipe)))
    with Progress("backtest", len(new), say=without_lines(say)) as progress:
        for done, (root, result) in enumerate(run_folds(new, base, say), 1):
            if isinstance(result, KronosError):
                skipped |= dict.fromkeys((windows.ticker for windows in new[root].windows), result)
            else:
                say(f"backtest: {_describe_fold(result, trained)}; {done} of {len(new)}")
            progress.update(done, f"{done}/{len(new)} trainings")
    complete = [
        root
        for root, fold in fold_folders.items()
        if skipped.keys().isdisjoint(windows.ticker for windows in fold.windows)
    ]
    if not complete:
        raise BacktestError(skipped)
    parts = [read_parquet(fold_predictions_file(root)) for root in complete]
    tables, manifests = zip(*parts, strict=True)
    predictions: pd.DataFrame = pd.concat(tables, ignore_index=True)
    predictions = predictions.sort_values(["unique_id", "cutoff", "model", "step"], ignore_index=True)
    manifest = _merge(manifests) | {
        "data": {ticker: bars[ticker].content_hash for ticker in predictions["unique_id"].unique()}
    }
    evaluation = _save(layout, predictions, trained, manifest, skipped, tickers_tested)
    prune_folds(fold_folders)
    notes = [f"base model {base.source.label}"]
    plots = {
        str(ticker): _draw(layout, str(ticker), rows, trained, notes + _warnings_of(evaluation, str(ticker)))
        for ticker, rows in predictions.groupby("unique_id", sort=True)
    }
    return Backtest(predictions, evaluation, skipped, plots)


def combine_backtests(layout: ArtifactLayout, trained: str, tickers: Sequence[str]) -> dict[str, Any] | None:
    """Evaluate the stored backtests of some tickers together, and write `backtest/<trained>.json`.

    Returns:
        The evaluation, as `build_evaluation` makes it, or None if no ticker has a backtest.

    Raises:
        ArtifactError: all stored backtests are damaged; a single damaged one is skipped with its reason.
    """
    files = {ticker: layout.backtest(trained, ticker) for ticker in tickers}
    if not any(path.is_file() for path in files.values()):
        return None
    reasons = {ticker: "it has no backtest" for ticker, path in files.items() if not path.is_file()}
    for ticker, path in files.items():
        if ticker not in reasons:
            try:
                read_manifest(path)
            except ArtifactError as error:
                reasons[ticker] = str(error)
    predictions, manifest = load_predictions([path for ticker, path in files.items() if ticker not in reasons])
    skipped = [{"symbol": ticker, "reason": reason} for ticker, reason in reasons.items()]
    evaluation = build_evaluation(predictions, trained, skipped, manifest)
    write_report(layout.backtest_evaluation(trained), summarise(evaluation))
    return evaluation


def _anchors(layout: ArtifactLayout, trained: str, tickers: Sequence[str]) -> dict[str, pd.Timestamp]:
    """Return the newest cutoff of each ticker's last backtest; of a ticker without a backtest, the newest of all."""
    paths = {path.stem: path for path in layout.backtest(trained, "X").parent.glob("*.parquet")}
    newest = _newest_cutoffs([paths[ticker] for ticker in tickers if ticker in paths])
    if len(newest) < len(tickers):  # else the files of the other tickers, which may be thousands, are not read
        newest |= _newest_cutoffs([path for ticker, path in paths.items() if ticker not in newest])
    if not newest:
        return {}
    return {ticker: newest.get(ticker, max(newest.values())) for ticker in tickers}


def _newest_cutoffs(paths: Sequence[Path]) -> dict[str, pd.Timestamp]:
    """Return the newest cutoff of stored backtests by ticker, without those that are damaged: they are made anew."""
    newest: dict[str, pd.Timestamp] = {}
    for path in paths:
        with suppress(ArtifactError):
            newest[path.stem] = read_parquet(path)[0]["cutoff"].max()
    return newest


def _merge(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the manifests of all folds; a ticker's folds are listed in order."""
    folds: dict[str, list[Any]] = {}
    for manifest in manifests:
        for ticker, entries in manifest["folds"].items():
            folds.setdefault(ticker, []).extend(entries)
    # The newest fold's entries of a ticker stay, except that the contamination is the oldest fold's, and the share of
    # repaired bars is the mean over the folds.
    merged = merge_manifests(manifests)
    suspicions = merge_manifests([{"contamination": manifest["contamination"]} for manifest in reversed(manifests)])
    shares: dict[str, dict[str, list[float]]] = {}
    for manifest in manifests:
        for ticker, of_models in manifest["mended"].items():
            for name, share in of_models.items():
                shares.setdefault(ticker, {}).setdefault(name, []).append(share)
    mended = {
        ticker: {name: sum(values) / len(values) for name, values in of_models.items()}
        for ticker, of_models in shares.items()
    }
    return {**merged, **suspicions, "mended": mended, "folds": folds}


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
        report = build_evaluation(rows, trained, [], manifest_of_ticker(manifest, str(ticker)), tested)
        save_report(layout.backtest_report(trained, str(ticker)), path, report, rows)
        files.append(path)
    reasons = [{"symbol": ticker, "reason": str(error)} for ticker, error in skipped.items()]
    evaluation = build_evaluation(predictions, trained, reasons, manifest, tested)
    evaluation["files"] = {path.name: file_hash(path) for path in files}
    write_report(layout.backtest_evaluation(trained), summarise(evaluation))
    return evaluation


def _warnings_of(evaluation: Mapping[str, Any], ticker: str) -> list[str]:
    entry = next(entry for entry in evaluation["per_symbol"] if entry["symbol"] == ticker)
    return [entry["contamination"]] if entry["contamination"] else []


def _draw(
    layout: ArtifactLayout, ticker: str, rows: pd.DataFrame, trained: str, notes: Sequence[str]
) -> dict[str, Path]:
    """Draw the plots that need many forecasts: the error by bars ahead, and the calibration."""
    from kronos_pipeline.evaluation.reports.calibration_plots import calibration_plot, reliability_plot
    from kronos_pipeline.evaluation.reports.plots import steps_plot

    title = f"{ticker}: do the intervals of {trained} hold? Backtest"
    by_volatility = f"{ticker}: do the intervals of {trained} hold when it matters? Backtest"
    pictures = {
        "steps": steps_plot(rows, f"{ticker}: error by bars ahead, backtest", notes),
        "reliability": reliability_plot(rows[rows["model"] == trained], title, notes),
        "calibration": calibration_plot(calibrations(rows, [trained])[trained], by_volatility, notes),
    }
    paths = {kind: layout.picture(ticker, f"backtest-{kind}") for kind in pictures}
    for kind, path in paths.items():
        write_file(path, lambda handle, png=pictures[kind]: handle.write(png))  # type: ignore[misc]
    return paths


def _expected_seconds(new: Mapping[Path, Fold], base: KronosModel, *, lora: bool) -> float:
    """Estimate the maximum seconds of all folds, from a timed batch of the largest training and its forecasts."""
    from kronos_pipeline.training.trainer import KronosTrainer  # imports torch

    if not new:
        return 0.0
    root = max(new, key=lambda folder: _training_windows(new[folder]))
    ratio = sum(_training_windows(fold) for fold in new.values()) / _training_windows(new[root])
    trainer = KronosTrainer(new[root].recipe, root, base=base, say=lambda _: None)
    seconds = ratio * trainer.expected_seconds(new[root].known, lora=lora)
    with suppress(ModelError):  # the folds report it, by ticker
        cost = measure_evaluation(new[root].windows, new[root].recipe, base)
        seconds += sum(cost.seconds(fold.windows, fold.recipe, 2, reports=False) for fold in new.values())
    return seconds


def _announce(
    folds: Sequence[Fold], new: int, seconds: float, skipped: Mapping[str, KronosError], recipe: Recipe
) -> list[str]:
    """Return lines with the work of the backtest and its estimated time."""
    counts: dict[str, int] = {}
    for fold in folds:
        for windows in fold.windows:
            counts[windows.ticker] = counts.get(windows.ticker, 0) + windows.counts()["holdout"]
    fewest, most = min(counts.values(), default=0), max(counts.values(), default=0)
    spread = count(most, "cutoff") if fewest == most else f"{fewest} to {count(most, 'cutoff')}"
    reused = f" ({len(folds) - new} are kept from before)" if new < len(folds) else ""
    lines = [
        f"backtest of {count(len(counts), 'ticker')}: {spread} each, {recipe.horizon} bars apart; "
        f"{count(new, 'training')}{reused}, about {duration(seconds)} at most"
    ]
    short: list[tuple[str, str]] = []
    for ticker, cutoffs in counts.items():
        if cutoffs < recipe.backtest_origins:
            few = f"; a verdict needs {MIN_CUTOFFS}" if cutoffs < MIN_CUTOFFS else ""
            short.append((ticker, f"{cutoffs} of {recipe.backtest_origins} cutoffs have enough bars before them{few}"))
    short += [(ticker, f"no backtest: {error}") for ticker, error in skipped.items()]
    return lines + group_messages(short)


def _training_windows(fold: Fold) -> int:
    return sum(windows.counts()["train"] for windows in fold.known)


def _describe_fold(predictions: pd.DataFrame, trained: str) -> str:
    """Describe a fold in one line: tickers, cutoffs and scaled errors."""
    error = (predictions["mean"] - predictions["y"]).abs() / predictions["scale"]
    means = error.groupby(predictions["model"]).mean()
    shown = ", ".join(f"{name} {means[name]:.3g}" for name in (trained, BASE, "naive"))
    tickers = predictions["unique_id"].unique()
    who = tickers[0] if len(tickers) == 1 else f"{len(tickers)} tickers"
    first, last = predictions["cutoff"].min(), predictions["cutoff"].max()
    when = f"from {first:%Y-%m-%d}" if first == last else f"from {first:%Y-%m-%d} to {last:%Y-%m-%d}"
    return f"{who} {when}, scaled error {shown}"
