"""A file of several tickers that was cut off half-way: a ticker that vanished from it is said, and refused once."""

from __future__ import annotations

from pathlib import Path

import pytest
from market_files import daily_frame

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.cli import main
from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.data.bars import load_bars, save_bars
from kronos_pipeline.data.csv_files import find_csv_files
from kronos_pipeline.data.ingest import read_files
from kronos_pipeline.data.vanished import find_vanished
from kronos_pipeline.errors import DataError
from kronos_pipeline.pipeline.ingest import read_tickers

pytestmark = pytest.mark.slow

GONE = "no row of the ticker {}, and 120 bars (2022-01-03 to 2022-06-17) that were read before are gone"


def write(path: Path, *symbols: str) -> None:
    header, *rows = daily_frame(120).to_csv(index=False).splitlines()
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([f"symbol,{header}", *(f"{symbol},{row}" for symbol in symbols for row in rows), ""]))


@pytest.fixture
def layout(tmp_path: Path) -> ArtifactLayout:
    """Return an output folder with the bars of AAA, BBB and CCC, which were in one file."""
    layout = ArtifactLayout(tmp_path / "out")
    write(tmp_path / "data" / "all.csv", "AAA", "BBB", "CCC")
    bars, _ = read_files(list(find_csv_files(tmp_path / "data").files.values()))
    for ticker, of_ticker in bars.items():
        save_bars(layout.bars(ticker), of_ticker)
    return layout


@pytest.mark.parametrize("left", [["AAA", "BBB"], ["AAA"]])
def test_a_ticker_that_a_cut_off_file_lacks_is_refused_until_it_is_accepted(
    left: list[str], layout: ArtifactLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    write(data / "all.csv", *left)
    config = KronosTrainingConfig(
        data_dir=str(data),
        output_dir=str(layout.root),
        model_name="kronos-nano",
        lookback=16,
        horizon=5,
        selection_days=20,
    )
    read = read_tickers(config, layout)
    said = capsys.readouterr()
    gone = [ticker for ticker in ("AAA", "BBB", "CCC") if ticker not in read.windows]
    assert "CCC" in gone
    for ticker in gone:
        assert f"error: {data / 'all.csv'}: {GONE.format(ticker)}" in said.err
        assert "; export the file again, or take it as it is with --accept-history" in said.err
        assert f"{ticker}: skipped" in said.err

    accepted = read_tickers(config.model_copy(update={"accept_history": True}), layout)
    assert f"--accept-history: {data / 'all.csv'}: {GONE.format('CCC')}" in capsys.readouterr().out
    assert accepted.skipped == {}
    assert read_tickers(config, layout).skipped == {}  # once is enough
    assert "are gone" not in "".join(capsys.readouterr())
    assert len(load_bars(layout.bars("CCC"))) == 120  # what the ledger compares forecasts with

    write(data / "all.csv", "AAA", "BBB", "CCC")
    assert set(read_tickers(config, layout).windows) == {"AAA", "BBB", "CCC"}


def test_a_command_without_tickers_names_those_that_vanished(
    layout: ArtifactLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "data" / "all.csv", "AAA", "BBB")
    folders = ["--data-dir", str(tmp_path / "data"), "--output-dir", str(layout.root)]
    assert main(["record", *folders]) == 2
    assert GONE.format("CCC") in capsys.readouterr().err
    assert main(["record", "AAA", *folders]) == 0
    folder = find_vanished(find_csv_files(tmp_path / "data"), layout)
    with pytest.raises(DataError, match="no row of the ticker CCC"):
        folder.file("CCC")


def test_tickers_of_another_file_have_not_vanished(layout: ArtifactLayout, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data / "other.csv", "DDD", "EEE")
    (data / "all.csv").unlink()
    assert find_vanished(find_csv_files(data), layout).vanished == {}
    layout.bars("AAA").write_bytes(b"damaged")
    assert find_vanished(find_csv_files(data), layout).vanished == {}
