from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_trainings import simulated_bars, small_recipe

from kronos_pipeline.artifacts import ArtifactLayout, read_json, read_parquet, write_parquet
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import Bars, make_bars
from kronos_pipeline.errors import ModelError
from kronos_pipeline.evaluation.backtest import backtest, fold_runs
from kronos_pipeline.evaluation.backtest.backtest import run_backtest
from kronos_pipeline.evaluation.backtest.folds import BacktestError
from kronos_pipeline.evaluation.forecasting import batching
from kronos_pipeline.evaluation.predictions import MODELS
from kronos_pipeline.evaluation.scoring.report import build_evaluation, summarise
from kronos_pipeline.model.devices import pick_device
from kronos_pipeline.model.loading import KronosModel, load_base
from kronos_pipeline.training.trainer import KronosTrainer

pytestmark = pytest.mark.slow

CPU = pick_device("cpu")
QUICK: dict[str, Any] = {"epochs": 1, "evaluations_per_epoch": 1, "stride": 4, "eval_samples": 3}
FORECAST = {name for name in MODELS if not name.startswith(("checkpoint", "ensemble", "lightgbm", "chronos"))}


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> KronosModel:
    from kronos_pipeline.base_models import find_base_model

    return load_base(find_base_model(str(tiny_base)), CPU)


def quick(base: Path, **changes: Any) -> Recipe:
    return small_recipe(base, **{**QUICK, "backtest_origins": 3, "adapter": "lora", **changes})


def with_noise_after(bars: Bars, end: int) -> Bars:
    frame = bars.frame.copy()
    factor = np.exp(np.random.default_rng(0).normal(size=(len(frame) - end, 1)))
    frame.loc[end:, ["open", "high", "low", "close"]] *= factor
    return make_bars(bars.ticker, frame, source=bars.source)


def test_each_cutoff_is_scored_once_for_every_model_and_what_is_written_can_be_recomputed(
    tiny_base: Path, base: KronosModel, tmp_path: Path
) -> None:
    layout, bars = ArtifactLayout(tmp_path), {name: simulated_bars(name, 110) for name in ("AAPL", "MSFT")}
    lines: list[str] = []
    result = run_backtest(layout, bars, quick(tiny_base), base, say=lines.append)
    assert "2 tickers: 3 cutoffs each, 5 bars apart; 6 trainings, about" in lines[0]
    assert "6 of 6" in lines[-1]
    table = result.predictions
    assert set(table["model"]) == FORECAST
    counts = table.groupby(["unique_id", "model", "cutoff"]).size()
    assert len(counts) == 2 * len(FORECAST) * 3
    assert (counts == 5).all()
    for ticker, bars_of_ticker in bars.items():
        stored, manifest = read_parquet(layout.backtest("adapter", ticker))
        pd.testing.assert_frame_equal(stored, table[table["unique_id"] == ticker].reset_index(drop=True))
        report = read_json(layout.backtest_report("adapter", ticker))
        evaluation = build_evaluation(stored, "adapter", [], manifest, tickers_tested=2)
        assert {**evaluation, "files": report["files"]} == report
        stamps = bars_of_ticker.frame["timestamps"]
        folds = report["manifest"]["folds"][ticker]
        assert [fold["cutoffs"] for fold in folds] == [
            [stamps.iloc[position].isoformat()] for position in (94, 99, 104)
        ]
        assert report["manifest"]["data"] == {ticker: bars_of_ticker.content_hash}
        for kind, path in result.plots[ticker].items():
            assert path == layout.picture(ticker, f"backtest-{kind}")
            assert path.read_bytes().startswith(b"\x89PNG")
    total = read_json(layout.backtest_evaluation("adapter"))
    assert total == summarise(result.evaluation)
    assert total["aggregate"]["cutoffs"] == 6
    files = [file for file in layout.backtest_fold("x").parent.rglob("*") if file.is_file()]
    assert len(files) == 6  # no weights stay behind


