"""`kronos backtest`, and a training with a backtest before the gate, run as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_trainings import small_flags

from kronos_pipeline import run_training
from kronos_pipeline.cli import app as cli
from kronos_pipeline.data.simulate import write_simulated
from kronos_pipeline.tracking.registry import Registry
from kronos_pipeline.tracking.runs import Tracker

QUICK = {"epochs": 1, "evaluations_per_epoch": 1, "stride": 4, "adapter": "lora"}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean_mlflow_store")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_simulated(tmp_path / "data", tickers=["AAPL", "MSFT"], bars=110)
    return tmp_path / "data"


def test_a_backtest_says_what_it_costs_then_what_it_found(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    flags = small_flags(tiny_base, **QUICK, backtest_origins=2, data_dir=data, output_dir=output)
    assert cli.main(["backtest", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    cost = next(number for number, line in enumerate(lines) if "2 tickers: 2 cutoffs each, 5 bars apart" in line)
    first = next(number for number, line in enumerate(lines) if "scaled error adapter" in line)
    assert cost < first
    assert "AAPL: 2 of" not in " ".join(lines)
    assert "AAPL, MSFT: too little evidence (2 cutoffs, and a verdict needs 8)" in " ".join(" ".join(lines).split())
    evaluation = json.loads((output / "backtest/adapter.json").read_text())
    assert [entry["cutoffs"] for entry in evaluation["per_symbol"]] == [2, 2]
    assert not (output / "adapters").exists()
    assert "kronos-AAPL, kronos-MSFT: the 1st recipe tried on these cutoffs" in lines
    flags = small_flags(tiny_base, **QUICK, learning_rate=0.5, backtest_origins=2, data_dir=data, output_dir=output)
    assert cli.main(["backtest", *flags]) == 0
    assert "kronos-AAPL, kronos-MSFT: the 2nd recipe tried on these cutoffs" in capsys.readouterr().out
    assert Registry(Tracker(None, output)).versions("kronos-AAPL") == []


def test_a_training_with_a_backtest_is_judged_by_it(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    settings = {**QUICK, "adapter_name": "pair", "backtest_origins": 2, "backtest_refit_every": 2}
    flags = [*small_flags(tiny_base, **settings, data_dir=data, output_dir=output), "-v"]
    assert run_training.main(flags) == 0
    printed = capsys.readouterr().out
    assert (
        "kronos-pair version 1, by its backtest: not promoted; mean: too little evidence against naive (2 cutoffs"
        in printed
    )
    registry = Registry(Tracker(None, output))
    (version,) = registry.versions("kronos-pair")
    assert version.tags["evidence"] == "backtest"
    assert registry.evidence(version)["cutoff"].nunique() == 2
    leaderboard = json.loads((output / "metrics/leaderboard.json").read_text())
    assert leaderboard["backtest"]["cutoffs"] == 4
    assert leaderboard["holdout"]["cutoffs"] == 6
    # Without it, the next training is judged by its holdout: the backtest is of the same bars, but of another recipe.
    changed = small_flags(tiny_base, **{**settings, "learning_rate": 1e-3, "backtest_origins": 0}, data_dir=data)
    assert run_training.main([*changed, "--output-dir", str(output), "-v"]) == 0
    assert (
        "kronos-pair version 2, by its holdout (the backtest is of other settings, tickers or bars): not"
        in capsys.readouterr().out
    )


def test_a_training_is_registered_even_where_no_ticker_has_bars_for_the_backtest(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    settings = {**QUICK, "backtest_origins": 20, "backtest_refit_every": 20}
    assert run_training.main([*small_flags(tiny_base, **settings, data_dir=data, output_dir=output), "-v"]) == 2
    printed = capsys.readouterr()
    assert "AAPL.csv: 110 bars" in printed.err
    assert "cutoffs of a fold" in printed.err
    assert "validation-bars" not in printed.err
    assert "kronos-AAPL, kronos-MSFT, each by its holdout: not promoted; mean: " in printed.out
    assert (output / "metrics/leaderboard.json").is_file()


@pytest.mark.parametrize("flag", [["--backtest-origins", "2"], ["--refit-all"]])
def test_several_processes_are_told_to_leave_the_backtest_to_one(
    tiny_base: Path, data: Path, flag: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_training.main([*small_flags(tiny_base, data_dir=data), *flag]) == 2
    assert "need one process" in capsys.readouterr().err
