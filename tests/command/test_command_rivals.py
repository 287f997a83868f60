"""The flag --rivals: the rivals are in the tables of the holdout and of the backtest, or one sentence says why not."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from small_trainings import small_flags
from tiny_chronos import save_tiny_chronos

from kronos_pipeline import run_training
from kronos_pipeline.data.simulate import write_simulated

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_mlflow_store")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_simulated(tmp_path / "data", tickers=["AAPL", "MSFT"], bars=150)
    return tmp_path / "data"


def flags(base: Path, data: Path, output: Path, rivals: str) -> list[str]:
    return [*small_flags(base, data_dir=data, output_dir=output, epochs=1), "--adapter", "lora", "--rivals", rivals]


def test_the_rivals_are_in_the_tables_of_the_holdout_and_of_the_backtest(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    chronos = save_tiny_chronos(tmp_path / "chronos")
    settings = flags(tiny_base, data, output, f"lightgbm,chronos={chronos}")
    assert run_training.main([*settings, "--backtest-origins", "2", "-v"]) == 0
    printed = capsys.readouterr().out
    for rival in ("lightgbm", "chronos"):
        assert re.search(rf"^ ?{rival} +\d", printed, re.MULTILINE)  # a row of the leaderboard
    for file in ("metrics/predictions.parquet", "backtest/adapter/MSFT.parquet"):
        predictions = pd.read_parquet(output / file)
        for rival in ("lightgbm", "chronos"):
            rows = predictions[predictions["model"] == rival]
            assert len(rows) == (predictions["model"] == "naive").sum()
            assert rows[["mean", "lo_80", "hi_80", "variance", "p_up", "crps", "pit"]].notna().all(axis=None)
    evaluation = json.loads((output / "metrics/evaluation.json").read_text())
    assert {"lightgbm", "chronos"} <= set(evaluation["per_symbol"][0]["models"])
    assert evaluation["manifest"]["rivals"].keys() == {"lightgbm", "chronos"}


def test_a_rival_without_enough_bars_is_told_and_the_others_are_evaluated(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*flags(tiny_base, data, tmp_path / "out", "lightgbm"), "--selection-days", "80"]
    assert run_training.main(settings) == 0
    assert "AAPL, MSFT: no lightgbm forecast: it needs 50 training bars" in capsys.readouterr().out
    predictions = pd.read_parquet(tmp_path / "out/metrics/predictions.parquet")
    assert "lightgbm" not in set(predictions["model"])


@pytest.mark.parametrize(
    ("rival", "package", "extra"), [("lightgbm", "mlforecast", "gbm"), ("chronos", "chronos", "chronos")]
)
def test_a_missing_extra_is_told_before_the_training(
    rival: str,
    package: str,
    extra: str,
    tiny_base: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert run_training.main(flags(tiny_base, data, tmp_path / "out", rival)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: --rivals {rival} needs the package ")
    assert captured.err.rstrip().endswith(f"install the extra with `pip install -e '.[{extra}]'`.")
    assert not (tmp_path / "out/adapters").exists()


def test_an_unknown_rival_and_a_model_without_a_commit_are_told(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_training.main(flags(tiny_base, data, tmp_path / "out", "arima")) == 2
    assert "'arima' is no rival; use lightgbm, chronos" in capsys.readouterr().err
    assert run_training.main(flags(tiny_base, data, tmp_path / "out", "chronos=amazon/chronos-2")) == 2
    assert "no folder of that name exists" in capsys.readouterr().err
