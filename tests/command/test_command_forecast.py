"""`kronos forecast`: the next bars, the model that forecasts them, and the reason for its choice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from market_files import daily_frame, write_frame
from registered_models import base_of, evidence, made_adapter
from small_trainings import small_recipe

from kronos_pipeline.artifacts import ArtifactLayout, read_parquet, write_json
from kronos_pipeline.cli import app as cli
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.csv_files import find_csv_files
from kronos_pipeline.data.ingest import read_bars
from kronos_pipeline.evaluation.forecasting.future import forecast_ahead
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
from kronos_pipeline.evaluation.predictions import BOUNDS
from kronos_pipeline.model.lora import load_adapter
from kronos_pipeline.tracking.packaging import EvidenceTable
from kronos_pipeline.tracking.registry import Registry, registered_name
from kronos_pipeline.tracking.runs import Tracker

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("store")]

BARS = daily_frame(90)


@pytest.fixture
def layout(tmp_path: Path) -> ArtifactLayout:
    return ArtifactLayout(tmp_path / "out")


def forecast(tmp_path: Path, *flags: str) -> int:
    folders = ["--data-dir", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out"), "--device", "cpu"]
    return cli.main(["forecast", *folders, *flags])


def save_verdict(layout: ArtifactLayout, ticker: str, recipe: Recipe, verdict: str) -> None:
    """Write the files of an evaluation that a forecast reads."""
    base = {"name": recipe.model_name}
    against = {"verdict": verdict, "reason": "skill 4 %"}
    verdicts = {"mean": {"base": {"naive": against}}, "distribution": {"base": {"ewma": against}}}
    entry = {"symbol": ticker, "verdicts": verdicts}
    manifest = {"base_model": base, "config": recipe.model_dump(mode="json")}
    write_json(layout.ticker_metrics(ticker), {"per_symbol": [entry], "manifest": manifest})


def words(text: str) -> str:
    return " ".join(text.split())


def test_without_a_champion_the_last_close_is_repeated_and_the_reason_said(
    tmp_path: Path, ticker: str, layout: ArtifactLayout, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forecast(tmp_path, ticker.lower(), "--model-name", str(tiny_base), "--horizon", "4") == 0
    output = words(capsys.readouterr().out)
    assert f"{ticker}: close (price) of the next 4 bars after {BARS['Date'].iloc[-1]:%Y-%m-%d}" in output
    centre = "Centre: last close (no model was shown to be better)"
    assert f"{centre}; spread: ewma (no evaluation of rivals)." in output
    assert "years ago: the forecast starts there" in output
    assert "P(up)" in output
    assert f"picture {layout.picture(ticker, 'forecast')}" in output
    table, manifest = read_parquet(layout.forecast(ticker))
    assert list(table["ds"]) == list(pd.bdate_range(BARS["Date"].iloc[-1], periods=5)[1:])
    assert (table["mean"] == BARS["Close"].iloc[-1]).all()
    assert manifest["sampled"] is None
    none = "kronos-{0} has no champion of {1}; kronos-all has no champion of {1}; base not evaluated".format
    assert manifest["reason"] == (
        f"centre: last close ({none(ticker, 'mean')}); "
        f"shape: ewma ({none(ticker, 'distribution')}; no evaluation of rivals)."
    )
    assert layout.picture(ticker, "forecast").read_bytes().startswith(b"\x89PNG")


def test_a_file_is_read_as_in_the_last_evaluation_and_flags_come_before(
    tmp_path: Path, layout: ArtifactLayout, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_frame(tmp_path / "data", "READ", BARS.rename(columns={"Close": "Fixing"}).assign(Auction=BARS["Open"]))
    recipe = small_recipe(tiny_base, horizon=3, columns=["close=Fixing"], from_date=["2022-02-01"])
    save_verdict(layout, "READ", recipe, "worse")

    assert forecast(tmp_path, "READ") == 0
    table, _ = read_parquet(layout.forecast("READ"))
    assert (table["mean"] == BARS["Close"].iloc[-1]).all()
    assert "2022-02-01" in capsys.readouterr().out
    assert forecast(tmp_path, "READ", "--columns", "close=Auction", "--from", "2022-03-01") == 0
    table, _ = read_parquet(layout.forecast("READ"))
    assert (table["mean"] == BARS["Open"].iloc[-1]).all()
    assert "2022-03-01" in capsys.readouterr().out


def test_settings_are_those_of_the_last_evaluation_and_flags_come_before_them(
    tmp_path: Path, ticker: str, layout: ArtifactLayout, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe(tiny_base, horizon=3, calendars=["24/5"], seed=8)
    save_verdict(layout, ticker, recipe, "better")
    assert forecast(tmp_path, ticker) == 0
    output = words(capsys.readouterr().out)
    assert f"By base {tiny_base} (better than every rival)." in output
    assert "intervals as sampled, not recalibrated" in output
    table, manifest = read_parquet(layout.forecast(ticker))
    assert len(table) == 3
    assert manifest["config"] == {**recipe.model_dump(mode="json"), "device": "cpu"}
    assert forecast(tmp_path, ticker, "--horizon", "2", "--seed", "9", "--calendars", f"{ticker}=XNYS") == 0
    shorter, manifest = read_parquet(layout.forecast(ticker))
    assert len(shorter) == 2
    assert manifest["config"]["calendars"] == [f"{ticker}=XNYS"]
    assert not np.allclose(shorter["mean"], table["mean"][:2])


def test_base_that_was_not_better_than_naive_does_not_forecast(
    tmp_path: Path, ticker: str, layout: ArtifactLayout, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_verdict(layout, ticker, small_recipe(tiny_base), "no better")
    assert forecast(tmp_path, ticker) == 0
    output = words(capsys.readouterr().out)
    assert "Centre: last close (no model was shown to be better); spread: ewma" in output
    assert "base against naive: no better); shape: ewma" in read_parquet(layout.forecast(ticker))[1]["reason"]


def test_a_champion_forecasts_with_the_lookback_that_it_was_trained_with(
    tmp_path: Path,
    ticker: str,
    layout: ArtifactLayout,
    store: str,
    tiny_base: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = small_recipe(tiny_base, lookback=12)
    folder = made_adapter(tmp_path / "adapter", recipe, [ticker])
    tracker = Tracker(store, tmp_path)
    with tracker.training_run("made", Recipe()) as run:
        pass
    registry, name = Registry(tracker), registered_name(ticker)
    number = registry.register(folder, name, run.run_id, evidence=EvidenceTable(evidence({"naive": 1.0})), metrics={})
    registry.promote(name, number, "it looked good.")
    save_verdict(layout, ticker, small_recipe(tiny_base, lookback=20), "better")

    assert forecast(tmp_path, ticker) == 0
    output = words(capsys.readouterr().out)
    assert f"By {name} version 1 (champion of distribution; champion of mean)." in output
    table, manifest = read_parquet(layout.forecast(ticker))
    assert f"centre: {name} version 1 (champion of mean: it looked good); shape:" in manifest["reason"]
    bars = read_bars(find_csv_files(tmp_path / "data").file(ticker))
    expected = forecast_ahead(bars, load_adapter(folder, base_of(recipe)), plain_sampling(recipe), recipe)
    for column in ("mean", "median", *BOUNDS):
        np.testing.assert_allclose(table[column], expected[column], rtol=1e-6)
    assert manifest["config"]["lookback"] == 12
    assert set(table["model"]) == {f"{name} version 1"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--calendars", "NOWHERE"], "no exchange calendar is called 'NOWHERE'"),
        (["--horizon", "0"], "--horizon: Input should be greater than or equal to 1 (found 0)"),
        (["--data-dir", "nowhere"], "nowhere"),
        (["--device", "cuda:99"], "--device cuda:99"),
    ],
)
def test_what_cannot_be_forecast_is_said_and_leaves_no_file(
    tmp_path: Path,
    ticker: str,
    layout: ArtifactLayout,
    tiny_base: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    assert forecast(tmp_path, ticker, "--model-name", str(tiny_base), *flags) == 2
    output: Any = capsys.readouterr()
    assert message in output.err
    assert not layout.forecast(ticker).exists()


def test_a_ticker_without_a_csv_is_told_which_there_are(
    tmp_path: Path, ticker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forecast(tmp_path, "NVDA") == 2
    assert f"no CSV for the ticker 'NVDA' here; there are: {ticker}" in capsys.readouterr().err


def test_all_tickers_are_forecast_at_once_as_each_alone_and_a_bad_one_is_named(
    tmp_path: Path, layout: ArtifactLayout, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe(tiny_base, horizon=3)
    names = [f"M{number}" for number in range(4)]
    for number, name in enumerate(names):
        write_frame(tmp_path / "data", name, BARS.iloc[number:])
        save_verdict(layout, name, recipe.model_copy(update={"horizon": 2 + number % 2}), "better")
    (tmp_path / "data/BAD.csv").write_text("date,open,high,low,close\n2024-01-02,-1,2,1,2\n")
    assert forecast(tmp_path) == 2
    output: Any = capsys.readouterr()
    assert "BAD.csv:2: open" in output.err
    assert "BAD: skipped" in output.err
    assert "Close (price) of the last forecast bar, 4 tickers" in output.out
    tables = {name: read_parquet(layout.forecast(name))[0] for name in names}
    for name, table in tables.items():
        assert re.search(rf"{name} +{BARS['Date'].iloc[-1]:%Y-%m-%d} +{len(table)} ", output.out)
        assert forecast(tmp_path, name) == 0
        single = read_parquet(layout.forecast(name))[0]
        assert list(table["ds"]) == list(single["ds"])
        np.testing.assert_allclose(table[["mean", *BOUNDS]], single[["mean", *BOUNDS]], rtol=1e-5)


def test_a_few_tickers_are_printed_bar_by_bar(
    tmp_path: Path, layout: ArtifactLayout, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ONE", "TWO", "THREE"):
        write_frame(tmp_path / "data", name, BARS)
    assert forecast(tmp_path, "two", "ONE", "--model-name", str(tiny_base), "--horizon", "2") == 0
    output = words(capsys.readouterr().out)
    assert output.index("TWO: close (price) of the next 2 bars") < output.index("ONE: close (price) of the next 2 bars")
    assert not layout.forecast("THREE").exists()
