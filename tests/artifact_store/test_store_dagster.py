"""Dagster's runs on machines that share a store: downstream assets on another machine, and damage in the store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from code_locations import Location, failed_steps
from shared_folders import flip, use_store

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
