"""The whole code location: assets, checks, jobs, schedules, sensors and resources, for the tickers in the data folder.

raw_bars[T] -> windows[T] -+-> adapter[T] --+-> holdout_metrics[T] -+-> champion[T] -+-> forecast[T] -> track_record[T]
                           |                |                       |                +-> drift[T]
                           +-> checkpoint --+                       +-> checkpoint_champion
                           |                                        |
                           +-> backtest[T] -------------------------+-> leaderboard

`champion[T]` reads the backtest too. If a ticker has no champion of its own, `checkpoint_champion` forecasts it.
"""

from __future__ import annotations

import warnings
from datetime import timedelta
from typing import Any

import dagster as dg

from kronos_pipeline.cli.command import tune_garbage_collection
from kronos_pipeline.code_version import layers_version
from kronos_pipeline.errors import join
from kronos_pipeline.evaluation.scoring.targets import TARGETS
from kronos_pipeline.orchestration.assets.adapter_by_ticker import adapters_by_ticker
from kronos_pipeline.orchestration.assets.data import raw_bars, windows
from kronos_pipeline.orchestration.assets.evaluation import backtest, holdout_metrics, leaderboard
from kronos_pipeline.orchestration.assets.monitoring import drift, forecast, track_record
from kronos_pipeline.orchestration.assets.promotion import champion, checkpoint_champion
from kronos_pipeline.orchestration.assets.summary import morning_summary_asset
from kronos_pipeline.orchestration.assets.training import adapter, checkpoint
from kronos_pipeline.orchestration.automation.cleaning import make_cleaning_job, make_cleaning_schedule
from kronos_pipeline.orchestration.automation.csv_sensor import make_csv_sensor
from kronos_pipeline.orchestration.automation.disk_sensor import make_disk_sensor
from kronos_pipeline.orchestration.automation.drift_sensor import make_drift_sensor
from kronos_pipeline.orchestration.automation.jobs import (
    AutomationSettings,
    make_jobs,
    make_schedules,
    make_summary_job,
    make_summary_schedule,
)
from kronos_pipeline.orchestration.automation.killed_runs import GPU, make_killed_runs_sensor
from kronos_pipeline.orchestration.automation.new_symbols import make_new_symbols_sensor
from kronos_pipeline.orchestration.checks import (
    bars_are_sound,
    complete_check,
    ticker_check,
    windows_do_not_leak,
)
from kronos_pipeline.orchestration.column_schemas import with_column_schema
from kronos_pipeline.orchestration.io_manager import artifact_io_manager
from kronos_pipeline.orchestration.messages.failure_sensor import make_failure_sensor
from kronos_pipeline.orchestration.partitions import find_tickers, ticker_partitions
from kronos_pipeline.orchestration.resources import Clock, PipelineSettings, Tracking
from kronos_pipeline.orchestration.verdict_checks import REPORTS, better_on

OWNERS = ["team:forecasting"]
PER_TICKER = (
    "raw_bars",
    "windows",
    "adapter",
    "holdout_metrics",
    "backtest",
    "champion",
    "forecast",
    "track_record",
    "drift",
)
OPTIONAL_CHECKPOINT, OPTIONAL_BACKTEST = "optional_checkpoint", "optional_backtest"
OPTIONAL_CHAMPIONS = "optional_champions"


BARS_FRESH = dg.FreshnessPolicy.time_window(warn_window=timedelta(days=4, hours=12), fail_window=timedelta(days=7))
"""For what each session brings: a weekend and a holiday beside it are four days."""
TRAININGS_FRESH = dg.FreshnessPolicy.time_window(warn_window=timedelta(days=8), fail_window=timedelta(days=15))
"""For adapters, which are trained every week at least: a week is missed, two are."""


def optional_input(
    name: str, upstream: list[str], group: str, partitions: dg.PartitionsDefinition | None = None
) -> dg.AssetSpec:
    """Return a virtual asset that stands between an asset and inputs that the asset can do without.

    Dagster runs what is downstream of it after the inputs if they are in the same run. It does not warn of an input
    that was never made, as it would of a direct dependency.
    """
    inputs = join([f"`{asset}`" for asset in upstream])
    return dg.AssetSpec(
        name,
        deps=upstream,
        description=f"An optional input, which makes nothing: what follows reads {inputs} where there is one, and "
        "works without it.",
        group_name=group,
        owners=OWNERS,
        kinds={"optional"},
        partitions_def=partitions,
        is_virtual=True,
    )


