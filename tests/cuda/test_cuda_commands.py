"""The commands on CUDA, as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from market_files import daily_frame, write_frame
from small_trainings import small_flags, small_recipe

from kronos_pipeline import run_training
from kronos_pipeline.artifacts import ArtifactLayout, read_json, read_parquet, write_json
from kronos_pipeline.cli import app as cli
from kronos_pipeline.data.simulate import write_simulated
from kronos_pipeline.evaluation.predictions import BOUNDS

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.usefixtures("one_mlflow_store"),
]

QUICK: dict[str, Any] = {"epochs": 1, "evaluations_per_epoch": 1, "stride": 8}
LORA = ("--adapter", "lora")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_simulated(tmp_path / "data", tickers=["AAPL", "MSFT"], bars=110)
    return tmp_path / "data"


def quick_flags(base: Path | str, data: Path, **changes: Any) -> list[str]:
    """Return the flags of a short training with its output beside the data."""
    settings = {**QUICK, "data_dir": data, "output_dir": data.parent / "out", **changes}
    return small_flags(base, **settings)  # type: ignore[arg-type]


def without_device(flags: list[str]) -> list[str]:
    position = flags.index("--device")
    return flags[:position] + flags[position + 2 :]


@pytest.mark.parametrize(
    ("device", "mode", "artifacts"),
    [
        ("auto", LORA, ("adapters/AAPL", "adapters/MSFT")),
        ("cuda", (), ("checkpoints/best_model", "checkpoints/last_model")),
        ("cuda:0", (*LORA, "--adapter-name", "both"), ("adapters/both",)),
    ],
)
def test_a_training_ends_with_its_artifacts_and_says_where_it_ran(
    tiny_base: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    device: str,
    mode: tuple[str, ...],
    artifacts: tuple[str, ...],
) -> None:
    assert run_training.main([*quick_flags(tiny_base, data, device=device), *mode]) == 0
    printed = capsys.readouterr()
    assert "on cuda:" in printed.out
    assert "error" not in printed.err
    output = data.parent / "out"
    for artifact in artifacts:
        weights = "adapter_model.safetensors" if mode else "model.safetensors"
        assert (output / artifact / weights).is_file()
        assert read_json(output / artifact / "manifest.json")["device"].startswith("cuda:")
    evaluation = read_json(output / "metrics/evaluation.json")
    assert [entry["symbol"] for entry in evaluation["per_symbol"]] == ["AAPL", "MSFT"]
    assert evaluation["model"] == ("adapter" if mode else "checkpoint")
    assert np.isfinite(pd.read_parquet(output / "metrics/forecasts.parquet")[evaluation["model"]]).all()


@pytest.mark.parametrize(("chosen", "expected"), [("cuda", "cuda:0"), ("cpu", "cpu")])
def test_the_environment_chooses_the_device(
    tiny_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, expected: str
) -> None:
    monkeypatch.setenv("KRONOS_DEVICE", chosen)
    flags = without_device(quick_flags(tiny_base, data / "AAPL", output_dir=data / "out"))
    assert run_training.main([*flags, *LORA]) == 0
    assert read_json(data / "out/adapters/AAPL/manifest.json")["device"] == expected


def test_a_gpu_that_is_not_there_is_one_sentence(
    tiny_base: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_training.main(quick_flags(tiny_base, data, device="cuda:99")) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: --device cuda:99: torch finds")
    assert len(message.splitlines()) == 1


def test_check_blind_finds_the_pipeline_blind(tiny_base: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-blind", *quick_flags(tiny_base, data / "AAPL", device="cuda", horizon=4), *LORA]) == 0
    printed = capsys.readouterr().out
    assert "same  adapters/AAPL/adapter_model.safetensors\n" in printed
    assert "differs" not in printed


def test_a_forecast_has_the_numbers_of_the_cpu(tmp_path: Path) -> None:
    """Run a command in a process of its own, with the embedded base model."""
    write_frame(tmp_path / "data", "AAPL", daily_frame(90))
    recipe = small_recipe("kronos-nano", precision="fp32", horizon=3)  # type: ignore[arg-type]
    tables = {}
    for device in ("cpu", "cuda"):
        layout = ArtifactLayout(tmp_path / device)
        better = {"base": {"naive": {"verdict": "better", "reason": "skill 4 %"}}}
        entry = {"symbol": "AAPL", "verdicts": {"mean": better, "distribution": better, "volatility": {}}}
        manifest = {"base_model": {"name": "kronos-nano"}, "config": recipe.model_dump(mode="json")}
        write_json(layout.ticker_metrics("AAPL"), {"per_symbol": [entry], "manifest": manifest})
        folders = ["--data-dir", str(tmp_path / "data"), "--output-dir", str(layout.root)]
        arguments = ["forecast", "AAPL", *folders, "--device", device]
        if device == "cpu":
            assert cli.main(arguments) == 0
        else:
            command = [sys.executable, "-c", "import sys; from kronos_pipeline.cli.app import main; sys.exit(main())"]
            result = subprocess.run([*command, *arguments], capture_output=True, text=True, env=os.environ, check=False)
            assert result.returncode == 0, result.stderr
            assert "Traceback" not in result.stderr
            assert "kronos-nano" in result.stdout
        tables[device], forecast_manifest = read_parquet(layout.forecast("AAPL"))
        assert f'"device": "{device}' in json.dumps(forecast_manifest["sampled"])
    for column in ("mean", "median", *BOUNDS):
        np.testing.assert_allclose(tables["cuda"][column], tables["cpu"][column], rtol=1e-4)
