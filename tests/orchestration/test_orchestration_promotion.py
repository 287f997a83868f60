"""From training to champion, forecast and drift, on a ticker with a pattern that an adapter can learn.

The pattern is the level by day of the week. It is strong and constant, and neither the last close nor the embedded base
model knows it. When the levels change, the champion drifts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from code_locations import Location, checks, failed_steps

from kronos_pipeline.artifacts import read_json, read_parquet
from kronos_pipeline.data.simulate import Calendar, Dynamics, simulate_ticker
from kronos_pipeline.orchestration.automation.drift_sensor import make_drift_sensor
from kronos_pipeline.orchestration.automation.jobs import AutomationSettings, make_jobs
from kronos_pipeline.orchestration.partitions import ticker_partitions
from kronos_pipeline.tracking.version_page import beaten_rivals

pytestmark = pytest.mark.slow

TICKER = "WEEKLY"  # a name that no other test promotes: the MLflow store is one for all of them
KNOWN, HORIZON = 400, 5
LEARNS = {
    "lookback": 20,
    "horizon": HORIZON,
    "validation_days": 10,
    "selection_days": 20,
    "stride": 1,
    "epochs": 2,
    "learning_rate": 5e-3,
    "eval_samples": 4,
    "backtest_origins": 10,
    "backtest_refit_every": 10,
    "recalibrate": False,
    "refit_all": True,
    "accept_history": True,  # a simulated ticker of another length has other bars
}


def bars(count: int, *, changed: bool) -> pd.DataFrame:
    """Write bars; with `changed`, the days of the week have other levels after the known bars."""
    rng = np.random.default_rng(5)
    pattern = Calendar(np.zeros((13, 32)), 0.06 * rng.standard_normal(7), np.zeros(24))
    dynamics = Dynamics(walk=0.002, deviation=0.0)
    simulated = simulate_ticker(77, count, dynamics=dynamics, calendar=pattern)
    frame = simulated.frame()
    if changed:
        opposite = np.exp(-4 * pattern.levels(pd.DatetimeIndex(frame["timestamps"])))
        after_known = np.arange(count) >= KNOWN
        prices = ["open", "high", "low", "close"]
        frame[prices] = frame[prices].mul(np.where(after_known, opposite, 1.0), axis=0)
        frame["high"], frame["low"] = frame[prices].max(axis=1), frame[prices].min(axis=1)
    return frame


def write(location: Location, frame: pd.DataFrame) -> None:
    path = location.data / TICKER / f"{TICKER}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)


@dataclass
class Champion:
    """Return a location after a decision of the gate on an adapter, and the drift sensor."""

    location: Location
    promoted: dg.ExecuteInProcessResult
    cursor: str | None = None
    requests: list[dg.RunRequest] = field(default_factory=list)

    def watch(self, count: int, *, changed: bool = False) -> dict[str, Any]:
        """Run the job `watch` on some bars, and return the metadata of `drift`."""
        write(self.location, bars(count, changed=changed))
        result = self.location.run("watch", TICKER, settings=LEARNS)
        assert result.success, failed_steps(result)
        return self.location.metadata("drift", TICKER)

    def tick(self) -> list[str | None]:
        """Return the jobs that the sensor requests now."""
        jobs = make_jobs(ticker_partitions([TICKER]))
        sensor = make_drift_sensor([TICKER], jobs, AutomationSettings())
        with dg.build_sensor_context(
            instance=self.location.instance, cursor=self.cursor, definitions=self.location.definitions
        ) as context:
            execution = sensor.evaluate_tick(context)
        self.cursor = execution.cursor
        self.requests = list(execution.run_requests or [])
        return [request.job_name for request in self.requests]


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Champion:
    location = Location(tmp_path_factory.mktemp("location"), Path("kronos-nano"))
    write(location, bars(KNOWN, changed=False))
    return Champion(location, location.run("promote_adapter", TICKER, settings=LEARNS))


def test_an_adapter_that_learned_a_strong_pattern_becomes_champion_with_the_reason(champion: Champion) -> None:
    assert champion.promoted.success, failed_steps(champion.promoted)
    metadata = champion.location.metadata("champion", TICKER)
    assert metadata["promoted"] is True
    assert metadata["evidence"] == "backtest"
    assert metadata["champion of"].startswith("distribution")
    assert "by its backtest: champion of distribution" in metadata["summary"]
    assert "base: better" in metadata["distribution"]
    # The seasonal naive forecast knows the levels of the days, too.
    assert "naive: better" in metadata["mean"]
    assert "seasonal_naive: no better" in metadata["mean"]
    assert metadata["version"] == 1


def test_the_version_holds_the_verdicts_the_reason_and_its_evidence(champion: Champion) -> None:
    from kronos_pipeline.tracking.registry import Registry
    from kronos_pipeline.tracking.runs import Tracker

    registry = Registry(Tracker(None, champion.location.layout.root))
    version = registry.champion(f"kronos-{TICKER}")
    assert version is not None
    metadata = champion.location.metadata("champion", TICKER)
    assert {"naive", "base"} <= set(beaten_rivals(version, "mean"))
    assert version.tags["reason.mean"].startswith("Not promoted by the strict gate: no better than seasonal_naive")
    assert version.tags["reason.distribution"].startswith("Promoted by the strict gate: better than ewma (skill ")
    assert version.run_id == metadata["MLflow run"] == champion.location.metadata("adapter", TICKER)["MLflow run"]
    predictions, _ = read_parquet(champion.location.layout.backtest("adapter", TICKER))
    assert len(registry.evidence(version)) == len(predictions)


def test_the_checks_of_holdout_and_backtest_show_each_verdict(champion: Champion) -> None:
    passed = checks(champion.promoted)
    assert passed["backtest", "better_distribution"] == {TICKER: True}
    texts = {
        (check.asset_key.to_user_string(), check.check_name): str(check.description)
        for check in champion.promoted.get_asset_check_evaluations()
    }
    assert "skill against ewma +" in texts["backtest", "better_distribution"]
    # Ten days are two cutoffs of five bars: on the holdout alone nothing can be said.
    assert ("holdout_metrics", "better_distribution") not in passed


def test_the_leaderboard_shows_and_keeps_holdout_and_backtest(champion: Champion) -> None:
    board = read_json(champion.location.layout.leaderboard)
    models = {source: [row["model"] for row in board[source]["models"]] for source in ("holdout", "backtest")}
    assert {"naive", "drift", "ewma", "base", "adapter"} <= set(models["backtest"])
    assert models["backtest"].index("adapter") < models["backtest"].index("naive")
    assert board["backtest"]["cutoffs"] == 10
    metadata = champion.location.metadata("leaderboard")
    assert list(metadata)[:3] == ["summary", "evaluated", "leaderboard"]
    assert metadata["leaderboard"].startswith("Holdout")
    assert metadata["backtest leaderboard"].startswith("Backtest")

    from mlflow import MlflowClient

    logged = MlflowClient().get_run(metadata["MLflow run"]).data.metrics
    assert logged["backtest/adapter/mase"] == next(
        row["mase"] for row in board["backtest"]["models"] if row["model"] == "adapter"
    )


def test_the_champion_forecasts_the_bars_to_come_by_its_refit_which_says_so(champion: Champion) -> None:
    champion.watch(KNOWN)
    metadata = champion.location.metadata("forecast", TICKER)
    assert metadata["forecast by"] == f"kronos-{TICKER} version 2, a refit of version 1, not itself measured"
    assert "version 1 is champion of distribution: better than base, ewma, " in metadata["why"]
    assert "not itself measured" in metadata["close"]
    assert metadata["fan chart"].startswith("![the bars to come, with intervals](data:image/png;base64,")
    ahead, manifest = read_parquet(champion.location.layout.forecast(TICKER))
    days = bars(KNOWN + HORIZON, changed=False)["timestamps"].iloc[-HORIZON:]
    assert ahead["ds"].tolist() == days.tolist()
    assert (ahead["lo_80"] <= ahead["hi_80"]).all()
    assert manifest["reason"] == metadata["why"]
    assert champion.location.metadata("champion", TICKER)["refit"] == (
        f"kronos-{TICKER} version 2: version 1 on all bars, not itself measured"
    )


def test_a_champion_is_watched_on_the_bars_that_came_since_it_was_measured(champion: Champion) -> None:
    assert "not yet a whole horizon of 5" in champion.watch(KNOWN + HORIZON - 1)["summary"]
    metadata = champion.watch(KNOWN + 2 * HORIZON)
    assert metadata["champion"] == f"kronos-{TICKER} version 1"
    assert metadata["drifted"] is False, metadata
    assert metadata["cutoffs"] == 2
    assert metadata["scaled error"] <= metadata["bound"]
    assert champion.tick() == []


def test_drift_asks_once_for_a_training_up_to_the_gate(champion: Champion) -> None:
    metadata = champion.watch(KNOWN + 2 * HORIZON, changed=True)
    assert metadata["drifted"] is True, metadata
    assert metadata["scaled error"] > metadata["bound"] > metadata["usual error"]
    assert champion.tick() == ["promote_adapter"]
    (request,) = champion.requests
    assert request.tags["dagster/asset_partition_range_start"] == TICKER
    assert champion.tick() == []
    champion.watch(KNOWN + 2 * HORIZON, changed=True)  # a new materialisation, and the same finding
    assert champion.tick() == []
    assert champion.watch(KNOWN + 3 * HORIZON, changed=True)["drifted"] is True
    assert champion.tick() == ["promote_adapter"]


def test_a_checkpoint_that_drifted_is_trained_anew_over_all_tickers() -> None:
    tickers = ["AAPL", "MSFT", "NVDA"]
    jobs = make_jobs(ticker_partitions(tickers))
    sensor = make_drift_sensor(tickers, jobs, AutomationSettings(tickers_per_run=1))
    with dg.DagsterInstance.ephemeral() as instance:
        for ticker, kind, drifted in (
            ("AAPL", "adapter", True),
            ("MSFT", "checkpoint", True),
            ("NVDA", "adapter", False),
        ):
            metadata: dict[str, Any] = {"drifted": drifted, "finding": f"{ticker} 1", "kind of champion": kind}
            instance.report_runless_asset_event(dg.AssetMaterialization("drift", partition=ticker, metadata=metadata))
        with dg.build_sensor_context(instance=instance) as context:
            requests = list(sensor.evaluate_tick(context).run_requests or [])
    starts_and_ends = [
        (request.job_name, *(request.tags[f"dagster/asset_partition_range_{end}"] for end in ("start", "end")))
        for request in requests
    ]
    assert starts_and_ends == [("promote_adapter", "AAPL", "AAPL"), ("retrain_checkpoint", "AAPL", "NVDA")]
