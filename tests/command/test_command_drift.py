"""`kronos drift`: champions with larger errors on new bars than their evidence predicts."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path

import pandas as pd
import pytest
from market_files import daily_frame, write_frame
from registered_models import evidence, for_tickers, made_adapter
from small_trainings import small_recipe

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.cli import app as cli
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import make_bars
from kronos_pipeline.data.csv_files import find_csv_files
from kronos_pipeline.data.ingest import read_bars
from kronos_pipeline.evaluation import ledger
from kronos_pipeline.evaluation.forecasting.future import forecast_ahead
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
from kronos_pipeline.tracking.packaging import EvidenceTable
from kronos_pipeline.tracking.registry import Registry, registered_name
from kronos_pipeline.tracking.runs import Tracker

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store")]

BARS = daily_frame(90)


def drift(tmp_path: Path, tiny_base: Path, *flags: str) -> int:
    folders = ["--data-dir", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out"), "--device", "cpu"]
    return cli.main(["drift", *folders, "--model-name", str(tiny_base), *flags])


def make_champion(tmp_path: Path, store: str, tiny_base: Path, ticker: str, loss: float, first: str) -> str:
    """Make an adapter the champion of a ticker, with evidence of a given mean loss from a given time on."""
    adapter = made_adapter(tmp_path / "made", small_recipe(tiny_base, horizon=2))
    folder = for_tickers(adapter, tmp_path / "adapter", [ticker])
    tracker = Tracker(store, tmp_path)
    with tracker.training_run("made", Recipe()) as run:
        pass
    registry, name = Registry(tracker), registered_name(ticker)
    predictions = evidence({"naive": loss, "adapter": loss, "adapter_recentred": loss}, symbol=ticker, first=first)
    number = registry.register(folder, name, run.run_id, evidence=EvidenceTable(predictions), metrics={})
    registry.promote(name, number, "it looked good.")
    return f"{name} version {number}"


@pytest.mark.parametrize(("loss", "result"), [(1e-3, "drifted in mean"), (1e3, "no drift")])
def test_a_champion_drifts_if_it_errs_more_on_newer_bars_than_in_its_evidence(
    tmp_path: Path,
    store: str,
    tiny_base: Path,
    ticker: str,
    capsys: pytest.CaptureFixture[str],
    loss: float,
    result: str,
) -> None:
    champion = make_champion(tmp_path, store, tiny_base, ticker, loss, first="2022-03-01")
    assert drift(tmp_path, tiny_base, ticker.lower()) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{ticker}: {champion}: {result}, scaled error ")
    assert "over 3 cutoffs up to 2022-" in line
    assert "times its error in the evidence" in line


def test_tickers_without_new_bars_or_champion_are_reported_and_a_bad_file_is_named(
    tmp_path: Path, store: str, tiny_base: Path, ticker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_frame(tmp_path / "data", "NONE", BARS)
    (tmp_path / "data/BAD.csv").write_text("date,open,high,low,close\n2024-01-02,-1,2,1,2\n")
    champion = make_champion(tmp_path, store, tiny_base, ticker, 1.0, first="2022-05-01")
    assert drift(tmp_path, tiny_base) == 2
    output = capsys.readouterr()
    assert output.out.splitlines() == [
        f"{ticker}: no drift, the bars since it was measured are not yet a whole horizon of 2",
        "NONE: no champion, so no drift was measured",
    ]
    assert "BAD.csv:2: open" in output.err
    assert drift(tmp_path, tiny_base, "-v") == 2
    assert capsys.readouterr().out.splitlines() == [
        f"{ticker}: {champion}: no drift, the bars since it was measured are not yet a whole horizon of 2",
        "NONE has no champion, so no drift was measured",
    ]


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("{}", "in mean and distribution, scaled error"),
        ("last close, spread of {}", "in distribution, scaled pinball loss"),
        ("{}, spread of another version 1", "in mean, scaled error"),
    ],
)
def test_the_champions_issued_forecasts_come_before_new_ones_and_count_for_the_part_that_it_gave(
    tmp_path: Path,
    store: str,
    tiny_base: Path,
    ticker: str,
    capsys: pytest.CaptureFixture[str],
    label: str,
    found: str,
) -> None:
    champion = make_champion(tmp_path, store, tiny_base, ticker, 1e-3, first="2022-02-01")
    bars = read_bars(find_csv_files(tmp_path / "data").file(ticker))
    recipe, layout = small_recipe(tiny_base, horizon=2), ArtifactLayout(tmp_path / "out")

    def issue(first: int, label: str) -> None:
        for count in range(first, first + 9):
            known = make_bars(ticker, bars.frame.iloc[:count], source=bars.source)
            issued = (known.frame["timestamps"].iloc[-1] + pd.Timedelta(hours=22)).to_pydatetime().replace(tzinfo=UTC)
            table = forecast_ahead(known, None, plain_sampling(recipe), recipe, label=label)
            ledger.append(layout, [ledger.ledger_rows(known, table, recipe, version="1", issued=issued)])

    issue(60, "naive")
    assert drift(tmp_path, tiny_base, ticker) == 0
    assert "ledger" not in capsys.readouterr().out
    issue(70, label.format(champion))
    assert drift(tmp_path, tiny_base, ticker) == 0
    told = capsys.readouterr().out
    assert f"{ticker}: {champion}: drifted {found} " in told
    assert "over 3 cutoffs up to 2022-" in told
    assert "by the forecasts in the ledger" in told
