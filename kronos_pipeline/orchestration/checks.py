"""Asset checks: completeness of a run, and soundness of stored artifacts; `verdict_checks.py` has the verdicts.

Each check has the tickers' partitions, or it would run over every ticker regardless of the run's range. In a run of
several tickers a check yields an evaluation for each ticker to which it applies.
"""

# Annotations are not postponed here: Dagster reads the annotation of `context` and refuses a string.
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import dagster as dg
import numpy as np
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.storage.event_log.base import AssetEventSummaryRecord

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.data.bars import load_bars
from kronos_pipeline.data.normalisation import lookback_statistics
from kronos_pipeline.data.windows import load_windows, row_statistics
from kronos_pipeline.errors import KronosError, enumerate_some
from kronos_pipeline.orchestration.failures import make_failure
from kronos_pipeline.orchestration.newest_events import newest_summaries
from kronos_pipeline.orchestration.resources import PipelineSettings
from kronos_pipeline.orchestration.run_tickers import run_tickers
from kronos_pipeline.orchestration.ticker_batch import COMPLETE, failed_in_run, failed_tickers

Events = Iterator[dg.AssetCheckEvaluation | dg.Output[None]]
_RECOMPUTED = 256
"""Number of windows, evenly spaced, for which a check computes the lookback's statistics again."""


@dataclass(frozen=True)
class Outcome:
    """Result of a check for a ticker.

    Attributes:
        passed: whether the ticker passes, or None if the check does not apply to it.
        text: the reason as a sentence.
        metadata: figures that the UI shows and plots, by name.
    """

    passed: bool | None
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def complete_check(asset: str, partitions: dg.PartitionsDefinition) -> dg.AssetChecksDefinition:
    """Return the check that fails a run if tickers failed in the asset's step, and names them."""

    def complete(context: dg.AssetCheckExecutionContext) -> Events:
        key = dg.AssetKey(asset)
        upstream = {ticker for ticker, failed in failed_in_run(context, key).items() if failed != asset}
        tickers = [ticker for ticker in run_tickers(context) if ticker not in upstream]
        failed = failed_tickers(context.instance, key, tickers)
        outcomes = {ticker: Outcome(ticker not in failed, str(failed.get(ticker, "made"))) for ticker in tickers}
        yield from _evaluations(context, key, COMPLETE, outcomes)
        if failed:
            raise make_failure(asset, failed)
        yield dg.Output(None)  # a check that yields no `AssetCheckResult` must yield its output itself

    description = f"Passes if every ticker of the run has its {asset}. A failure does not stop the good tickers."
    return dg.asset_check(asset=asset, name=COMPLETE, description=description, partitions_def=partitions)(complete)  # type: ignore[arg-type]


def ticker_check(
    asset: str,
    name: str,
    check: Callable[[ArtifactLayout, str], Outcome],
    partitions: dg.PartitionsDefinition,
    *,
    blocking: bool,
) -> dg.AssetChecksDefinition:
    """Return a check of a ticker's stored artifact.

    Dagster shows a check without an evaluation as skipped, which says that the check did not apply. In a run that fails
    for another ticker it would show the check as failed, so there the check passes, and its text says why.

    Args:
        asset: the checked asset.
        name: the check's name.
        check: returns whether a ticker passes; its docstring is the check's description.
        partitions: the tickers.
        blocking: if true, assets downstream wait for the check and are skipped if it fails; else it only warns.
    """
    key, severity = dg.AssetKey(asset), dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN

    def run(context: dg.AssetCheckExecutionContext, pipeline: PipelineSettings) -> Events:
        failed = failed_in_run(context, key)
        outcomes: dict[str, Outcome] = {}
        for ticker in sorted(set(run_tickers(context)) - set(failed)):
            try:
                outcomes[ticker] = check(pipeline.layout, ticker)
            except KronosError as error:
                outcomes[ticker] = Outcome(False, str(error))
        skipped = {ticker: outcome for ticker, outcome in outcomes.items() if outcome.passed is None}
        if skipped:
            reasons = enumerate_some(sorted({outcome.text for outcome in skipped.values()}), 1)
            context.log.info(f"{name} does not apply to {enumerate_some(skipped)}. {reasons}")
        if failed:
            outcomes |= {
                ticker: replace(outcome, passed=True, text=f"Does not apply. {outcome.text}")
                for ticker, outcome in skipped.items()
            }
        applied = {ticker: outcome for ticker, outcome in outcomes.items() if outcome.passed is not None}
        yield from _evaluations(context, key, name, applied, severity, blocking)
        yield dg.Output(None)

    return dg.asset_check(
        asset=asset, name=name, description=check.__doc__, blocking=blocking, partitions_def=partitions
    )(run)  # type: ignore[arg-type]


