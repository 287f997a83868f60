"""Dagster's runs on machines that share a store: downstream assets on another machine, and damage in the store."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from code_locations import Location, failed_steps
from shared_folders import flip, use_store

from kronos_pipeline.artifact_store.exchange import SharedFolder
from kronos_pipeline.artifact_store.exchanged import Exchanged
from kronos_pipeline.orchestration.automation.disk_sensor import make_disk_sensor

if TYPE_CHECKING:
    from moto_server import MotoServer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean_mlflow_store")]


def test_downstream_assets_are_made_on_another_machine_and_a_damaged_ticker_fails_alone(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_store(monkeypatch, f"file://{tmp_path}/store")
    a, b, c = (Location(tmp_path / name, tiny_base) for name in "abc")
    a.write("AAPL", "META")
    for other in (b, c):
        shutil.copytree(a.data, other.data)
    assert a.select(["raw_bars", "windows", "adapter"], "AAPL", "META").success
    assert b.select(["holdout_metrics", "forecast"], "AAPL", "META").success
    for ticker in ("AAPL", "META"):
        weights = [one.layout.adapter(ticker) / "adapter_model.safetensors" for one in (a, b)]
        assert weights[0].read_bytes() == weights[1].read_bytes()

    for path in (tmp_path / "store" / "versions" / "adapters" / "META").rglob("adapter_model.safetensors"):
        flip(path)
    result = c.select(["forecast"], "AAPL", "META")
    assert not result.success
    [told] = failed_steps(result).values()
    assert "META" in told
    assert "damaged or missing in the artifact store" in told
    assert c.layout.forecast("AAPL").is_file()
    assert not c.layout.forecast("META").exists()

    # A training makes anew what is damaged, and gives it to the others.
    assert c.select(["raw_bars", "windows", "adapter", "holdout_metrics"], "META").success
    assert b.select(["forecast"], "META").success


def test_the_sensor_shows_what_another_machine_made_and_asks_for_changed_tickers_only(
    tmp_path: Path, tiny_base: Path, moto: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    use_store(monkeypatch, moto.new_url())
    tickers = ["AAPL", "META"]
    one, other = (Location(tmp_path / name, tiny_base) for name in ("one", "other"))
    one.write(*tickers)
    shutil.copytree(one.data, other.data)
    sensor, asked = make_disk_sensor(tickers), list[str]()
    fetch = SharedFolder.fetch

    def counted(folder: SharedFolder, groups: Collection[str] | None = None, keep: Any = None) -> Exchanged:
        asked.extend(groups or ())
        return fetch(folder, groups, keep)

    def tick() -> Any:
        asked.clear()
        with (
            monkeypatch.context() as during_the_tick,
            dg.build_sensor_context(
                instance=other.instance, definitions=other.definitions, resources={"pipeline": other.settings}
            ) as context,
        ):
            during_the_tick.setattr(SharedFolder, "fetch", counted)
            return sensor.evaluate_tick(context)

    assert one.select(["raw_bars", "windows"], *tickers).success
    tick()
    assert asked == tickers
    assert other.materialised("raw_bars") == other.materialised("windows") == set(tickers)
    one.add_bars("META", 3)
    assert one.select(["raw_bars", "windows"], "META").success
    tick()
    assert asked == ["META"]
    tick()
    assert asked == []

    use_store(monkeypatch, "nowhere://store")
    assert tick().skip_message == "Every artifact on the disk is known.", "a store that is away ends no tick"
