"""Nights through Dagster: the ledger grows by an issue a night, and its track record can be computed again by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kronos_pipeline.evaluation import ledger

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import track_record_year as year

pytestmark = pytest.mark.slow

NIGHTS = 12
HORIZON = 3


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> year.Nights:
    # An old file, without the newest bars, is accepted.
    changes = {"horizon": HORIZON, "eval_samples": 19, "accept_history": True}
    nights = year.Nights(tmp_path_factory.mktemp("nights"), NIGHTS, str(tiny_base), **changes)
    nights.make_champion()
    for number in range(NIGHTS + 1):
        nights.night(number)
    return nights


def test_every_night_appends_one_issue_before_its_bars_exist(nights: year.Nights) -> None:
    entries = ledger.read(nights.layout)
    assert entries.notes == ()
    assert len(list(nights.layout.ledger.glob("month=*/*.parquet"))) == NIGHTS + 1
    assert entries.rows.groupby("cutoff").size().tolist() == [HORIZON] * (NIGHTS + 1)
    assert not entries.rows["replay"].any()
    assert (entries.rows["issued"].dt.tz_localize(None) < entries.rows["ds"]).all()
    assert entries.rows["model"].str.startswith("kronos-NIGHTLY version 1").all()
    assert entries.rows["p_up"].between(0, 1).all()


def test_the_track_record_is_that_of_a_computation_by_hand(nights: year.Nights) -> None:
    hand = year.by_hand(nights.layout.ledger, nights.frame)
    assert hand["forecasts"] == NIGHTS + 1 - HORIZON
    assert year.recorded(nights.layout) == pytest.approx(hand)
    assert nights.layout.picture(year.TICKER, "record").read_bytes().startswith(b"\x89PNG")


def test_a_night_that_is_run_again_counts_once_and_an_old_file_is_a_replay(nights: year.Nights) -> None:
    before = year.recorded(nights.layout)
    nights.night(NIGHTS)
    assert year.recorded(nights.layout) == before
    nights.night(NIGHTS - HORIZON - 1)
    nights.night(NIGHTS)
    assert year.recorded(nights.layout) == before
    rows = ledger.read(nights.layout).rows
    assert len(rows) == HORIZON * (NIGHTS + 4)
    assert rows["replay"].sum() == HORIZON
