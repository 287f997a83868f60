"""The sensor that tells people of failed runs, those of one cause in one line."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import dagster as dg
from pydantic import BaseModel, Field

from kronos_pipeline.errors import cause_of, count
from kronos_pipeline.orchestration.automation.jobs import AutomationSettings
from kronos_pipeline.orchestration.automation.sensor_state import read_cursor
from kronos_pipeline.orchestration.messages.notifications import VARIABLE, notify
from kronos_pipeline.orchestration.messages.summary import Entry, failures, markdown_of, run_link

_QUIET = timedelta(hours=12)
"""The time in which a cause is not told again; the morning summary has every failure."""
_RUNS = 200
_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


class _Cursor(BaseModel):
    """The end of the newest run that was told of, and the time at which each cause was told, in seconds since 1970."""

    until: float = Field(default_factory=time.time, ge=0, le=_LATEST)
    told: dict[str, float] = Field(default_factory=dict)


def make_failure_sensor(settings: AutomationSettings) -> dg.SensorDefinition:
    """Return the sensor `failed_runs`, which is on by default and sends nothing without an address.

    A run that Dagster starts once more is told of only if it fails again. If no service takes the message, the next
    tick sends it again.
    """
    urls = settings.notify_urls.get_secret_value()

    @dg.sensor(
        name="failed_runs",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Tells the services of {VARIABLE} of failed runs, those of one cause in one line.",
    )
    def failed_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        now = datetime.now(UTC)
        if not urls:
            context.update_cursor(_Cursor().model_dump_json())
            return dg.SkipReason(f"Nobody is told of failures, as {VARIABLE} is not set.")
        cursor = read_cursor(context, _Cursor)
        since = datetime.fromtimestamp(cursor.until, UTC)
        failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=since)
        records = [
            record
            for record in context.instance.get_run_records(failed, limit=_RUNS)
            if (record.end_time or 0.0) > cursor.until
        ]
        entries = [entry for record in records for entry in failures(context.instance, record.dagster_run)]
        told = {cause: at for cause, at in cursor.told.items() if at > (now - _QUIET).timestamp()}
        new = [entry for entry in entries if cause_of(entry.text) not in told]
        until = max([cursor.until, *(record.end_time or 0.0 for record in records)])
        if new:
            delivery = notify(urls, _title(new), markdown_of({"failed": new}, run_link(settings.dagster_ui)))
            for problem in delivery.problems:
                context.log.warning(f"The message was not delivered: {problem}.")
            if not delivery.sent:
                return dg.SkipReason("No service took the message; the next tick sends it again.")
            told |= {cause_of(entry.text): now.timestamp() for entry in new}
        context.update_cursor(_Cursor(until=until, told=told).model_dump_json())
        return dg.SkipReason(f"Told of {count(len(new), 'failure')}." if new else "No run has failed since.")

    return failed_runs


def _title(entries: list[Entry]) -> str:
    runs = len({entry.run_id for entry in entries})
    return f"Kronos: {count(runs, 'run')} failed"