@pytest.mark.parametrize(("tickers", "read"), [(["AAPL"], {"AAPL"}), (["AAPL", "NEW"], {"AAPL", "MSFT", "XOM"})])
def test_the_backtests_of_other_tickers_are_read_only_for_a_ticker_without_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tickers: list[str], read: set[str]
) -> None:
    layout, cutoffs = ArtifactLayout(tmp_path), pd.to_datetime(["2024-01-02", "2024-01-03", "2024-01-04"])
    for ticker, cutoff in zip(("AAPL", "MSFT", "XOM"), cutoffs, strict=True):
        write_parquet(layout.backtest("adapter", ticker), pd.DataFrame({"cutoff": [cutoff]}), {})
    opened: list[Path] = []

    def counted(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
        opened.append(path)
        return read_parquet(path)

    monkeypatch.setattr(backtest, "read_parquet", counted)
    expected = {"AAPL": cutoffs[0], "NEW": cutoffs[2]}  # a new ticker joins at the newest cutoff of all
    assert backtest._anchors(layout, "adapter", tickers) == {ticker: expected[ticker] for ticker in tickers}
    assert sorted(path.stem for path in opened) == sorted(read)


def test_a_fold_sees_nothing_after_its_cutoff(tiny_base: Path, base: KronosModel, tmp_path: Path) -> None:
    bars, recipe = simulated_bars("AAPL", 110), quick(tiny_base)
    before, after = (
        run_backtest(ArtifactLayout(tmp_path / name), {"AAPL": version}, recipe, base, say=lambda _: None)
        for name, version in (("true", bars), ("noise", with_noise_after(bars, 100)))
    )
    first = bars.frame["timestamps"].iloc[94]
    forecasts = ["model", "step", "scale", "mean", "median", "lo_80", "hi_80", "raw_lo_80", "raw_hi_80"]
    rows = before.predictions["cutoff"] == first
    assert rows.sum() == 5 * len(FORECAST)
    pd.testing.assert_frame_equal(before.predictions.loc[rows, forecasts], after.predictions.loc[rows, forecasts])
    last = before.predictions["cutoff"] > first
    assert not before.predictions.loc[last, forecasts].equals(after.predictions.loc[last, forecasts])


def test_one_training_serves_as_many_cutoffs_as_is_asked_for_and_a_checkpoint_all_tickers(
    tiny_base: Path, base: KronosModel, tmp_path: Path
) -> None:
    bars = {"AAPL": simulated_bars("AAPL", 110), "MSFT": simulated_bars("MSFT", 110)}
    recipe = quick(tiny_base, adapter="none", backtest_origins=4, backtest_refit_every=2)
    lines: list[str] = []
    layout = ArtifactLayout(tmp_path)
    result = run_backtest(layout, bars, recipe, base, say=lines.append)
    assert "2 tickers: 4 cutoffs each, 5 bars apart; 2 trainings" in lines[0]
    assert result.predictions.groupby(["unique_id", "model"])["cutoff"].nunique().eq(4).all()
    assert "checkpoint" in set(result.predictions["model"])
    folds = read_json(layout.backtest_report("checkpoint", "MSFT"))["manifest"]["folds"]["MSFT"]
    assert [len(fold["cutoffs"]) for fold in folds] == [2, 2]


def test_a_backtest_that_was_killed_goes_on_where_it_was(
    tiny_base: Path, base: KronosModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored forecasts of folds are reused, and so are the trainings of the other folds."""
    layout, bars, recipe = (
        ArtifactLayout(tmp_path),
        {"AAPL": simulated_bars("AAPL", 110)},
        quick(tiny_base, adapters_together=1),
    )
    monkeypatch.setattr(fold_runs, "FOLDS_AT_ONCE", {"cpu": 2})
    sample_paths, trained, lines = batching._sample_paths, [], []

    def versions() -> set[Path]:
        return {link.resolve() for link in layout.backtest_fold("x").parent.glob("*/adapters/AAPL")}

    def dies_in_the_last_fold(*arguments: Any, **settings: Any) -> np.ndarray:
        trained.append(versions())
        if len(list(layout.backtest_fold("x").parent.glob("*/predictions.parquet"))) == 2 and "killed" not in lines:
            lines.append("killed")
            raise KeyboardInterrupt
        return sample_paths(*arguments, **settings)

    monkeypatch.setattr(batching, "_sample_paths", dies_in_the_last_fold)
    with pytest.raises(KeyboardInterrupt):
        run_backtest(layout, bars, recipe, base, say=lambda _: None)
    killed_with = trained[-1]
    assert len(killed_with) == 1
    resumed = run_backtest(layout, bars, recipe, base, say=lines.append)
    assert "1 training (2 are kept from before)" in lines[1]
    assert trained[-1] == killed_with
    monkeypatch.undo()
    uninterrupted = run_backtest(ArtifactLayout(tmp_path / "other"), bars, recipe, base, say=lambda _: None)
    pd.testing.assert_frame_equal(resumed.predictions, uninterrupted.predictions)


def test_a_ticker_that_cannot_be_trained_is_named_and_the_others_are_as_without_it(
    tiny_base: Path, base: KronosModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick(tiny_base, adapters_together=1, backtest_origins=1)
    bars = {name: simulated_bars(name, 110) for name in ("AAPL", "BAD", "MSFT")}
    train = KronosTrainer.train

    def fails(self: KronosTrainer, jobs: Any, **options: Any) -> Any:
        results = train(self, jobs, **options)
        return [
            ModelError("BAD will not do") if job.name == "BAD" else result
            for job, result in zip(jobs, results, strict=True)
        ]

    expected_bars = {name: bars_of_ticker for name, bars_of_ticker in bars.items() if name != "BAD"}
    expected = run_backtest(ArtifactLayout(tmp_path / "good"), expected_bars, recipe, base, say=lambda _: None)
    monkeypatch.setattr(KronosTrainer, "train", fails)
    layout = ArtifactLayout(tmp_path / "all")
    backtest = run_backtest(layout, bars, recipe, base, say=lambda _: None)
    assert {ticker: str(reason) for ticker, reason in backtest.skipped.items()} == {"BAD": "BAD will not do"}
    assert backtest.evaluation["skipped"] == [{"symbol": "BAD", "reason": "BAD will not do"}]
    assert not layout.backtest("adapter", "BAD").exists()
    numbers = backtest.predictions.select_dtypes("number").columns
    pd.testing.assert_frame_equal(backtest.predictions[numbers], expected.predictions[numbers], rtol=1e-4)
    with pytest.raises(BacktestError, match="BAD: BAD will not do") as caught:
        run_backtest(layout, {"BAD": bars["BAD"]}, recipe, base, say=lambda _: None)
    assert set(caught.value.skipped) == {"BAD"}


def test_with_new_bars_the_cutoffs_stay_and_only_what_is_new_is_trained(
    tiny_base: Path, base: KronosModel, tmp_path: Path
) -> None:
    layout, recipe, bars = ArtifactLayout(tmp_path), quick(tiny_base), simulated_bars("AAPL", 117)
    lines: list[str] = []

    def until(end: int, ticker: str = "AAPL") -> pd.DataFrame:
        known = make_bars(ticker, bars.frame.iloc[:end], source="x.csv")
        lines.clear()
        return run_backtest(layout, {ticker: known}, recipe, base, say=lines.append).predictions

    first, stamps = until(110), bars.frame["timestamps"]
    pd.testing.assert_frame_equal(until(114), first)
    assert "0 trainings (3 are kept from before)" in lines[0]
    later = until(117)
    assert "1 training (2 are kept from before)" in lines[0]
    assert list(later["cutoff"].unique()) == [stamps.iloc[position] for position in (99, 104, 109)]
    shared = later[later["cutoff"] < stamps.iloc[109]].reset_index(drop=True)
    pd.testing.assert_frame_equal(shared, first[first["cutoff"] > stamps.iloc[94]].reset_index(drop=True))
    # Another ticker keeps in step.
    assert set(until(117, "MSFT")["cutoff"]) == set(later["cutoff"])
    assert len(list(layout.backtest_fold("x").parent.iterdir())) == 6


def test_too_few_cutoffs_are_said_before_it_starts_and_in_the_verdict(
    tiny_base: Path, base: KronosModel, tmp_path: Path
) -> None:
    bars = {"AAPL": simulated_bars("AAPL", 110), "TINY": simulated_bars("TINY", 30), "MSFT": simulated_bars("MSFT", 60)}
    lines: list[str] = []
    recipe = quick(tiny_base, backtest_origins=8, backtest_refit_every=8)
    result = run_backtest(ArtifactLayout(tmp_path), bars, recipe, base, say=lines.append)
    assert set(result.skipped) == {"TINY", "MSFT"}
    assert "TINY: no backtest: TINY.csv: 30 bars" in lines[0]
    assert "for the 8 cutoffs of a fold (--backtest-refit-every)" in lines[0]
    assert result.evaluation["skipped"][0]["symbol"] in result.skipped
    assert result.evaluation["per_symbol"][0]["cutoffs"] == 8