def build(settings: PipelineSettings, automation: AutomationSettings) -> dg.Definitions:
    """Return the code location for the tickers of `settings.data_dir`."""
    tickers = find_tickers(settings.data_folder, lambda: settings.reading)
    partitions = ticker_partitions(tickers)
    over_all: dict[str, Any] = {"backfill_policy": dg.BackfillPolicy.single_run(), "owners": OWNERS}
    per_ticker = {"partitions_def": partitions, **over_all}
    data, model = layers_version("data"), layers_version("model", "training")
    evaluation = layers_version("model", "evaluation")
    promotion = layers_version("model", "evaluation", "tracking", "promotion")
    training: dict[str, Any] = {
        "group_name": "training",
        "kinds": {"pytorch", "huggingface"},
        "pool": GPU,
    }
    scoring: dict[str, Any] = {"group_name": "evaluation", "code_version": evaluation}
    serving: dict[str, Any] = {"group_name": "serving", "code_version": promotion, "pool": GPU}
    assets = [
        dg.asset(
            **per_ticker, group_name="data", kinds={"csv", "pandas"}, code_version=data, freshness_policy=BARS_FRESH
        )(raw_bars),
        dg.asset(**per_ticker, group_name="data", kinds={"pandas", "parquet"}, code_version=data)(windows),
        dg.asset(**per_ticker, **training, code_version=model, freshness_policy=TRAININGS_FRESH)(adapter),
        dg.asset(**over_all, **training, code_version=model)(checkpoint),
        dg.asset(**per_ticker, **scoring, kinds={"pytorch"}, deps=["adapter", OPTIONAL_CHECKPOINT], pool=GPU)(
            holdout_metrics
        ),
        dg.asset(**per_ticker, **scoring, kinds={"pytorch"}, pool=GPU)(backtest),
        dg.asset(**over_all, **scoring, kinds={"parquet", "mlflow"}, deps=[OPTIONAL_BACKTEST], output_required=False)(
            leaderboard
        ),
        dg.asset(**per_ticker, **serving, kinds={"mlflow"}, deps=["adapter", "holdout_metrics", OPTIONAL_BACKTEST])(
            champion
        ),
        dg.asset(**over_all, **serving, kinds={"mlflow"}, deps=["checkpoint", "holdout_metrics"])(checkpoint_champion),
        dg.asset(**per_ticker, **serving, kinds={"pytorch"}, deps=[OPTIONAL_CHAMPIONS], freshness_policy=BARS_FRESH)(
            forecast
        ),
        dg.asset(
            **per_ticker,
            group_name="serving",
            code_version=evaluation,
            kinds={"parquet"},
            deps=["forecast"],
        )(track_record),
        dg.asset(**per_ticker, **serving, kinds={"pytorch"}, deps=[OPTIONAL_CHAMPIONS])(drift),
    ]
    summary = morning_summary_asset(
        tickers, automation, group_name="serving", owners=OWNERS, kinds={"markdown"}, code_version=promotion
    )
    optional = [
        optional_input(OPTIONAL_CHECKPOINT, ["checkpoint"], "evaluation"),
        optional_input(OPTIONAL_BACKTEST, ["backtest"], "evaluation", partitions),
        optional_input(OPTIONAL_CHAMPIONS, ["champion", "checkpoint_champion"], "serving", partitions),
    ]
    by_ticker = adapters_by_ticker(tickers, group_name="adapter_by_ticker", owners=OWNERS, kinds={"dagster"})
    checks = [
        *(complete_check(asset, partitions) for asset in PER_TICKER),
        ticker_check("raw_bars", "sound", bars_are_sound, partitions, blocking=True),
        ticker_check("windows", "no_leak", windows_do_not_leak, partitions, blocking=True),
        *(
            ticker_check(asset, f"better_{target}", better_on(target, asset), partitions, blocking=False)
            for asset in REPORTS
            for target in TARGETS
        ),
    ]
    jobs = make_jobs(partitions)
    return dg.Definitions(
        assets=[
            *dg.with_source_code_references([*map(with_column_schema, assets), summary]),
            *optional,
            *by_ticker,
        ],
        asset_checks=checks,
        jobs=[*jobs, make_cleaning_job(), make_summary_job()],
        schedules=[
            *make_schedules(tickers, automation, settings.calendars),
            make_cleaning_schedule(automation),
            make_summary_schedule(automation),
        ],
        sensors=[
            make_csv_sensor(settings.data_folder, tickers, jobs, automation),
            make_drift_sensor(tickers, jobs, automation),
            make_new_symbols_sensor(settings.data_folder, tickers, jobs, automation),
            make_killed_runs_sensor(),
            make_failure_sensor(automation),
            make_disk_sensor(tickers),
        ],
        resources={
            "pipeline": settings,
            "tracking": Tracking.from_environment(),
            "clock": Clock(),
            "io_manager": artifact_io_manager,
        },
        executor=dg.in_process_executor,
    )


tune_garbage_collection()  # a thousand tickers are sixty thousand objects that live as long as the process
with warnings.catch_warnings():
    # Backfill policies and partitioned checks are not stable in Dagster yet; constraints.txt pins its version.
    warnings.simplefilter("ignore", dg.BetaWarning)
    warnings.simplefilter("ignore", dg.PreviewWarning)
    defs = build(PipelineSettings.from_environment(), AutomationSettings.from_environment())
