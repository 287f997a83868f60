"""Jobs and schedules: what is retrained, and when, in the market's own time."""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from kronos_pipeline.errors import SettingsError
from kronos_pipeline.orchestration.partitions import split_into_runs

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

INGEST = "ingest"
RETRAIN_ADAPTER = "retrain_adapter"
RETRAIN_CHECKPOINT = "retrain_checkpoint"
_ENVIRONMENT = "KRONOS_"
_NO_TICKERS = "There are no tickers: reload the code location when the data folder has CSVs."


class AutomationSettings(BaseSettings):
    """When and how much is retrained; the environment says it, as KRONOS_MARKET_TIME_ZONE and so on."""

    model_config = SettingsConfigDict(env_prefix=_ENVIRONMENT, env_ignore_empty=True)

    market_time_zone: str = Field("America/New_York", description="time zone of the schedules")
    adapter_cron: str = Field("0 20 * * 1-5", description="when adapters are retrained: weekday nights")
    checkpoint_cron: str = Field("0 8 * * 6", description="when the checkpoint is retrained: once a week")
    tickers_per_run: int = Field(50, ge=1, description="tickers that one requested run covers, at most")
    retrain_after_bars: int = Field(20, ge=1, description="new bars after which the sensor asks for retraining")

    @field_validator("market_time_zone")
    @classmethod
    def _check_zone(cls, name: str) -> str:
        try:
            zoneinfo.ZoneInfo(name)
        except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError) as error:
            raise ValueError(f"{name!r} is no time zone; use a name such as America/New_York") from error
        return name

    @classmethod
    def from_environment(cls) -> AutomationSettings:
        """The settings.

        Raises:
            SettingsError: a variable holds what it cannot.
        """
        try:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            variable = f"{_ENVIRONMENT}{'_'.join(map(str, first['loc']))}".upper()
            raise SettingsError(f"{variable}: {first['msg'].removeprefix('Value error, ')}.") from error


def make_jobs(partitions: dg.PartitionsDefinition) -> list[UnresolvedAssetJobDefinition]:
    """The jobs, each for one ticker or for a range of them, with the checks of their assets."""
    selections = {
        INGEST: ("Read CSVs and cut windows.", ("raw_bars", "windows")),
        RETRAIN_ADAPTER: (
            "From CSV to adapter and holdout metrics, for one ticker or many.",
            ("raw_bars", "windows", "adapter", "holdout_metrics", "leaderboard"),
        ),
        RETRAIN_CHECKPOINT: (
            "From CSVs to one checkpoint over all tickers, measured on each of them.",
            ("raw_bars", "windows", "checkpoint", "holdout_metrics", "leaderboard"),
        ),
    }
    return [
        dg.define_asset_job(name, dg.AssetSelection.assets(*assets), description=description, partitions_def=partitions)
        for name, (description, assets) in selections.items()
    ]


def make_schedules(tickers: Sequence[str], settings: AutomationSettings) -> list[dg.ScheduleDefinition]:
    """Adapters on weekday nights, a run per chunk of the sorted tickers; the checkpoint weekly, over all of them."""
    chunk = settings.tickers_per_run
    nights = f"Retrains every ticker's adapter, {chunk} tickers a run."
    weekly = "Retrains the checkpoint over all tickers, in one run."
    return [
        _schedule(
            "adapters_on_weekday_nights", RETRAIN_ADAPTER, nights, settings.adapter_cron, chunk, tickers, settings
        ),
        _schedule("checkpoint_weekly", RETRAIN_CHECKPOINT, weekly, settings.checkpoint_cron, None, tickers, settings),
    ]


def _schedule(
    name: str,
    job: str,
    description: str,
    cron: str,
    per_run: int | None,
    tickers: Sequence[str],
    settings: AutomationSettings,
) -> dg.ScheduleDefinition:
    @dg.schedule(cron, name=name, job_name=job, description=description, execution_timezone=settings.market_time_zone)
    def schedule(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        if not tickers:
            yield dg.SkipReason(_NO_TICKERS)
        for number, tags in enumerate(split_into_runs(tickers, tickers, per_run or len(tickers))):
            # The key keeps a tick that is evaluated twice from training twice.
            yield dg.RunRequest(run_key=f"{context.scheduled_execution_time.isoformat()} {number}", tags=tags)

    return schedule