def bars_are_sound(layout: ArtifactLayout, ticker: str) -> Outcome:
    """Passes if the stored bars are readable, unchanged since validation, ordered by time, and of this ticker."""
    bars = load_bars(layout.bars(ticker))
    if bars.ticker != ticker:
        return Outcome(False, f"{layout.bars(ticker)} holds the bars of {bars.ticker}")
    if not bars.frame["timestamps"].is_monotonic_increasing:
        return Outcome(False, f"{layout.bars(ticker)} is not ordered by time")
    return Outcome(True, f"{len(bars):,} bars", {"bars": len(bars)})


def windows_do_not_leak(layout: ArtifactLayout, ticker: str) -> Outcome:
    """Passes if no target bar is in two splits, and the lookback alone normalises each window."""
    windows = load_windows(layout.windows(ticker), load_bars(layout.bars(ticker)))
    borders = (0, windows.selection_start, windows.holdout_start, len(windows.bars))
    for split, first, last in zip(("train", "selection", "holdout"), borders[:-1], borders[1:], strict=True):
        rows = windows.of_split(split)
        if rows.empty:
            return Outcome(False, f"there is no {split} window")
        if rows["origin"].min() + 1 < first or rows["end"].max() > last:
            return Outcome(False, f"a {split} window has targets outside the bars {first} to {last - 1}")
    sample = windows.rows.iloc[np.linspace(0, len(windows.rows) - 1, min(_RECOMPUTED, len(windows.rows))).astype(int)]
    starts = sample["start"].to_numpy()
    lookbacks = windows.bars.values[starts[:, None] + np.arange(windows.lookback)]
    for stored, computed in zip(row_statistics(sample), lookback_statistics(lookbacks), strict=True):
        if not np.allclose(stored, computed, rtol=1e-6):
            return Outcome(False, "a window's stored mean or standard deviation does not match its lookback bars")
    counts = windows.counts()
    text = ", ".join(f"{count:,} {split} windows" for split, count in counts.items())
    return Outcome(True, text, {f"{split} windows": count for split, count in counts.items()})


def _evaluations(
    context: dg.AssetCheckExecutionContext,
    asset: dg.AssetKey,
    name: str,
    outcomes: Mapping[str, Outcome],
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    blocking: bool = False,
) -> Iterator[dg.AssetCheckEvaluation]:
    """Yield an evaluation by ticker; a `dg.AssetCheckResult` of a run over a range would have no partition."""
    targets = newest_summaries(context.instance, asset, outcomes)
    for ticker, outcome in outcomes.items():
        yield dg.AssetCheckEvaluation(
            asset_key=asset,
            check_name=name,
            passed=bool(outcome.passed),
            description=outcome.text,
            metadata=dict(outcome.metadata),
            severity=severity,
            blocking=blocking,
            partition=ticker,
            target_materialization_data=_target(targets[ticker]) if ticker in targets else None,
        )


def _target(newest: AssetEventSummaryRecord) -> AssetCheckEvaluationTargetMaterializationData:
    """Return a materialisation in the form in which an evaluation points to it."""
    return AssetCheckEvaluationTargetMaterializationData(
        run_id=newest.run_id or "", storage_id=newest.storage_id, timestamp=newest.timestamp
    )
