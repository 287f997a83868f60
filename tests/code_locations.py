"""A code location over simulated tickers and a tiny base model, and the events of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.data.simulate import write_simulated
from kronos_pipeline.definitions import build
from kronos_pipeline.orchestration.automation.jobs import AutomationSettings
from kronos_pipeline.orchestration.resources import PipelineSettings, with_defaults

BARS = 150
TINY = {
    "lookback": 8,
    "horizon": 4,
    "validation_days": 10,
    "selection_days": 16,
    "stride": 4,
    "epochs": 1,
    "evaluations_per_epoch": 1,
    "eval_samples": 2,
    "device": "cpu",
}
BAD_CSV = "date,open,high,low,close,volume\n2024-01-02,1,2,0.5,text,10\n2024-01-03,1,0.2,0.1,0.1,10\n"


@dataclass
class Location:
    """Definitions of the tickers in `root/data`, with artifacts in `root/out` and a separate instance."""

    root: Path
    base: Path
    instance: dg.DagsterInstance = field(default_factory=dg.DagsterInstance.ephemeral)

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def layout(self) -> ArtifactLayout:
        return ArtifactLayout(self.root / "out")

    def write(self, *tickers: str, bars: int = BARS) -> None:
        write_simulated(self.data, tickers=tickers, bars=bars)

    def add_bars(self, ticker: str, bars: int) -> None:
        """Add bars to a CSV on the weekdays after its last bar: its last bars once more."""
        path = self.data / ticker / f"{ticker}.csv"
        frame = pd.read_csv(path)
        [time, *_] = frame.columns
        days = pd.bdate_range(frame[time].iloc[-1], periods=bars + 1)[1:]
        further = frame.tail(bars).assign(**{time: days.strftime("%Y-%m-%d")})
        pd.concat([frame, further]).to_csv(path, index=False)

    def write_bad(self, ticker: str) -> Path:
        path = self.data / ticker / f"{ticker}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(BAD_CSV)
        return path

    @cached_property
    def settings(self) -> PipelineSettings:
        folders = {"data_dir": str(self.data), "output_dir": str(self.root / "out"), "model_name": str(self.base)}
        return with_defaults(PipelineSettings, {**folders, **TINY})

    @cached_property
    def definitions(self) -> dg.Definitions:
        """Return the definitions, built at the first use from the tickers in the folder."""
        return build(self.settings, AutomationSettings())

    def run(self, job: str, *tickers: str, settings: dict[str, Any] | None = None) -> dg.ExecuteInProcessResult:
        """Run a job for a ticker, or for the range from the first to the last of several tickers."""
        selection = {"partition_key": tickers[0]} if len(tickers) == 1 else {"tags": ticker_range(tickers)}
        return self.definitions.resolve_job_def(job).execute_in_process(
            **selection, run_config=launchpad(settings or {}), instance=self.instance, raise_on_error=False
        )

    def select(
        self,
        assets: Sequence[str],
        *tickers: str,
        settings: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Run some assets and their checks, for tickers or with these tags."""
        job = self.definitions.get_implicit_global_asset_job_def()
        chosen = job.get_subset(
            asset_selection={dg.AssetKey.from_user_string(asset) for asset in assets},
            asset_check_selection=None,
        )
        selection: dict[str, Any] = {"tags": ticker_range(tickers) if tags is None else tags}
        if len(tickers) == 1:
            selection = {"partition_key": tickers[0]}
        return chosen.execute_in_process(
            **selection, run_config=launchpad(settings or {}), instance=self.instance, raise_on_error=False
        )

    def tick(self, sensor: dg.SensorDefinition, cursor: str | None = None) -> Any:
        """Evaluate a tick of a sensor."""
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=cursor,
            definitions=self.definitions,
            resources={"pipeline": self.settings},
        ) as context:
            return sensor.evaluate_tick(context)

    def materialised(self, asset: str) -> set[str]:
        """Return the tickers with a materialisation."""
        return self.instance.get_materialized_partitions(dg.AssetKey(asset))

    def metadata(self, asset: str, ticker: str | None = None) -> dict[str, Any]:
        """Return the metadata of the latest materialisation, of a ticker if the asset is partitioned."""
        partitions = None if ticker is None else [ticker]
        wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=partitions)
        event = self.instance.fetch_materializations(wanted, limit=1).records[0].asset_materialization
        assert event is not None
        return {name: value.value for name, value in event.metadata.items() if hasattr(value, "value")}


def launchpad(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a run's config in the form of the launchpad's editor."""
    return {"resources": {"pipeline": {"config": settings}}} if settings else {}


def ticker_range(tickers: Sequence[str]) -> dict[str, str]:
    """Return the tags of a run over several tickers."""
    return {"dagster/asset_partition_range_start": tickers[0], "dagster/asset_partition_range_end": tickers[-1]}


def failed_steps(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """Return the failed steps with the description that the UI shows."""
    errors = {}
    for event in result.all_events:
        if event.is_step_failure:
            cause = event.step_failure_data.user_failure_data
            errors[str(event.step_key)] = str(cause.description if cause else event.step_failure_data.error)
    return errors


def checks(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str], dict[str | None, bool]]:
    """Return whether each ticker passed, by asset and check."""
    passed: dict[tuple[str, str], dict[str | None, bool]] = {}
    for evaluation in result.get_asset_check_evaluations():
        passed.setdefault((evaluation.asset_key.to_user_string(), evaluation.check_name), {})[evaluation.partition] = (
            evaluation.passed
        )
    return passed
