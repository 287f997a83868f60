"""The ledger: what is appended stays, replays are marked, and files that do not belong are named."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_trainings import simulated_bars, small_recipe

from kronos_pipeline.artifacts import ArtifactLayout, read_parquet, write_parquet
from kronos_pipeline.data.bars import Bars, make_bars, save_bars
from kronos_pipeline.evaluation import ledger
from kronos_pipeline.evaluation.forecasting.future import forecast_ahead
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling

RECIPE = small_recipe(Path("none"), horizon=3)
WHOLE = simulated_bars(bars=60)


@pytest.fixture
def layout(tmp_path: Path) -> ArtifactLayout:
    return ArtifactLayout(tmp_path)


def first(count: int, all_bars: Bars = WHOLE, zone: str | None = None) -> Bars:
    return make_bars(all_bars.ticker, all_bars.frame.iloc[:count], source="AAPL.csv", time_zone=zone)


def night_after(bars: Bars, hours: float = 22) -> datetime:
    """Return a time on the date of the newest bar, in UTC: 22:00 is after the close in New York."""
    return (
        (pd.Timestamp(bars.frame["timestamps"].iloc[-1]).normalize() + pd.Timedelta(hours=hours))
        .to_pydatetime()
        .replace(tzinfo=UTC)
    )


def issue(bars: Bars, issued: datetime | None = None, version: str = "1", **settings: object) -> pd.DataFrame:
    table = forecast_ahead(bars, None, plain_sampling(RECIPE), RECIPE)
    return ledger.ledger_rows(
        bars,
        table,
        RECIPE,
        version=version,
        issued=issued or night_after(bars),
        **settings,  # type: ignore[arg-type]
    )


def test_what_was_appended_is_read_and_earlier_files_keep_their_bytes(layout: ArtifactLayout) -> None:
    path, notes = ledger.append(layout, [issue(first(50))])
    assert path is not None
    assert notes == []
    content = path.read_bytes()
    ledger.append(layout, [issue(first(51))])
    assert path.read_bytes() == content
    entries = ledger.read(layout)
    assert entries.notes == ()
    assert tuple(entries.rows.columns) == ledger.COLUMNS
    assert len(entries.rows) == 6
    assert not entries.rows["replay"].any()
    row = entries.rows.iloc[0]
    assert row["last"] == first(50).frame["close"].iloc[-1]
    assert row["recent"] == pytest.approx(first(50).frame["close"].iloc[-20:].mean())
    assert row["issued"] == pd.Timestamp(night_after(first(50)))
    assert path.parent.name == f"month={row['issued']:%Y-%m}"
    assert row["bars_hash"] == first(50).content_hash


def test_tickers_of_one_run_are_one_file_and_are_read_apart(layout: ArtifactLayout) -> None:
    other = simulated_bars("MSFT", bars=40)
    ledger.append(layout, [issue(first(50)), issue(other)])
    assert len(list(layout.ledger.rglob("*.parquet"))) == 1
    assert set(ledger.read(layout, ["MSFT"]).rows["unique_id"]) == {"MSFT"}
    assert ledger.append(layout, []) == (None, [])


def test_changing_the_bars_after_a_cutoff_changes_no_row() -> None:
    rows = issue(first(50))
    changed = WHOLE.frame.copy()
    changed.loc[50:, ["open", "high", "low", "close"]] *= 3
    other_rows = issue(first(50, make_bars("AAPL", changed, source="AAPL.csv")))
    pd.testing.assert_frame_equal(rows, other_rows)


def test_a_bar_that_the_output_folder_or_the_model_knows_is_a_replay(layout: ArtifactLayout) -> None:
    save_bars(layout.bars("AAPL"), first(52))
    known = ledger.known_bars_end(layout, "AAPL")
    assert issue(first(50), known_until=known)["replay"].tolist() == [True, True, False]
    assert ledger.known_bars_end(layout, "NONE") == []
    layout.bars("AAPL").write_bytes(b"damaged")
    assert ledger.known_bars_end(layout, "AAPL") == []


def test_a_truncated_file_gives_replays_by_the_earlier_entries(layout: ArtifactLayout) -> None:
    ledger.append(layout, [issue(first(52))])
    ledger.append(layout, [issue(first(50), night_after(first(50)))])
    rows = ledger.read(layout).rows
    assert rows[rows["cutoff"] == rows["cutoff"].min()]["replay"].tolist() == [True, True, False]


@pytest.mark.parametrize(("hours", "replays"), [(33.9, 0), (34, 1), (200, 3)])
def test_a_daily_bar_exists_from_ten_of_its_date_in_utc(hours: float, replays: int) -> None:
    monday = 50 - pd.Timestamp(WHOLE.frame["timestamps"].iloc[50]).weekday()  # a week without a weekend in between
    bars = first(monday + 1)
    assert int(issue(bars, night_after(bars, hours))["replay"].sum()) == replays


@pytest.mark.parametrize(("zone", "ended"), [("UTC-05:00/-04:00", "14:00"), ("UTC", "10:00"), (None, "20:00")])
def test_a_bar_of_an_hour_ends_by_the_largest_offset_of_its_zone_or_by_the_earliest_clocks(
    zone: str | None, ended: str
) -> None:
    times = pd.date_range("2024-03-01", periods=30, freq="h")
    bars = make_bars("AAPL", WHOLE.frame.iloc[:30].assign(timestamps=times), source="a.csv", time_zone=zone)
    (end,) = ledger.bar_ends(bars, pd.DatetimeIndex(["2024-03-03 09:00"]))
    day = "2024-03-02" if zone is None else "2024-03-03"
    assert end == pd.Timestamp(f"{day} {ended}", tz="UTC")


def test_a_clock_that_jumps_back_is_noted_and_the_entry_keeps_its_time(layout: ArtifactLayout) -> None:
    ledger.append(layout, [issue(first(50))])
    early = night_after(first(48))
    _, notes = ledger.append(layout, [issue(first(51), early)])
    assert "check the clock" in notes[0]
    entries = ledger.read(layout)
    assert "1 forecast of AAPL issued before a forecast from an older cutoff" in entries.notes[0]
    assert pd.Timestamp(early) in set(entries.rows["issued"])
    assert not entries.rows["replay"].any()


def test_files_that_are_damaged_foreign_changed_or_of_other_columns_are_named_and_the_others_are_read(
    layout: ArtifactLayout,
) -> None:
    path, _ = ledger.append(layout, [issue(first(50))])
    assert path is not None
    month = path.parent
    damaged = month / "20240101T000000000000-00000000.parquet"
    damaged.write_bytes(path.read_bytes()[:200])
    columns = damaged.with_name("20240101T000000000000-00000001.parquet")
    write_parquet(columns, pd.DataFrame({"unique_id": ["AAPL"], "mean": [1.0]}), {})
    changed = damaged.with_name("20240101T000000000000-00000002.parquet")
    rows, written = read_parquet(path)
    write_parquet(changed, rows.assign(mean=rows["mean"] + 1), written)
    (month / "copy of a file.parquet").write_bytes(path.read_bytes())
    (layout.ledger / "notes.txt").write_text("mine")
    (layout.ledger / "deep" / "deeper").mkdir(parents=True)
    (month / "20240101T000000000000-00000003.parquet").mkdir()

    entries = ledger.read(layout)
    assert len(entries.rows) == 3
    notes = "\n".join(entries.notes)
    assert len(entries.notes) == 4
    assert f"{damaged} is damaged" in notes
    assert f"{columns} has other columns than the ledger" in notes
    assert f"{changed} was changed after it was written, so its forecasts do not count; move the file" in notes
    assert "notes.txt" in notes
    assert "copy of a file.parquet" in notes
    assert "00000003.parquet" in notes
    _, further_notes = ledger.append(layout, [issue(first(51))])
    assert len(further_notes) == 4
    assert len(ledger.read(layout).rows) == 6


def test_two_issues_at_one_moment_are_two_entries(layout: ArtifactLayout) -> None:
    for _ in range(2):
        ledger.append(layout, [issue(first(50))])
    rows = ledger.read(layout).rows
    assert rows.groupby(ledger.ENTRY).size().tolist() == [3, 3]


def test_a_copied_file_counts_once(layout: ArtifactLayout) -> None:
    path, _ = ledger.append(layout, [issue(first(50))])
    assert path is not None
    path.with_name(path.name.replace(path.name[-16:-8], "01234567")).write_bytes(path.read_bytes())
    assert len(ledger.read(layout).rows) == 3


def test_no_ledger_is_an_empty_ledger(layout: ArtifactLayout) -> None:
    entries = ledger.read(layout, ["AAPL"])
    assert entries.notes == ()
    assert entries.rows.empty
    assert tuple(entries.rows.columns) == ledger.COLUMNS


@pytest.mark.slow
def test_two_processes_that_append_at_once_lose_nothing(layout: ArtifactLayout) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from kronos_pipeline.artifacts import ArtifactLayout\n"
        "import pandas as pd\n"
        "from kronos_pipeline.evaluation import ledger\n"
        "rows = pd.read_pickle(sys.argv[2])\n"
        "for number in range(15):\n"
        "    ledger.append(ArtifactLayout(Path(sys.argv[3])), [rows.assign(version=f'{sys.argv[4]} {number}')])\n"
    )
    issue(first(50)).to_pickle(layout.root / "rows.pickle")
    tests = str(Path(__file__).resolve().parents[1])
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", program, tests, str(layout.root / "rows.pickle"), str(layout.root), name]
        )
        for name in ("one", "two")
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    entries = ledger.read(layout)
    assert entries.notes == ()
    assert len(entries.rows) == 2 * 15 * 3
    assert entries.rows["version"].nunique() == 30
    assert np.isfinite(entries.rows["mean"]).all()
