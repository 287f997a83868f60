"""Asset checks: was every ticker made, is what was stored sound, and is a trained model better than its rivals.

A check is given the tickers' partitions, or it would run over every ticker whatever the run's range is. In a run of
several tickers it gives one evaluation for each of them.
"""

# Annotations are not postponed here: Dagster takes that of `context` as it stands, and refuses a text.
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)

from kronos_pipeline.artifacts import ArtifactLayout, read_json
from kronos_pipeline.data.bars import load_bars
from kronos_pipeline.data.normalisation import lookback_statistics
from kronos_pipeline.data.windows import load_windows, row_statistics
from kronos_pipeline.errors import KronosError
from kronos_pipeline.evaluation.predictions import ADAPTER, BASE, NAIVE
from kronos_pipeline.evaluation.scoring.verdicts import BETTER
from kronos_pipeline.orchestration.batch import COMPLETE, failed_in_run, failed_tickers
from kronos_pipeline.orchestration.failures import make_failure
from kronos_pipeline.orchestration.resources import PipelineSettings

Events = Iterator[dg.AssetCheckEvaluation | dg.Output]
Verdict = tuple[bool, str]
"""Whether a ticker passes, and a sentence that says why or why not."""

RIVALS = {NAIVE: "repeating the last close", BASE: "the untouched base model"}
_RECOMPUTED = 256
"""Windows of which a check computes the lookback's statistics again, spread over all of them."""


def complete_check(asset: str, partitions: dg.PartitionsDefinition) -> dg.AssetChecksDefinition:
    """The check that fails a run, by name, for the tickers that the asset's step could not make."""

    def complete(context: dg.AssetCheckExecutionContext) -> Events:
        key = dg.AssetKey(asset)
        elsewhere = {ticker for ticker, failed in failed_in_run(context, key).items() if failed != asset}
        tickers = [ticker for ticker in sorted(context.partition_keys) if ticker not in elsewhere]
        failed = failed_tickers(context.instance, key, tickers)
        for ticker in tickers:
            verdict = ticker not in failed, str(failed.get(ticker, "made"))
            yield _evaluation(context, key, COMPLETE, ticker, verdict)
        if failed:
            raise make_failure(asset, failed)
        yield dg.Output(None)  # what a check's step that gives no `AssetCheckResult` lacks

    description = f"Every ticker of the run has its {asset}; where it fails, the other tickers went on."
    return dg.asset_check(asset=asset, name=COMPLETE, description=description, partitions_def=partitions)(complete)  # type: ignore[arg-type]


def ticker_check(
    asset: str,
    name: str,
    check: Callable[[ArtifactLayout, str], Verdict],
    partitions: dg.PartitionsDefinition,
    *,
    blocking: bool,
) -> dg.AssetChecksDefinition:
    """A check of what is stored for a ticker.

    Args:
        asset: the asset that it checks.
        name: the check's name.
        check: says whether the ticker passes; its docstring is the check's description.
        partitions: the tickers.
        blocking: whether what is downstream waits for it and is not made where it fails; else it is a warning.
    """
    severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN

    def run(context: dg.AssetCheckExecutionContext, pipeline: PipelineSettings) -> Events:
        key = dg.AssetKey(asset)
        failed = failed_in_run(context, key)
        for ticker in sorted(context.partition_keys):
            if ticker in failed:
                continue
            try:
                verdict = check(pipeline.layout, ticker)
            except KronosError as error:
                verdict = False, str(error)
            yield _evaluation(context, key, name, ticker, verdict, severity=severity, blocking=blocking)
        yield dg.Output(None)

    return dg.asset_check(
        asset=asset, name=name, description=check.__doc__, blocking=blocking, partitions_def=partitions
    )(run)  # type: ignore[arg-type]


