"""The plain command, run as a user runs it, but in this process."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from market_files import stock_frames, write_frame
from small_trainings import small_flags

from kronos_pipeline import run_training
from kronos_pipeline.data.simulate import write_simulated
from kronos_pipeline.evaluation.predictions import VOLATILITY_RIVALS, without_variants
from kronos_pipeline.evaluation.scoring.metrics import METRICS

BASELINES = {"naive", "drift", "seasonal_naive", *VOLATILITY_RIVALS}
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_mlflow_store")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_simulated(tmp_path / "data", tickers=["AAPL", "MSFT"], bars=130)
    return tmp_path / "data"


def train(base: Path, data: Path, output: Path, *flags: str, **changes: Any) -> int:
    return run_training.main([*small_flags(base, data_dir=data, output_dir=output, **changes), *flags])


def check_numbers(output: Path) -> dict[str, Any]:
    """Recompute every score of evaluation.json from forecasts.parquet alone."""
    evaluation = json.loads((output / "metrics/evaluation.json").read_text())
    forecasts = pd.read_parquet(output / "metrics/forecasts.parquet")
    assert not forecasts.duplicated(["unique_id", "ds"]).any()
    for entry in evaluation["per_symbol"]:
        rows = forecasts[forecasts["unique_id"] == entry["symbol"]]
        assert evaluation["model"] in without_variants(entry["models"])
        for model in without_variants(entry["models"]):  # forecasts.parquet has the models as sampled
            scores = entry["models"][model]
            error = rows[model] - rows["y"]
            assert scores["mae"] == pytest.approx(error.abs().mean())
            assert scores["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
            assert scores["mape"] == pytest.approx(100 * (error / rows["y"]).abs().mean())
            assert scores["bias"] == pytest.approx(error.mean())
        assert {name: entry[name] for name in METRICS} == {
            name: entry["models"][evaluation["model"]][name] for name in METRICS
        }
    for name in ("mae", "rmse", "mape", "mase", "crps", "coverage_80"):
        mean = np.mean([entry[name] for entry in evaluation["per_symbol"]])
        assert evaluation["aggregate"][name] == pytest.approx(mean)
    assert evaluation["aggregate"]["symbols_evaluated"] == len(evaluation["per_symbol"])
    return evaluation  # type: ignore[no-any-return]


@pytest.mark.pictures
def test_a_checkpoint_over_all_tickers(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], one_mlflow_store: str
) -> None:
    output = tmp_path / "out"
    assert train(tiny_base, data, output, "-v") == 0
    evaluation = check_numbers(output)
    assert evaluation["model"] == "checkpoint"
    assert [entry["symbol"] for entry in evaluation["per_symbol"]] == ["AAPL", "MSFT"]
    for file in (
        "bars/AAPL.parquet",
        "windows/MSFT.parquet",
        "checkpoints/best_model/model.safetensors",
        "checkpoints/last_model/config.json",
        "metrics/AAPL.json",
        "plots/MSFT.png",
    ):
        assert (output / file).is_file()
    printed = capsys.readouterr().out
    for text in ("MAE", "RMSE", "MAPE", "AAPL", "MSFT", "mean", str(output / "metrics/evaluation.json"), "MLflow"):
        assert text in printed
    manifest = json.loads((output / "checkpoints/best_model/manifest.json").read_text())
    run = mlflow.MlflowClient(one_mlflow_store).get_run(manifest["mlflow_run"])
    assert run.info.status == "FINISHED"
    assert run.data.params["lookback"] == "16"
    assert run.data.metrics["holdout/mae"] == pytest.approx(evaluation["aggregate"]["mae"])


def test_one_adapter_over_all_of_the_data_under_a_name(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    flags = ["--adapter", "lora", "--adapter-name", "tech", "--no-freeze-backbone", "--adapter-targets", "w1,w2"]
    assert train(tiny_base, data, output, *flags) == 0
    assert check_numbers(output)["aggregate"]["symbols_evaluated"] == 2
    assert [folder.name for folder in (output / "adapters").iterdir() if folder.is_symlink()] == ["tech"]
    assert (output / "adapters/tech/base/model.safetensors").is_file()
    settings = json.loads((output / "adapters/tech/adapter_config.json").read_text())
    assert sorted(settings["target_modules"]) == ["w1", "w2"]


@pytest.mark.parametrize("flags", [(), ("--adapter", "lora")], ids=["checkpoint", "adapter"])
def test_a_training_that_does_not_help_is_told(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    idle = tmp_path / "idle"
    assert train(tiny_base, data / "AAPL", idle, *flags, learning_rate=1e-30) == 0

    note = "no better than the untouched model on the selection block"
    assert f"{'AAPL' if flags else 'checkpoint'}: {note}\n" in capsys.readouterr().out
    [manifest] = [
        json.loads(path.read_text())
        for pattern in ("checkpoints/best_model/manifest.json", "adapters/AAPL/manifest.json")
        for path in idle.glob(pattern)
    ]
    assert manifest["training"]["note"] == note
    run = mlflow.MlflowClient().get_run(manifest["mlflow_run"])
    assert run.data.tags["training.note"] == note
    assert run.data.metrics["training/untouched_loss"] == manifest["training"]["untouched_loss"]


def test_a_folder_of_one_ticker(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    assert train(tiny_base, data / "AAPL", tmp_path / "out", "--adapter", "lora", "--adapter-name", "AAPL") == 0
    assert [entry["symbol"] for entry in check_numbers(tmp_path / "out")["per_symbol"]] == ["AAPL"]


def test_a_bad_ticker_among_good_ones_is_skipped_by_name_and_the_exit_code_tells(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = data / "ACME.csv"
    bad.write_text((data / "AAPL/AAPL.csv").read_text().replace("\n2021-01-05,", "\n2021-01-05,x", 1))
    assert train(tiny_base, data, tmp_path / "out", "--adapter", "lora") == 2
    evaluation = check_numbers(tmp_path / "out")
    assert [entry["symbol"] for entry in evaluation["per_symbol"]] == ["AAPL", "MSFT"]
    (skipped,) = evaluation["skipped"]
    assert skipped["symbol"] == "ACME"
    assert "ACME.csv:3: open" in skipped["reason"]
    captured = capsys.readouterr()
    assert f"error: {bad}:3: open" in captured.err
    assert re.search(r"^Skipped +ACME:.*ACME\.csv:3:\s+open", captured.out, re.MULTILINE | re.DOTALL)
    assert not (tmp_path / "out/adapters/ACME").exists()


def test_an_adapter_that_fails_among_good_ones_is_skipped_by_name_too(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out/adapters/MSFT").mkdir(parents=True)
    assert train(tiny_base, data, tmp_path / "out", "--adapter", "lora") == 2
    evaluation = check_numbers(tmp_path / "out")
    assert [entry["symbol"] for entry in evaluation["per_symbol"]] == ["AAPL"]
    (skipped,) = evaluation["skipped"]
    assert skipped["symbol"] == "MSFT"
    assert "adapters/MSFT is in the way" in skipped["reason"]
    captured = capsys.readouterr()
    assert "adapters/MSFT is in the way" in captured.err
    assert re.search(r"^Skipped +MSFT:", captured.out, re.MULTILINE)


def test_a_model_that_has_seen_the_holdout_is_left_out_and_named(
    tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert train(tiny_base, data, output, validation_days=5, epochs=1) == 0
    assert train(tiny_base, data, output, "--adapter", "lora", epochs=1) == 0
    models = check_numbers(output)["per_symbol"][0]["models"]
    assert set(without_variants(models)) == {*BASELINES, "base", "adapter"}
    assert re.search(r"AAPL, MSFT: the checkpoint is left out: it has seen bars up to 2021", capsys.readouterr().out)


def test_five_real_stocks_get_a_checkpoint_and_then_an_adapter_each_beside_it(
    tiny_base: Path, tmp_path: Path, one_mlflow_store: str
) -> None:
    for ticker, frame in stock_frames().items():
        write_frame(tmp_path / "stocks", ticker, frame)
    settings = {"lookback": 64, "horizon": 30, "validation_days": 30, "selection_days": 60, "stride": 25, "epochs": 1}
    output = tmp_path / "out"
    for mode, model in (((), "checkpoint"), (("--adapter", "lora"), "adapter")):
        assert train(tiny_base, tmp_path / "stocks", output, *mode, **settings) == 0
        evaluation = check_numbers(output)
        assert evaluation["model"] == model
        assert evaluation["aggregate"]["symbols_evaluated"] == 5
        assert evaluation["aggregate"]["bars"] == 150
    for entry in evaluation["per_symbol"]:
        assert set(without_variants(entry["models"])) == {*BASELINES, "base", "checkpoint", "adapter"}
        folder = output / "adapters" / entry["symbol"]
        for file in ("adapter_config.json", "adapter_model.safetensors", "adapter.pt", "manifest.json", "history.csv"):
            assert (folder / file).is_file()
        run_id = json.loads((folder / "manifest.json").read_text())["mlflow_run"]
        metrics = mlflow.MlflowClient(one_mlflow_store).get_run(run_id).data.metrics
        assert metrics["holdout/mae"] == pytest.approx(entry["mae"])
