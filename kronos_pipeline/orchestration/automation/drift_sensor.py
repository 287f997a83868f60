"""The sensor of drift: a champion that errs more than it did asks for a training that ends with the gate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from kronos_pipeline.evaluation.predictions import CHECKPOINT
from kronos_pipeline.orchestration.assets.monitoring import DRIFTED, FINDING, KIND
from kronos_pipeline.orchestration.automation.jobs import PROMOTE_ADAPTER, RETRAIN_CHECKPOINT, AutomationSettings
from kronos_pipeline.orchestration.partitions import split_into_runs

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

_DRIFT = dg.AssetKey("drift")

Seen = dict[str, tuple[int, str]]
"""By ticker: the newest materialisation that was looked at, and the finding that a training was asked for last."""


def make_drift_sensor(
    tickers: Sequence[str], jobs: Sequence[UnresolvedAssetJobDefinition], settings: AutomationSettings
) -> dg.SensorDefinition:
    """The sensor `drifted_champions`.

    A drifted adapter is trained, backtested and judged anew; for a drifted checkpoint that forecasts some tickers, the
    checkpoint is trained anew over all of them. One finding asks once, however often it is made.

    Args:
        tickers: the partitions, as they were found when the code location loaded.
        jobs: those of the code location.
        settings: how many tickers one run covers.
    """

    @dg.sensor(
        name="drifted_champions",
        jobs=[job for job in jobs if job.name in (PROMOTE_ADAPTER, RETRAIN_CHECKPOINT)],
        minimum_interval_seconds=300,
        description="Trains anew, up to the gate, where a champion errs more on new bars than when it was measured.",
    )
    def drifted_champions(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        seen: Seen = {ticker: (number, said) for ticker, (number, said) in json.loads(context.cursor or "{}").items()}
        drifted: dict[str, str] = {}
        for ticker, number, found in _new(context.instance, tickers, seen):
            asked_for = seen.get(ticker, (0, ""))[1]
            finding = str(found[FINDING].value) if found[DRIFTED].value is True else asked_for
            if finding != asked_for:
                drifted[ticker] = str(found[KIND].value)
            seen[ticker] = (number, finding)
        adapters = {ticker for ticker, kind in drifted.items() if kind != CHECKPOINT}
        requests = [
            dg.RunRequest(job_name=PROMOTE_ADAPTER, tags=tags)
            for tags in split_into_runs(adapters, tickers, settings.tickers_per_run)
        ]
        if len(adapters) < len(drifted):
            everything = split_into_runs(tickers, tickers, len(tickers))
            requests += [dg.RunRequest(job_name=RETRAIN_CHECKPOINT, tags=tags) for tags in everything]
        cursor = json.dumps({ticker: seen[ticker] for ticker in tickers if ticker in seen})
        if requests:
            return dg.SensorResult(run_requests=requests, cursor=cursor)
        context.update_cursor(cursor)
        return dg.SkipReason("No champion has drifted since the last look.")

    return drifted_champions


def _new(
    instance: dg.DagsterInstance, tickers: Sequence[str], seen: Seen
) -> Iterator[tuple[str, int, Mapping[str, dg.MetadataValue]]]:
    """The tickers whose newest materialisation was not looked at yet: its number, and what it says."""
    newest = instance.get_latest_storage_id_by_partition(
        _DRIFT, dg.DagsterEventType.ASSET_MATERIALIZATION, set(tickers)
    )
    for ticker, number in sorted(newest.items()):
        if number == seen.get(ticker, (0, ""))[0]:
            continue
        wanted = dg.AssetRecordsFilter(asset_key=_DRIFT, asset_partitions=[ticker])
        materialised = instance.fetch_materializations(wanted, limit=1).records[0].asset_materialization
        if materialised is not None:
            yield ticker, number, materialised.metadata
