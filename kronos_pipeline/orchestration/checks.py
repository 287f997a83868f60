"""Asset checks: completeness of a run, soundness of stored artifacts, and verdicts on trained models.

Each check has the tickers' partitions, or it would run over every ticker regardless of the run's range. In a run of
several tickers a check yields an evaluation for each ticker.
"""

# Annotations are not postponed here: Dagster reads the annotation of `context` and refuses a string.
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

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
from kronos_pipeline.evaluation.predictions import ADAPTER
from kronos_pipeline.evaluation.scoring.targets import Target
from kronos_pipeline.evaluation.scoring.verdicts import BETTER, combined_verdict
from kronos_pipeline.orchestration.failures import make_failure
from kronos_pipeline.orchestration.resources import PipelineSettings
from kronos_pipeline.orchestration.ticker_batch import COMPLETE, failed_in_run, failed_tickers

Events = Iterator[dg.AssetCheckEvaluation | dg.Output[None]]
Outcome = tuple[bool, str]
"""Whether a ticker passes, and the reason as a sentence."""

_RECOMPUTED = 256
"""Number of windows, evenly spaced, for which a check computes the lookback's statistics again."""


def complete_check(asset: str, partitions: dg.PartitionsDefinition) -> dg.AssetChecksDefinition:
    """Return the check that fails a run if tickers failed in the asset's step, and names them."""

    def complete(context: dg.AssetCheckExecutionContext) -> Events:
        key = dg.AssetKey(asset)
        upstream = {ticker for ticker, failed in failed_in_run(context, key).items() if failed != asset}
        tickers = [ticker for ticker in sorted(context.partition_keys) if ticker not in upstream]
        failed = failed_tickers(context.instance, key, tickers)
        for ticker in tickers:
            outcome = ticker not in failed, str(failed.get(ticker, "made"))
            yield _Check(key, COMPLETE).evaluation(context, ticker, outcome)
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

    Args:
        asset: the checked asset.
        name: the check's name.
        check: returns whether a ticker passes; its docstring is the check's description.
        partitions: the tickers.
        blocking: if true, assets downstream wait for the check and are skipped if it fails; else it only warns.
    """
    severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN
    described = _Check(dg.AssetKey(asset), name, severity, blocking)

    def run(context: dg.AssetCheckExecutionContext, pipeline: PipelineSettings) -> Events:
        failed = failed_in_run(context, described.asset)
        for ticker in sorted(context.partition_keys):
            if ticker in failed:
                continue
            try:
                outcome = check(pipeline.layout, ticker)
            except KronosError as error:
                outcome = False, str(error)
            yield described.evaluation(context, ticker, outcome)
        yield dg.Output(None)

    return dg.asset_check(
        asset=asset, name=name, description=check.__doc__, blocking=blocking, partitions_def=partitions
    )(run)  # type: ignore[arg-type]


def bars_are_sound(layout: ArtifactLayout, ticker: str) -> Outcome:
    """Passes if the stored bars are readable, unchanged since validation, ordered by time, and of this ticker."""
    bars = load_bars(layout.bars(ticker))
    if bars.ticker != ticker:
        return False, f"{layout.bars(ticker)} holds the bars of {bars.ticker}"
    if not bars.frame["timestamps"].is_monotonic_increasing:
        return False, f"{layout.bars(ticker)} is not ordered by time"
    return True, f"{len(bars):,} bars"


def windows_do_not_leak(layout: ArtifactLayout, ticker: str) -> Outcome:
    """Passes if no target bar is in two splits, and the lookback alone normalises each window."""
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
            return False, "a window's stored mean or standard deviation does not match its lookback bars"
    return True, ", ".join(f"{count:,} {split}" for split, count in windows.counts().items())


def holdout_report(layout: ArtifactLayout, ticker: str) -> Path:
    """Return the report with the verdicts of a ticker's holdout."""
    return layout.ticker_metrics(ticker)


def backtest_report(layout: ArtifactLayout, ticker: str) -> Path:
    """Return the report with the verdicts of a ticker's backtest."""
    return layout.backtest_report(ADAPTER, ticker)


def better_on(
    target: Target, report: Callable[[ArtifactLayout, str], Path]
) -> Callable[[ArtifactLayout, str], Outcome]:
    """Return a check of the verdict on a target in a ticker's report.

    Args:
        target: the target.
        report: returns the report's path from the layout and the ticker.
    """

    def check(layout: ArtifactLayout, ticker: str) -> Outcome:
        evaluation = read_json(report(layout, ticker))
        model, entry = evaluation["model"], evaluation["per_symbol"][0]
        comparisons = entry["verdicts"][target].get(model, {})
        if not comparisons:
            return False, f"There is no verdict on the {target} of the {model}."
        reasons = [
            f"against {rival}: {verdict['verdict']}; {verdict['reason']}" for rival, verdict in comparisons.items()
        ]
        sentences = [f"The {target} of the {model} {reason}." for reason in reasons]
        passed = combined_verdict(verdict["verdict"] for verdict in comparisons.values()) == BETTER
        return passed, " ".join([*sentences, *evaluation["warnings"]])

    check.__doc__ = (
        f"Passes if the {target} of the trained model is better than that of every rival, by the Diebold-Mariano test "
        "and a block bootstrap over the cutoffs, corrected for the number of tickers. Fewer than 8 cutoffs are too "
        "little evidence, and do not pass."
    )
    return check


@dataclass(frozen=True)
class _Check:
    """A check of an asset, with its severity; assets downstream wait for a blocking check."""

    asset: dg.AssetKey
    name: str
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
    blocking: bool = False

    def evaluation(
        self, context: dg.AssetCheckExecutionContext, ticker: str, outcome: Outcome
    ) -> dg.AssetCheckEvaluation:
        """Return a ticker's evaluation; a `dg.AssetCheckResult` of a run over a range would have no partition."""
        passed, text = outcome
        newest = dg.AssetRecordsFilter(asset_key=self.asset, asset_partitions=[ticker])
        records = context.instance.fetch_materializations(newest, limit=1).records
        target = (
            AssetCheckEvaluationTargetMaterializationData(
                run_id=records[0].run_id, storage_id=records[0].storage_id, timestamp=records[0].timestamp
            )
            if records
            else None
        )
        return dg.AssetCheckEvaluation(
            asset_key=self.asset,
            check_name=self.name,
            passed=passed,
            description=text,
            severity=self.severity,
            blocking=self.blocking,
            partition=ticker,
            target_materialization_data=target,
        )
