"""Jobs, and their schedules in the market's own time.

tick, and a session has ended since the schedule's last run     a run for each chunk of the tickers with a session
tick, and none has: a holiday                                   skipped, with the reason
ticks missed, as the machine was off                            Dagster evaluates the last of them, once
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple, Optional

import dagster as dg
from dagster._core.storage.tags import SCHEDULE_NAME_TAG, SCHEDULED_EXECUTION_TIME_TAG
from dagster._utils.schedules import get_latest_completed_cron_tick, is_valid_cron_schedule
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from kronos_pipeline.addresses import without_password
from kronos_pipeline.data.sessions import tickers_without_session
from kronos_pipeline.errors import SettingsError, group_messages
from kronos_pipeline.orchestration.partitions import split_into_runs

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

INGEST = "ingest"
RETRAIN_ADAPTER = "retrain_adapter"
RETRAIN_CHECKPOINT = "retrain_checkpoint"
PROMOTE_ADAPTER = "promote_adapter"
WATCH = "watch"
SUM_UP = "sum_up"
MORNING_SUMMARY = "morning_summary"
"""The asset of the job `sum_up`."""
_ENVIRONMENT = "KRONOS_"
_RUNS_PER_TICK = 1000
_NO_TICKERS = "There are no tickers: add CSVs to the data folder, and reload the code location."


class AutomationSettings(BaseSettings):
    """Times and sizes of automatic runs, from environment variables such as KRONOS_MARKET_TIME_ZONE."""

    model_config = SettingsConfigDict(env_prefix=_ENVIRONMENT, env_ignore_empty=True)

    market_time_zone: str = Field("America/New_York", description="time zone of the schedules")
    watch_cron: str = Field(
        "0 18 * * 1-5", description="times of forecasts, track records and drift measurements: weekdays"
    )
    adapter_cron: str = Field("0 20 * * 1-5", description="times of the retraining of adapters: weekday nights")
    checkpoint_cron: str = Field("0 8 * * 6", description="times of the retraining of the checkpoint: once a week")
    promote_cron: str = Field("0 8 * * 0", description="times of backtest and gate of adapters: once a week")
    clean_cron: str = Field("0 14 * * 0", description="times at which what is no longer needed is deleted: once a week")
    summary_cron: str = Field("0 7 * * 1-6", description="times of the summary: mornings, except on Sunday")
    notify_urls: SecretStr = Field(
        SecretStr(""), description="addresses of apprise, for the summary and for failed runs; a secret"
    )
    dagster_ui: Optional[str] = Field(
        None, description="address of Dagster's UI, for links in messages and to reload the code location"
    )
    tickers_per_run: int = Field(50, ge=1, description="the largest number of tickers in a requested run")
    retrain_after_bars: int = Field(20, ge=1, description="new bars after which the sensor requests retraining")

    @field_validator("market_time_zone")
    @classmethod
    def _check_zone(cls, name: str) -> str:
        try:
            zoneinfo.ZoneInfo(name)
        except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError) as error:
            raise ValueError(f"{name!r} is no time zone; use a name such as America/New_York") from error
        return name

    @field_validator("dagster_ui")
    @classmethod
    def _strip_password(cls, address: str | None) -> str | None:
        return address and without_password(address)  # links in messages and in the UI hold the address

    @field_validator("watch_cron", "adapter_cron", "checkpoint_cron", "promote_cron", "clean_cron", "summary_cron")
    @classmethod
    def _check_cron(cls, cron: str) -> str:
        if not is_valid_cron_schedule(cron):
            raise ValueError(f"{cron!r} is no cron schedule; use five fields such as 0 20 * * 1-5")
        return cron

    @classmethod
    def from_environment(cls) -> AutomationSettings:
        """Read the settings.

        Raises:
            SettingsError: a variable is invalid.
        """
        try:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            variable = f"{_ENVIRONMENT}{'_'.join(map(str, first['loc']))}".upper()
            raise SettingsError(f"{variable}: {first['msg'].removeprefix('Value error, ')}.") from error


class Job(NamedTuple):
    """A job: its description, and its assets, with their checks."""

    description: str
    assets: tuple[str, ...]


class Timetable(NamedTuple):
    """A schedule of a job for all tickers, with the number of tickers per run, or None for all in a run."""

    name: str
    job: str
    description: str
    cron: str
    per_run: int | None


_INGESTED = ("raw_bars", "windows")
_MEASURED = ("holdout_metrics", "leaderboard")
JOBS = {
    INGEST: Job("Read CSVs and cut windows.", _INGESTED),
    RETRAIN_ADAPTER: Job(
        "From CSV to adapter and holdout metrics, for one ticker or many, without promotion.",
        (*_INGESTED, "adapter", *_MEASURED),
    ),
    PROMOTE_ADAPTER: Job(
        "From CSV to adapter and holdout metrics, then a backtest, which trains at each of its cutoffs, then the gate, "
        "which makes an adapter champion of a target only if it is better than every rival there, then the forecast.",
        (*_INGESTED, "adapter", *_MEASURED, "backtest", "champion", "forecast"),
    ),
    RETRAIN_CHECKPOINT: Job(
        "From CSVs to a checkpoint over all tickers, its holdout metrics for each ticker, and the gate.",
        (*_INGESTED, "checkpoint", *_MEASURED, "checkpoint_champion"),
    ),
    WATCH: Job(
        "Read CSVs, forecast the bars to come, score the forecasts issued before, and measure the drift of champions, "
        "without training.",
        (*_INGESTED, "forecast", "track_record", "drift"),
    ),
}


def make_jobs(partitions: dg.PartitionsDefinition) -> list[UnresolvedAssetJobDefinition]:
    """Return the jobs, each for one ticker or a range of tickers, with the checks of their assets."""
    return [
        dg.define_asset_job(
            name, dg.AssetSelection.assets(*job.assets), description=job.description, partitions_def=partitions
        )
        for name, job in JOBS.items()
    ]


def make_summary_job() -> UnresolvedAssetJobDefinition:
    """Return the job of the asset `morning_summary`."""
    return dg.define_asset_job(
        SUM_UP,
        dg.AssetSelection.assets(MORNING_SUMMARY),
        description="Sum up what happened since the last summary, and tell people.",
    )


def make_summary_schedule(settings: AutomationSettings) -> dg.ScheduleDefinition:
    """Return the schedule of the summary."""
    return dg.ScheduleDefinition(
        name="summary_in_the_morning",
        job_name=SUM_UP,
        description="Says what was trained and promoted, what failed, drifts or has expired.",
        cron_schedule=settings.summary_cron,
        execution_timezone=settings.market_time_zone,
    )


def make_schedules(
    tickers: Sequence[str], settings: AutomationSettings, calendars: Sequence[str] = ()
) -> list[dg.ScheduleDefinition]:
    """Return the schedules: forecasts and drift on weekdays, adapters on weekday nights, gate and checkpoint weekly.

    A run covers a chunk of the sorted tickers; the run of the checkpoint covers all tickers.

    Args:
        tickers: the partitions of the code location.
        settings: times and sizes.
        calendars: exchange calendars by ticker; a ticker whose exchange ended no session since the schedule's last run
            is left out.
    """
    chunk = settings.tickers_per_run
    chunks = f"{chunk} tickers a run."
    timetables = [
        Timetable(
            "forecasts_on_weekdays",
            WATCH,
            f"Reads new bars, forecasts, scores earlier forecasts, and measures drift, {chunks}",
            settings.watch_cron,
            chunk,
        ),
        Timetable(
            "adapters_on_weekday_nights",
            RETRAIN_ADAPTER,
            f"Retrains every ticker's adapter, {chunks}",
            settings.adapter_cron,
            chunk,
        ),
        Timetable(
            "checkpoint_weekly",
            RETRAIN_CHECKPOINT,
            "Retrains the checkpoint over all tickers, in one run.",
            settings.checkpoint_cron,
            None,
        ),
        Timetable(
            "promotion_weekly",
            PROMOTE_ADAPTER,
            f"Retrains and backtests every ticker's adapter and lets the gate decide, {chunks}",
            settings.promote_cron,
            chunk,
        ),
    ]
    return [_schedule(timetable, tickers, settings.market_time_zone, calendars) for timetable in timetables]


def _schedule(
    timetable: Timetable, tickers: Sequence[str], time_zone: str, calendars: Sequence[str]
) -> dg.ScheduleDefinition:
    name, job, description, cron, per_run = timetable

    @dg.schedule(cron, name=name, job_name=job, description=description, execution_timezone=time_zone)
    def schedule(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        if not tickers:
            yield dg.SkipReason(_NO_TICKERS)
            return
        now = context.scheduled_execution_time
        since = _last_request(context, name, now) or _tick_before(cron, now, time_zone)
        since = since.astimezone(zoneinfo.ZoneInfo(time_zone))
        closed = tickers_without_session(tickers, calendars, since, now)
        reasons = group_messages(
            (ticker, f"{calendar} has ended no session since {since:%Y-%m-%d %H:%M}")
            for ticker, calendar in closed.items()
        )
        if len(closed) == len(tickers):
            yield dg.SkipReason(". ".join(reasons))
            return
        for reason in reasons:
            context.log.info(f"Left out: {reason}")
        # A checkpoint trains on all tickers, and rests only if no exchange had a session.
        chosen = tickers if per_run is None else [ticker for ticker in tickers if ticker not in closed]
        for number, tags in enumerate(split_into_runs(chosen, tickers, per_run or len(tickers))):
            # With the key, Dagster launches a run once, even if the tick is evaluated twice.
            yield dg.RunRequest(run_key=f"{now.isoformat()} {number}", tags=tags)

    return schedule


def _last_request(context: dg.ScheduleEvaluationContext, name: str, tick: datetime) -> datetime | None:
    """Return the time of the newest tick of a schedule before a tick that requested a run, or None."""
    if context.instance_ref is None:
        return None
    of_schedule = dg.RunsFilter(tags={SCHEDULE_NAME_TAG: name})
    for limit in (1, _RUNS_PER_TICK):  # if the daemon died in this very tick, its first runs come first
        runs = context.instance.get_runs(of_schedule, limit=limit)
        texts = [run.tags.get(SCHEDULED_EXECUTION_TIME_TAG) for run in runs]
        times = [datetime.fromisoformat(text) for text in texts if text]
        if earlier := [time for time in times if time < tick]:
            return max(earlier)
    return None


def _tick_before(cron: str, tick: datetime, time_zone: str) -> datetime:
    """Return the time of the tick before a tick."""
    return get_latest_completed_cron_tick(cron, tick - timedelta(seconds=1), time_zone)
