"""Dagster's storage and MLflow's store on PostgreSQL, with the settings of deploy/: a ticker from CSV to forecast."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from code_locations import Location, failed_steps
from postgres_server import USER, PostgresServer

from kronos_pipeline.leases import Leases
from kronos_pipeline.orchestration.automation.killed_runs import GPU, hold_run_lock, make_killed_runs_sensor, was_killed
from kronos_pipeline.pipeline.status import read_status
from kronos_pipeline.tracking.store_checks import check_champions
from kronos_pipeline.tracking.stored_registry import read_registered_models
from kronos_pipeline.training import preflight

pytestmark = pytest.mark.slow

SETTINGS = Path(__file__).parents[2] / "deploy" / "dagster.yaml"


@pytest.fixture
def instance(postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """An instance with the settings of deploy/dagster.yaml, whose address has the port in it."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(SETTINGS, home / "dagster.yaml")
    with (home / "dagster.yaml").open("r+") as settings:
        text = settings.read().replace("      scheme:", f"      port: {postgres.port}\n      scheme:")
        settings.seek(0)
        settings.write(text)
    variables = {"PGHOST": "127.0.0.1", "PGUSER": USER, "PGPASSWORD": postgres.password}
    for name, value in {**variables, "KRONOS_DAGSTER_DATABASE": postgres.new_database()}.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.from_config(str(home)) as found:
        yield found


def test_a_ticker_goes_from_csv_to_forecast_and_the_server_may_restart_on_the_way(
    instance: dg.DagsterInstance,
    postgres: PostgresServer,
    tmp_path: Path,
    tiny_base: Path,
    mlflow_database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    location = Location(tmp_path, tiny_base, instance)
    location.write("AAPL")
    check_disk = preflight.check_disk

    def restart(folder: Path, needed: int) -> None:  # in the middle of a training, with its run and leases open
        postgres.restart()
        check_disk(folder, needed)

    monkeypatch.setattr(preflight, "check_disk", restart)
    trained = location.run("retrain_adapter", "AAPL")
    assert trained.success, failed_steps(trained)
    for assets in (["champion"], ["forecast"], ["track_record"]):
        result = location.select(assets, "AAPL")
        assert result.success, failed_steps(result)
    made = ("raw_bars", "windows", "adapter", "holdout_metrics", "champion", "forecast", "track_record")
    assert all(location.materialised(asset) == {"AAPL"} for asset in made)
    assert instance.get_run_by_id(trained.run_id) is not None

    models = read_registered_models(mlflow_database)
    assert models is not None
    assert [version.measured for version in models["kronos-AAPL"].versions] == [True]
    assert check_champions(mlflow_database)[0] == "ok"
    status = read_status(location.data, location.layout, datetime.now(UTC))
    assert (status.notes, status.tickers[0].failed) == ((), None)
    assert not (location.layout.root / "mlflow.db").exists()
    texts = [entry.user_message for entry in instance.all_logs(trained.run_id)]
    assert not any(postgres.password in str(text) for text in texts)


def test_the_sensor_of_killed_runs_works_at_each_tick_and_follows_the_settings_and_a_person(
    instance: dg.DagsterInstance, mlflow_database: str, tmp_path: Path
) -> None:
    del mlflow_database  # the leases are in it
    storage, sensor = instance.event_log_storage, make_killed_runs_sensor()

    def tick(of: dg.DagsterInstance) -> tuple[str | None, int]:
        said = sensor.evaluate_tick(dg.build_sensor_context(instance=of)).skip_message
        return said, of.event_log_storage.get_concurrency_info(GPU).slot_count

    assert [tick(instance), tick(instance)] == [("No run was killed.", 1)] * 2
    settings = tmp_path / "home" / "dagster.yaml"
    settings.write_text(settings.read_text().replace("default_limit: 1", "default_limit: 3"))
    with dg.DagsterInstance.from_config(str(tmp_path / "home")) as changed:
        assert [tick(changed), tick(changed)] == [("No run was killed.", 3)] * 2
    storage.set_concurrency_slots(GPU, 2)
    assert tick(instance) == ("No run was killed.", 2), "a person set it in the UI"


def test_a_run_that_was_killed_on_another_machine_is_found(
    instance: dg.DagsterInstance, mlflow_database: str, postgres: PostgresServer
) -> None:
    elsewhere = Leases(mlflow_database, "another machine")
    assert elsewhere.take("runs/123")
    assert not was_killed(instance, "123")
    elsewhere._tokens.clear()
    postgres.execute("UPDATE kronos_leases SET expires = now() - interval '1 s'", mlflow_database.rpartition("/")[2])
    assert was_killed(instance, "123")
    with hold_run_lock(instance, "124"):
        assert not was_killed(instance, "124")
    assert not was_killed(instance, "124"), "it ended by itself"
