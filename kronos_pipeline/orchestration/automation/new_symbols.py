"""The sensor of new symbols: it reloads the code location, so that they become partitions, and ingests them.

    a CSV of a new symbol -> the code location is reloaded through Dagster's UI -> a run reads its bars

Partitions are the symbols of the data folder when the code location loads. Only Dagster's webserver can reload it, so
the sensor asks the webserver, at the address in KRONOS_DAGSTER_UI; without the address it says what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import dagster as dg
from pydantic import BaseModel, Field

from kronos_pipeline.data.csv_files import find_csv_files
from kronos_pipeline.errors import KronosError, enumerate_some, first_sentence
from kronos_pipeline.orchestration.automation.jobs import INGEST, AutomationSettings
from kronos_pipeline.orchestration.automation.sensor_state import read_cursor
from kronos_pipeline.orchestration.partitions import split_into_runs

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

_RELOAD_SECONDS = 120
_BY_HAND = "reload the code location (Deployment, Code locations, Reload)"


class _Cursor(BaseModel):
    """New symbols for which the code location was reloaded."""

    asked: list[str] = Field(default_factory=list)


def make_new_symbols_sensor(
    data_dir: Path,
    tickers: Sequence[str],
    jobs: Sequence[UnresolvedAssetJobDefinition],
    settings: AutomationSettings,
) -> dg.SensorDefinition:
    """Return the sensor `new_symbols`, which is on by default.

    Args:
        data_dir: the folder with the CSVs.
        tickers: the partitions of the code location.
        jobs: the jobs of the code location.
        settings: the address of Dagster's UI, and the number of tickers per run.
    """
    known = set(tickers)

    @dg.sensor(
        name="new_symbols",
        jobs=[job for job in jobs if job.name == INGEST],
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={"pipeline"},
        description="Reloads the code location if the data folder has new symbols, and ingests them.",
    )
    def new_symbols(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            files = find_csv_files(data_dir, context.resources.pipeline.reading).files
        except KronosError as error:
            return dg.SkipReason(str(error))
        asked = read_cursor(context, _Cursor).asked
        new = [ticker for ticker in files if ticker not in known]
        if arrived := [ticker for ticker in asked if ticker in known]:
            requests = [
                dg.RunRequest(job_name=INGEST, tags=tags)
                for tags in split_into_runs(arrived, tickers, settings.tickers_per_run)
            ]
            return dg.SensorResult(run_requests=requests, cursor=_Cursor().model_dump_json())
        if not new:
            return dg.SkipReason("Every symbol of the data folder is a partition.")
        names = enumerate_some(new)
        if new == asked:
            return dg.SkipReason(f"{names}: no partition even after a reload; {_BY_HAND}, or start Dagster again.")
        if settings.dagster_ui is None:
            return dg.SkipReason(
                f"New in the data folder: {names}. To see them, {_BY_HAND}, or set KRONOS_DAGSTER_UI to the address of "
                "Dagster's UI: the next tick then reloads it."
            )
        origin = context.code_location_origin
        if problem := reload_location(settings.dagster_ui, origin.location_name if origin else ""):
            return dg.SkipReason(f"New in the data folder: {names}. {problem}; {_BY_HAND}.")
        context.update_cursor(_Cursor(asked=new).model_dump_json())
        return dg.SkipReason(f"New in the data folder: {names}. The code location was reloaded to see them.")

    return new_symbols


def reload_location(address: str, location: str) -> str | None:
    """Reload a code location through the webserver, and return None, or why it was not reloaded.

    Args:
        address: the webserver's address, such as http://127.0.0.1:3000.
        location: the name of the code location.
    """
    from dagster_graphql import DagsterGraphQLClient, ReloadRepositoryLocationStatus  # takes a second

    parts = urlsplit(address)
    if parts.hostname is None:
        return f"KRONOS_DAGSTER_UI is {address!r}, which is no address such as http://127.0.0.1:3000"
    secure = parts.scheme == "https"
    try:
        client = DagsterGraphQLClient(
            parts.hostname,
            port_number=parts.port or (443 if secure else 80),
            use_https=secure,
            timeout=_RELOAD_SECONDS,
        )
        outcome = client.reload_repository_location(location)
    except Exception as error:  # the client raises whatever its transport does
        return f"The UI at {address} did not reload it: {first_sentence(error)}"
    if outcome.status != ReloadRepositoryLocationStatus.SUCCESS:
        return f"The UI at {address} did not reload it: {outcome.message or outcome.failure_type}"
    return None
