"""The nightly forecast while the MLflow server is away, or with a damaged evaluation: it comes, with a warning."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from code_locations import Location, failed_steps
from mlflow_servers import MlflowServer
from registered_models import GOOD, evidence, made_adapter

from kronos_pipeline.artifacts import read_parquet, write_json
from kronos_pipeline.orchestration.messages.summary import read_events
from kronos_pipeline.tracking.packaging import EvidenceTable
from kronos_pipeline.tracking.registry import Registry
from kronos_pipeline.tracking.runs import Tracker

pytestmark = pytest.mark.slow

TICKERS = ("AAPL", "MSFT")


def make_champion(location: Location, uri: str, folder: Path) -> None:
    """Register a champion of AAPL; MSFT has none."""
    tracker = Tracker(uri, location.layout.root)
    adapter = made_adapter(folder, location.settings.recipe("lora"), ["AAPL"])
    with tracker.training_run("made", location.settings.recipe("lora")) as run:
        pass
    registry, table = Registry(tracker), EvidenceTable(evidence(GOOD))
    number = registry.register(adapter, "kronos-AAPL", run.run_id, evidence=table, metrics={})
    registry.promote("kronos-AAPL", number, "to see it forecast")


def tables(location: Location) -> dict[str, pd.DataFrame]:
    return {ticker: read_parquet(location.layout.forecast(ticker))[0] for ticker in TICKERS}


def test_the_forecasts_of_a_night_without_the_server_are_those_with_it_and_say_so(
    working: MlflowServer, location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", working.uri)
    location.write(*TICKERS)
    make_champion(location, working.uri, tmp_path / "adapter")
    assert location.run("watch", *TICKERS).success
    known = tables(location)
    assert known["AAPL"]["model"].iloc[0] == "kronos-AAPL version 1"
    assert "warnings" not in location.metadata("forecast", "AAPL")

    working.end()
    night = location.run("watch", *TICKERS)
    assert night.success, failed_steps(night)
    for ticker, table in tables(location).items():
        pd.testing.assert_frame_equal(table, known[ticker], check_exact=True)
        for asset in ("forecast", "drift"):
            assert f"MLflow at {working.uri} does not answer" in location.metadata(asset, ticker)["warnings"]
    logged = location.instance.all_logs(night.run_id)
    warned = [entry.user_message for entry in logged if entry.level == 30 and "does not answer" in entry.user_message]
    assert [set(line.partition(":")[0].split(", ")) for line in warned] == [set(TICKERS)] * 2
    since = datetime.now(UTC) - timedelta(days=1)
    assert [entry.subject for entry in read_events(location.instance, TICKERS, since)["warned"]] == list(TICKERS)


@pytest.mark.parametrize("damaged", ["metrics/AAPL.json", "metrics/AAPL.parquet", "backtest/adapter/AAPL.json"])
def test_a_damaged_evaluation_costs_no_forecast_and_is_named_where_the_forecast_needs_it(
    location: Location, damaged: str
) -> None:
    location.write("AAPL")
    path = location.layout.root / damaged
    write_json(path, {"per_symbol": []})
    path.write_bytes(path.read_bytes().replace(b"symbol", b"simbol"))
    assert location.run("watch", "AAPL").success
    metadata = location.metadata("forecast", "AAPL")
    assert "no evaluation of rivals" in metadata["why"]
    if path.suffix == ".json":
        assert f"the evaluation is left out: {path} was edited or damaged" in metadata["warnings"]
        assert "make it again with `kronos" in metadata["warnings"]
    else:
        assert "warnings" not in metadata
