"""The Dagster instance of DAGSTER_HOME: its health, and the deletion of runs that are old.

The command line runs this module as a process of its own and reads JSON, as the layers below do not import Dagster:

    python -m kronos_pipeline.orchestration.instance health
    python -m kronos_pipeline.orchestration.instance old-runs --days 30 [--delete]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from dagster import DagsterEventType, DagsterRunStatus

from kronos_pipeline.orchestration.newest_events import pages

_ENDED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
_DAY = timedelta(days=1)


def old_runs(instance: dg.DagsterInstance, before: datetime) -> list[str]:
    """Return the ended runs from before a moment, without those of the newest materialisation of an asset or partition.

    Their events are what the UI shows of an asset: a partition whose events are gone counts as missing.
    """
    filters = dg.RunsFilter(statuses=_ENDED, created_before=before)
    ids = [record.dagster_run.run_id for record in instance.get_run_records(filters)]
    newest = set(_runs_of_newest_events(instance)) if ids else set()
    return [run_id for run_id in ids if run_id not in newest]


def delete_runs(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> None:
    """Delete runs with their events and their captured output."""
    for run_id in run_ids:
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        instance.delete_run(run_id)


def read_health(instance: dg.DagsterInstance, now: datetime) -> dict[str, Any]:
    """Return the daemons with their state, and the numbers of runs that failed lately, wait and are in progress.

    Args:
        instance: the instance.
        now: the current time, with a zone.
    """
    daemons = {name: bool(status.healthy) for name, status in instance.get_daemon_statuses().items() if status.required}
    count = instance.get_runs_count
    return {
        "daemons": daemons,
        "failed": count(dg.RunsFilter(statuses=[DagsterRunStatus.FAILURE], updated_after=now - _DAY)),
        "queued": count(dg.RunsFilter(statuses=[DagsterRunStatus.QUEUED])),
        "waiting_a_day": count(dg.RunsFilter(statuses=[DagsterRunStatus.QUEUED], created_before=now - _DAY)),
        "started": count(dg.RunsFilter(statuses=[DagsterRunStatus.STARTED])),
    }


def _runs_of_newest_events(instance: dg.DagsterInstance) -> Iterator[str]:
    """Yield the runs of the newest materialisation of each asset and of each of its partitions.

    The number of queries grows with the pages of the keys, and not with the keys: each ticker has an asset of its own.
    """
    partitioned: list[dg.AssetKey] = []
    for page in pages(list(instance.get_asset_keys())):
        for record in instance.get_asset_records(page):
            newest = record.asset_entry.last_materialization_record
            if newest is not None:
                yield newest.run_id
                if newest.partition_key is not None:
                    partitioned.append(record.asset_entry.asset_key)
    kind: Any = DagsterEventType.ASSET_MATERIALIZATION
    for key in partitioned:
        for ids in pages(sorted(instance.get_latest_storage_id_by_partition(key, kind).values())):
            for summary in instance.get_asset_event_summary_records(kind, key, storage_ids=ids):
                yield str(summary.run_id)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what was asked for as JSON."""
    parser = argparse.ArgumentParser(prog="python -m kronos_pipeline.orchestration.instance")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("health", help="the daemons, and how many runs failed, wait and are in progress")
    old = commands.add_parser("old-runs", help="the number of runs that are old")
    old.add_argument("--days", type=int, required=True, help="age in days from which a run is old")
    old.add_argument("--delete", action="store_true", help="delete them")
    chosen = parser.parse_args(arguments)
    now = datetime.now(UTC)
    with dg.DagsterInstance.get() as instance:
        if chosen.command == "health":
            print(json.dumps(read_health(instance, now)))
            return
        run_ids = old_runs(instance, now - chosen.days * _DAY)
        if chosen.delete:
            delete_runs(instance, run_ids)
        print(json.dumps({"runs": len(run_ids)}))


if __name__ == "__main__":
    main()
