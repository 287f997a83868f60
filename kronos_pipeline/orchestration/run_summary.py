"""The last message of a run: what was made of which ticker, what failed, and what to do next.

It is put together from the run's events, so it holds for any selection of assets: the summary of each materialisation,
and the problems of each ticker that failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dagster as dg

from kronos_pipeline.errors import count, enumerate_some
from kronos_pipeline.orchestration.failures import read_problem_table
from kronos_pipeline.orchestration.metadata import SUMMARY
from kronos_pipeline.orchestration.ticker_batch import PROBLEMS

ALL = "all tickers"
"""Name of the subject of an asset without partitions."""
_TICKERS_SHOWN = 12
_IN_DETAIL = 3
"""Number of tickers up to which every asset of a ticker has a line; of more tickers, only the last asset has one."""
_NEXT = {
    "windows": "dagster asset materialize --select adapter/{ticker}",
    "adapter": "dagster asset materialize --select holdout_metrics --partition {ticker}",
    "checkpoint": "dagster asset materialize --select holdout_metrics --partition {ticker}",
    "holdout_metrics": "kronos forecast {ticker}, or for a verdict "
    "dagster asset materialize --select backtest --partition {ticker}",
    "backtest": "dagster asset materialize --select champion --partition {ticker}",
    "champion": "kronos forecast {ticker}",
    "forecast": "kronos record {ticker}, when its bars have come",
}
"""The next command after an asset, in the order of the graph."""

Made = Mapping[str, Mapping[str, str]]
"""By subject, a ticker or all, and asset: the summary of what the run made."""


def summarise_run(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """Return the summary of a run, or None if nothing was made and no ticker failed."""
    made, failed = _made_by(instance, run_id), failed_in(instance, run_id)
    if not made and not failed:
        return None
    tickers = [subject for subject in made if subject != ALL]
    lines = [_heading(made, tickers, failed)]
    for subject in [*tickers[:_TICKERS_SHOWN], *([ALL] if ALL in made else [])]:
        summaries = list(made[subject].items())
        shown = summaries if len(tickers) <= _IN_DETAIL else summaries[-1:]
        lines += [f"  {subject} {asset}: {text}" for asset, text in shown]
    if len(tickers) > _TICKERS_SHOWN:
        lines.append(f"  ... and {count(len(tickers) - _TICKERS_SHOWN, 'more ticker')}, on the assets' pages")
    lines += [f"  {ticker} failed: {reason}" for ticker, reason in list(failed.items())[:_TICKERS_SHOWN]]
    if len(failed) > _TICKERS_SHOWN:
        lines.append(f"  ... and {count(len(failed) - _TICKERS_SHOWN, 'more failed ticker')}")
    assets = {asset for subject in made.values() for asset in subject}
    if failed:
        lines.append("  kronos doctor lists every problem of the CSVs; correct them, and run the failed tickers again")
    if (steps := [command for asset, command in _NEXT.items() if asset in assets]) and tickers:
        lines.append(f"  next: {steps[-1].format(ticker=tickers[0])}")
    return "\n".join(lines)


def _heading(made: Made, tickers: Sequence[str], failed: Mapping[str, str]) -> str:
    assets = list(dict.fromkeys(asset for subject in made.values() for asset in subject))
    parts = [f"Made {', '.join(assets)}" + (f" of {enumerate_some(tickers)}" if tickers else "")] if made else []
    parts += [f"{count(len(failed), 'ticker')} failed: {enumerate_some(failed)}"] if failed else []
    return ". ".join(parts) + "."


def _made_by(instance: dg.DagsterInstance, run_id: str) -> Made:
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records
    made: dict[str, dict[str, str]] = {}
    for event in (record.event_log_entry.asset_materialization for record in records):
        if event is not None and SUMMARY in event.metadata:
            summary = str(event.metadata[SUMMARY].value)
            made.setdefault(event.partition or ALL, {})[event.asset_key.to_user_string()] = summary
    return dict(sorted(made.items()))


def failed_in(instance: dg.DagsterInstance, run_id: str) -> dict[str, str]:
    """Return the first problem of each ticker that failed in a run."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION).records
    failed: dict[str, str] = {}
    for event in (record.event_log_entry.asset_observation for record in records):
        table = event.metadata.get(PROBLEMS) if event else None
        if event and event.partition and isinstance(table, dg.TableMetadataValue):
            first, *more = read_problem_table(table)
            failed[event.partition] = f"{first}{f' ({len(more)} more)' if more else ''}"
    return failed
