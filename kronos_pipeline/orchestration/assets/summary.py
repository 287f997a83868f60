"""The asset `morning_summary`: what happened since the last summary, sent to people and shown in the UI."""

# Annotations are not postponed here: Dagster reads the annotation of `context` and refuses a string.
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from kronos_pipeline.errors import count
from kronos_pipeline.orchestration.automation.jobs import MORNING_SUMMARY, AutomationSettings
from kronos_pipeline.orchestration.messages.notifications import VARIABLE, notify
from kronos_pipeline.orchestration.messages.summary import Entry, markdown_of, read_events, run_link, title_of
from kronos_pipeline.orchestration.metadata import SUMMARY
from kronos_pipeline.orchestration.resources import Clock, PipelineSettings
from kronos_pipeline.pipeline.status import read_status

_FIRST, _LONGEST = timedelta(days=1), timedelta(days=7)
"""The time that the first summary covers, and the longest that a summary covers."""
_UNTIL, _DELIVERED = "until", "delivered"


def morning_summary_asset(tickers: Sequence[str], settings: AutomationSettings, **options: Any) -> dg.AssetsDefinition:
    """Return the asset.

    Args:
        tickers: the partitions of the code location.
        settings: the addresses of the services, and of Dagster's UI.
        options: further options of the asset, such as group and owners.
    """

    def morning_summary(
        context: dg.AssetExecutionContext, pipeline: PipelineSettings, clock: Clock
    ) -> dg.MaterializeResult[None]:
        """What was trained, promoted, skipped, what failed, drifts or has expired, each with its reason and its run.

        It covers the time since the last summary that was delivered, and is sent to the services of KRONOS_NOTIFY_URLS.
        A service that does not answer is a warning, and the next summary covers its time again.
        """
        now = clock.now()
        since = max(_last_delivery(context.instance) or now - _FIRST, now - _LONGEST)
        status = read_status(pipeline.data_folder, pipeline.layout, now)
        summary = read_events(context.instance, tickers, since)
        summary["expired"] = [Entry(ticker.ticker, text) for ticker in status.tickers for text in ticker.expired]
        title, period = title_of(summary), f"since {since.astimezone():%Y-%m-%d %H:%M %Z}"
        message = markdown_of(summary, run_link(settings.dagster_ui))
        delivery = notify(settings.notify_urls.get_secret_value(), f"Kronos, {period}: {title}", message)
        for problem in delivery.problems:
            context.log.warning(f"The summary was not delivered: {problem}.")
        nobody = f"nobody, as {VARIABLE} is not set"
        return dg.MaterializeResult(
            metadata={
                SUMMARY: f"{period}: {title}",
                "text": dg.MetadataValue.md(markdown_of(summary, run_link(""))),
                **{heading: len({entry.subject for entry in entries}) for heading, entries in summary.items()},
                "sent to": count(delivery.sent, "service") if settings.notify_urls.get_secret_value() else nobody,
                _UNTIL: dg.MetadataValue.timestamp(now),
                _DELIVERED: bool(delivery.sent or not delivery.problems),
            }
        )

    asset: dg.AssetsDefinition = dg.asset(name=MORNING_SUMMARY, **options)(morning_summary)
    return asset


def _last_delivery(instance: dg.DagsterInstance) -> datetime | None:
    """Return the end of the time that the last delivered summary covers, or None."""
    for record in instance.fetch_materializations(dg.AssetKey(MORNING_SUMMARY), limit=20).records:
        event = record.asset_materialization
        if event and _UNTIL in event.metadata and event.metadata[_DELIVERED].value is True:
            return datetime.fromtimestamp(float(str(event.metadata[_UNTIL].value)), UTC)
    return None
