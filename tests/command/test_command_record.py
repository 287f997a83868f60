"""`kronos record`: the scores of the forecasts that were issued before their bars existed."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path

import pandas as pd
import pytest
from market_files import daily_frame, write_frame
from small_trainings import small_recipe

from kronos_pipeline.artifacts import ArtifactLayout, read_json
from kronos_pipeline.cli import app as cli
from kronos_pipeline.data.bars import Bars, make_bars
from kronos_pipeline.data.csv_files import find_csv_files
from kronos_pipeline.data.ingest import read_bars
from kronos_pipeline.evaluation import ledger
from kronos_pipeline.evaluation.forecasting.future import forecast_ahead
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store")]

BARS = daily_frame(90)
RECIPE = small_recipe(Path("none"), horizon=2)


def record(tmp_path: Path, *words: str) -> int:
    folders = ["--data-dir", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out"), "--device", "cpu"]
    return cli.main(["record", *folders, *words])


def issue_nightly(layout: ArtifactLayout, bars: Bars, nights: int) -> None:
    """Append a forecast after each of the newest bars, at 22:00 UTC of its date."""
    for count in range(len(bars) - nights + 1, len(bars) + 1):
        known = make_bars(bars.ticker, bars.frame.iloc[:count], source=bars.source)
        issued = (known.frame["timestamps"].iloc[-1] + pd.Timedelta(hours=22)).to_pydatetime().replace(tzinfo=UTC)
        table = forecast_ahead(known, None, plain_sampling(RECIPE), RECIPE)
        ledger.append(layout, [ledger.ledger_rows(known, table, RECIPE, version="1", issued=issued)])


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_record_of_a_ticker_is_printed_by_model_and_stored(
    tmp_path: Path, ticker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = ArtifactLayout(tmp_path / "out")
    issue_nightly(layout, read_bars(find_csv_files(tmp_path / "data").file(ticker)), 12)
    assert record(tmp_path, ticker.lower()) == 0
    told = words(capsys.readouterr().out)
    assert "Track record of the forecasts in the ledger" in told
    assert f"{ticker} all 10 +2" in told
    assert f"{ticker} naive 1 10 +2" in told
    assert f"{ticker}: skill of 10 forecasts: mean +0.0% against the last close (open, e-value 1 for better)" in told
    stored = read_json(layout.track_record(ticker))
    assert (stored["forecasts"], stored["waiting"], stored["mean_skill"]) == (10, 2, 0.0)
    assert [model["model"] for model in stored["models"]] == ["naive 1"]
    assert layout.picture(ticker, "record").read_bytes().startswith(b"\x89PNG")


def test_a_forecast_of_bars_that_have_passed_is_recorded_as_a_replay_and_does_not_count(
    tmp_path: Path, ticker: str, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = ArtifactLayout(tmp_path / "out")
    folders = ["--data-dir", str(tmp_path / "data"), "--output-dir", str(layout.root), "--device", "cpu"]
    write_frame(tmp_path / "data", "OTHER", BARS)
    assert cli.main(["forecast", *folders, "--model-name", str(tiny_base), "--horizon", "2"]) == 0
    (file,) = layout.ledger.glob("month=*/*.parquet")
    assert f"ledger    {file}" in capsys.readouterr().out
    rows = ledger.read(layout).rows
    assert set(rows["unique_id"]) == {ticker, "OTHER"}
    assert rows["replay"].all()
    assert record(tmp_path) == 0
    assert "records" in capsys.readouterr().out
    stored = read_json(layout.track_record("OTHER"))
    assert (stored["forecasts"], stored["replays"]) == (0, 1)


def test_a_bad_file_of_a_ticker_and_of_the_ledger_are_named_and_the_others_are_scored(
    tmp_path: Path, ticker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = ArtifactLayout(tmp_path / "out")
    issue_nightly(layout, read_bars(find_csv_files(tmp_path / "data").file(ticker)), 4)
    (tmp_path / "data/BAD.csv").write_text("date,open,high,low,close\n2024-01-02,-1,2,1,2\n")
    damaged = min(layout.ledger.glob("month=*/*.parquet"), key=lambda path: path.name)
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert record(tmp_path) == 2
    told = capsys.readouterr()
    assert "BAD.csv:2: open" in told.err
    assert f"{damaged} is damaged" in told.out
    assert read_json(layout.track_record(ticker))["forecasts"] == 1
