"""The parts of the soak, which itself takes many minutes: `make soak`."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from small_trainings import simulated_bars, small_recipe
from soak_faults import KINDS, OF_A_RUN, plan_faults
from soak_results import Remains, compare

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.data.bars import Bars, save_bars
from kronos_pipeline.evaluation import ledger
from kronos_pipeline.evaluation.forecasting.future import forecast_ahead
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling

pytestmark = pytest.mark.slow

RECIPE = small_recipe(Path("none"), horizon=3)
BARS = simulated_bars(bars=60)
CUTOFF = pd.Timestamp(BARS.frame["timestamps"].iloc[-1])


@pytest.mark.parametrize("nights", [5, 10, 20])
@pytest.mark.parametrize("seed", range(10))
def test_a_soak_has_each_kind_of_fault_and_begins_and_ends_without(nights: int, seed: int) -> None:
    plan = plan_faults(nights, seed)
    assert len(plan) == nights
    assert plan[0] == plan[-1] == ()
    assert all(plan[1:-1])
    assert {kind for faults in plan for kind in faults} == set(KINDS)
    assert all(sum(kind in OF_A_RUN for kind in faults) <= 1 for faults in plan)
    assert plan == plan_faults(nights, seed)


def issue(output: Path, bars: Bars, hour: int = 22) -> None:
    issued = datetime.combine(CUTOFF.date(), datetime.min.time(), UTC).replace(hour=hour)
    table = forecast_ahead(bars, None, plain_sampling(RECIPE), RECIPE)
    ledger.append(ArtifactLayout(output), [ledger.ledger_rows(bars, table, RECIPE, version="1", issued=issued)])


@pytest.fixture
def remains(tmp_path: Path) -> tuple[Remains, Remains]:
    """Return what two machines have that ran the same night."""
    layout = ArtifactLayout(tmp_path / "expected")
    save_bars(layout.bars("AAPL"), BARS)
    issue(layout.root, BARS)
    shutil.copytree(layout.root, tmp_path / "found")
    folders = (layout.root, tmp_path / "found")
    expected, found = (Remains(["AAPL"], folder, folder / "mlflow.db") for folder in folders)
    return expected, found


def test_two_machines_with_the_same_files_and_forecasts_are_equal(remains: tuple[Remains, Remains]) -> None:
    assert compare(*remains, excused=set(), altered=set()) == (0, [])


def test_a_soak_names_what_differs_of_each_ticker(remains: tuple[Remains, Remains]) -> None:
    expected, found = remains
    save_bars(ArtifactLayout(found.output).bars("AAPL"), simulated_bars(bars=61))
    weights = found.output / "adapters" / "AAPL" / "adapter_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    issue(found.output, BARS, hour=23)
    assert compare(expected, found, excused=set(), altered=set()) == (
        0,
        [
            "AAPL: another bars/AAPL.parquet",
            "AAPL: another adapters/AAPL/adapter_model.safetensors",
            f"AAPL: another forecast from {CUTOFF:%Y-%m-%d}",
        ],
    )


def test_a_forecast_may_be_missing_only_where_a_fault_kept_it(remains: tuple[Remains, Remains]) -> None:
    expected, found = remains
    shutil.rmtree(found.output / "ledger")
    missed = {("AAPL", CUTOFF, step) for step in (1, 2, 3)}
    assert compare(expected, found, excused=missed, altered=set()) == (3, [])
    assert compare(expected, found, excused=set(), altered=set()) == (3, [f"AAPL: no forecast from {CUTOFF:%Y-%m-%d}"])


def test_a_forecast_that_a_fault_may_change_must_be_there(remains: tuple[Remains, Remains]) -> None:
    expected, found = remains
    bars = {("AAPL", CUTOFF, step) for step in (1, 2, 3)}
    issue(found.output, BARS, hour=23)
    assert compare(expected, found, excused=set(), altered=bars) == (0, [])
    shutil.rmtree(found.output / "ledger")
    assert compare(expected, found, excused=set(), altered=bars) == (3, [f"AAPL: no forecast from {CUTOFF:%Y-%m-%d}"])
