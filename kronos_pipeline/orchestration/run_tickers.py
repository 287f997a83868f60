"""The tickers of a run: its partitions, and those of the queued runs of its backfill, which it takes over.

Dagster makes a run for each contiguous range of partitions, so a backfill of GOOG, META and XOM is three runs. The
first that starts takes over the others while they wait in the queue, so that all tickers train together:

    run 1: GOOG   queued -> started ------- GOOG, META, XOM -------> success
    run 2: META   queued ----> started, without a process ---------> success, or failure if META failed in run 1
    run 3: XOM    queued ----> started, without a process ---------> success

If run 1 is terminated, the others are canceled with it. On Ray and Kubernetes no run takes over another: the launcher
watches a process for each run, and the runs share out the tickers among the machines.

The tag `kronos/tickers` lists the tickers of each run in the UI.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import dagster as dg
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from kronos_pipeline.names import NAME, NAME_RULE
from kronos_pipeline.orchestration.automation.killed_runs import TAKEN_OVER_BY, hold_run_lock, is_canceled

TICKERS = "kronos/tickers"
_BACKFILL = "dagster/backfill"
_NOT_RETRIED = JobFailureData(error=None, failure_reason=RunFailureReason.STEP_FAILURE)
"""Keeps the instance from starting a run once more: its assets failed in a step of another run."""
_SEPARATOR = ", "
_PARTITION_TAGS = (PARTITION_NAME_TAG, ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG)
_QUEUED_READ = 100

Planned = set[tuple[dg.AssetKey, str]]
"""Assets and partitions of a run."""


def run_tickers(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> list[str]:
    """Return the tickers of a run, sorted.

    Raises:
        dagster.Failure: the run has no tickers, or a partition that is no ticker; Dagster's API lets both begin.
    """
    run = context.instance.get_run_by_id(context.run.run_id) or context.run
    asked = [run.tags[tag] for tag in _PARTITION_TAGS if tag in run.tags]
    if odd := [repr(name) for name in asked if not NAME.fullmatch(name)]:
        raise dg.Failure(f"No ticker is called {' or '.join(odd)}: {NAME_RULE}.", allow_retries=False)
    listed = run.tags.get(TICKERS)
    if not listed and not asked:
        raise dg.Failure("This run has no ticker: choose partitions.", allow_retries=False)
    tickers = sorted(listed.split(_SEPARATOR) if listed else context.partition_keys)
    if not tickers:
        raise dg.Failure("The range of this run has no ticker: it ends before it begins.", allow_retries=False)
    return tickers


def planned_tickers(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[str] | None:
    """Return the tickers of a run, before its steps: none of a clean-up, None for all, such as of the leaderboard."""
    listed = (instance.get_run_by_id(run.run_id) or run).tags.get(TICKERS)
    if listed:
        return listed.split(_SEPARATOR)
    planned_type = dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
    records = instance.get_records_for_run(run.run_id, of_type=planned_type).records
    keys = [record.event_log_entry.get_dagster_event().asset_key for record in records]
    by_ticker = [key.path[1] for key in keys if key and len(key.path) == 2]  # adapter/AAPL
    return by_ticker if len(by_ticker) == len(keys) else None


def waiting_run(context: dg.AssetExecutionContext) -> dg.DagsterRun | None:
    """Return a run of the same job that waits in the queue and makes the asset of this step too, or None."""
    waiting = dg.RunsFilter(job_name=context.run.job_name, statuses=[dg.DagsterRunStatus.QUEUED])
    runs: Sequence[dg.DagsterRun] = context.instance.get_runs(waiting, limit=_QUEUED_READ)
    for run in runs:
        if run.asset_selection is None or context.asset_key in run.asset_selection:
            return run
    return None


@contextmanager
def with_queued_runs(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Iterator[None]:
    """Take over the queued runs of the run's backfill, and end them after the block; tag the run with all tickers.

    Only runs of the same assets and settings are taken over. Their locks are held, so that they are found if this
    process is killed.
    """
    own = _planned(instance, run.run_id)
    if not own:
        yield
        return
    others = {}
    with ExitStack() as locks:
        for queued in _queued_beside(instance, run):
            if planned := _planned(instance, queued.run_id):
                locks.enter_context(hold_run_lock(instance, queued.run_id))
                instance.add_run_tags(queued.run_id, {TAKEN_OVER_BY: run.run_id, TICKERS: _names(planned)})
                _report(instance, queued, dg.DagsterEventType.RUN_START, f"Its tickers are in run {run.run_id}.")
                others[queued.run_id] = planned
        instance.add_run_tags(run.run_id, {TICKERS: _names(own.union(*others.values()))})
        try:
            yield
        finally:
            _end(instance, run, others)


def _end(instance: dg.DagsterInstance, run: dg.DagsterRun, others: dict[str, Planned]) -> None:
    """End the runs that were taken over, each by what the run made of its assets."""
    if not others:
        return
    records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records
    events = [record.event_log_entry.get_dagster_event() for record in records]
    made = {(event.asset_key, event.partition) for event in events}
    canceled = is_canceled(instance, run.run_id)
    for run_id, planned in others.items():
        other = instance.get_run_by_id(run_id)
        if other is None or other.status != dg.DagsterRunStatus.STARTED:
            continue  # a person cancelled it
        if missing := planned - made:
            assets = sorted({asset.to_user_string() for asset, _ in missing})
            text = f"{_names(missing)}: run {run.run_id}, which took over this run, did not make {', '.join(assets)}."
            if canceled:
                instance.report_run_canceled(other, text)
            else:
                instance.report_run_failed(other, text, _NOT_RETRIED)
        else:
            _report(instance, other, dg.DagsterEventType.RUN_SUCCESS, f"Run {run.run_id} made its assets.")


def _queued_beside(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[dg.DagsterRun]:
    if _BACKFILL not in run.tags or instance.run_launcher.supports_check_run_worker_health:
        return []
    queued = dg.RunsFilter(tags={_BACKFILL: run.tags[_BACKFILL]}, statuses=[dg.DagsterRunStatus.QUEUED])
    return [other for other in instance.get_runs(queued) if _work(other) == _work(run)]


def _work(run: dg.DagsterRun) -> tuple[object, ...]:
    """Return what a run does, but for its tickers."""
    selected = frozenset(run.asset_selection or ()), frozenset(run.asset_check_selection or ())
    return run.job_name, selected, run.run_config


def _planned(instance: dg.DagsterInstance, run_id: str) -> Planned:
    planned_type = dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
    records = instance.get_records_for_run(run_id, of_type=planned_type).records
    planned: Planned = set()
    for record in records:
        data = record.event_log_entry.get_dagster_event().asset_materialization_planned_data
        partitions = data.partitions_subset.get_partition_keys() if data.partitions_subset else [data.partition]
        planned |= {(data.asset_key, partition) for partition in partitions if partition is not None}
    return planned


def _names(planned: Planned) -> str:
    return _SEPARATOR.join(sorted({ticker for _, ticker in planned}))


def _report(instance: dg.DagsterInstance, run: dg.DagsterRun, event_type: dg.DagsterEventType, message: str) -> None:
    instance.report_dagster_event(dg.DagsterEvent(event_type.value, run.job_name, message=message), run.run_id)
