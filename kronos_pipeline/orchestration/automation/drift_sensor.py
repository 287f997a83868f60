"""The sensor of drift: request a training and a decision by the gate for each drifted champion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import TypeAdapter

from kronos_pipeline.evaluation.predictions import CHECKPOINT
from kronos_pipeline.orchestration.automation.jobs import PROMOTE_ADAPTER, RETRAIN_CHECKPOINT, AutomationSettings
from kronos_pipeline.orchestration.automation.sensor_state import load_state, save_state
from kronos_pipeline.orchestration.metadata import DRIFTED, FINDING, KIND
from kronos_pipeline.orchestration.newest_events import newest_ids, read_materialisations
from kronos_pipeline.orchestration.partitions import split_into_runs

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

_NAME = "drifted_champions"
_DRIFT = dg.AssetKey("drift")

LastFindings = dict[str, tuple[int, str]]
"""By ticker: the id of the last examined materialisation, and the last finding that a training was requested for."""


def make_drift_sensor(
    tickers: Sequence[str], jobs: Sequence[UnresolvedAssetJobDefinition], settings: AutomationSettings
) -> dg.SensorDefinition:
    """Return the sensor `drifted_champions`.

    For a drifted adapter it requests training, backtest and gate of that ticker; for a drifted checkpoint, a training
    of the checkpoint over all tickers. A finding triggers a single request, even if it is materialised again.

    Args:
        tickers: the partitions of the code location.
        jobs: the jobs of the code location.
        settings: the number of tickers per run.
    """

    @dg.sensor(
        name=_NAME,
        jobs=[job for job in jobs if job.name in (PROMOTE_ADAPTER, RETRAIN_CHECKPOINT)],
        minimum_interval_seconds=300,
        description="Retrains, up to the gate, if a champion errs more on new bars than its evidence predicts.",
    )
    def drifted_champions(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        last_findings = load_state(context, _NAME, TypeAdapter(LastFindings))
        drifted: dict[str, str] = {}
        for ticker, number, metadata in _new_findings(context.instance, tickers, last_findings):
            requested = last_findings.get(ticker, (0, ""))[1]
            finding = str(metadata[FINDING].value) if metadata[DRIFTED].value is True else requested
            if finding != requested:
                drifted[ticker] = str(metadata[KIND].value)
            last_findings[ticker] = (number, finding)
        adapters = {ticker for ticker, kind in drifted.items() if kind != CHECKPOINT}
        requests = [
            dg.RunRequest(job_name=PROMOTE_ADAPTER, tags=tags)
            for tags in split_into_runs(adapters, tickers, settings.tickers_per_run)
        ]
        if len(adapters) < len(drifted):
            all_tickers = split_into_runs(tickers, tickers, len(tickers))
            requests += [dg.RunRequest(job_name=RETRAIN_CHECKPOINT, tags=tags) for tags in all_tickers]
        known = {ticker: last_findings[ticker] for ticker in tickers if ticker in last_findings}
        cursor = save_state(context, _NAME, known)
        if requests:
            return dg.SensorResult(run_requests=requests, cursor=cursor)
        context.update_cursor(cursor)
        return dg.SkipReason("No champion has drifted since the last tick.")

    return drifted_champions


def _new_findings(
    instance: dg.DagsterInstance, tickers: Sequence[str], last_findings: LastFindings
) -> Iterator[tuple[str, int, Mapping[str, dg.MetadataValue]]]:
    """Yield ticker, id and metadata of each newest materialisation that was not examined yet."""
    newest = newest_ids(instance, _DRIFT, tickers)
    new = [number for ticker, number in newest.items() if number != last_findings.get(ticker, (0, ""))[0]]
    records = {str(record.partition_key): record for record in read_materialisations(instance, _DRIFT, new)}
    for ticker, record in sorted(records.items()):
        if record.asset_materialization is not None:
            yield ticker, record.storage_id, record.asset_materialization.metadata