def bars_are_sound(layout: ArtifactLayout, ticker: str) -> Verdict:
    """The stored bars are those that were validated: readable, unchanged, ordered by time, and of this ticker."""
    bars = load_bars(layout.bars(ticker))
    if bars.ticker != ticker:
        return False, f"{layout.bars(ticker)} holds the bars of {bars.ticker}"
    if not bars.frame["timestamps"].is_monotonic_increasing:
        return False, f"{layout.bars(ticker)} is not ordered by time"
    return True, f"{len(bars):,} bars"


def windows_do_not_leak(layout: ArtifactLayout, ticker: str) -> Verdict:
    """No target bar is in two splits, and each window is normalised by its lookback alone."""
    windows = load_windows(layout.windows(ticker), load_bars(layout.bars(ticker)))
    borders = (0, windows.selection_start, windows.holdout_start, len(windows.bars))
    for split, first, last in zip(("train", "selection", "holdout"), borders[:-1], borders[1:], strict=True):
        rows = windows.of_split(split)
        if rows.empty:
            return False, f"there is no {split} window"
        if rows["origin"].min() + 1 < first or rows["end"].max() > last:
            return False, f"a {split} window has targets outside the bars {first} to {last - 1}"
    sample = windows.rows.iloc[np.linspace(0, len(windows.rows) - 1, min(_RECOMPUTED, len(windows.rows))).astype(int)]
    starts = sample["start"].to_numpy()
    lookbacks = windows.bars.values[starts[:, None] + np.arange(windows.lookback)]
    for stored, computed in zip(row_statistics(sample), lookback_statistics(lookbacks), strict=True):
        if not np.allclose(stored, computed, rtol=1e-6):
            return False, "a window's mean or standard deviation is not that of its lookback bars"
    return True, ", ".join(f"{count:,} {split}" for split, count in windows.counts().items())


def holdout_report(layout: ArtifactLayout, ticker: str) -> Path:
    """Where the verdicts of a ticker's holdout are."""
    return layout.ticker_metrics(ticker)


def backtest_report(layout: ArtifactLayout, ticker: str) -> Path:
    """Where the verdicts of its backtest are."""
    return layout.backtest_report(ADAPTER, ticker)


def better_than(rival: str, report: Callable[[ArtifactLayout, str], Path]) -> Callable[[ArtifactLayout, str], Verdict]:
    """A check of the verdict that a ticker's report holds.

    Args:
        rival: "naive" or "base".
        report: where the report is, from the layout and the ticker.
    """

    def check(layout: ArtifactLayout, ticker: str) -> Verdict:
        evaluation: Mapping[str, Any] = read_json(report(layout, ticker))
        model, entry = evaluation["model"], evaluation["per_symbol"][0]
        found = entry["verdicts"].get(model, {}).get(rival)
        if found is None:
            return False, f"There is no verdict on the {model} against {rival}."
        sentences = [f"The {model} against {rival}: {found['verdict']}; {found['reason']}.", *evaluation["warnings"]]
        return found["verdict"] == BETTER, " ".join(sentences)

    check.__doc__ = (
        f"Whether the trained model is better than {RIVALS[rival]}: by the test of Diebold and Mariano and a block "
        "bootstrap over the cutoffs, corrected for the number of tickers. Fewer than 8 cutoffs are too little evidence "
        "and do not pass."
    )
    return check


def _evaluation(
    context: dg.AssetCheckExecutionContext,
    asset: dg.AssetKey,
    name: str,
    ticker: str,
    verdict: Verdict,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    blocking: bool = False,
) -> dg.AssetCheckEvaluation:
    """One ticker's evaluation; a `dg.AssetCheckResult` of a run over a range would belong to no partition."""
    passed, text = verdict
    wanted = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[ticker])
    records = context.instance.fetch_materializations(wanted, limit=1).records
    target = (
        AssetCheckEvaluationTargetMaterializationData(
            run_id=records[0].run_id, storage_id=records[0].storage_id, timestamp=records[0].timestamp
        )
        if records
        else None
    )
    return dg.AssetCheckEvaluation(
        asset_key=asset,
        check_name=name,
        passed=passed,
        description=text,
        severity=severity,
        blocking=blocking,
        partition=ticker,
        target_materialization_data=target,
    )
