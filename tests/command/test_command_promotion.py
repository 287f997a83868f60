"""Promotion by the plain command: on a ticker with a pattern to learn, and on a ticker without a pattern."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kronos_pipeline import run_training
from kronos_pipeline.cli import app as cli
from kronos_pipeline.data.simulate import Calendar, Dynamics, simulate_ticker
from kronos_pipeline.tracking.registry import Registry
from kronos_pipeline.tracking.runs import Tracker
from kronos_pipeline.tracking.version_page import beaten_rivals

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clean_mlflow_store")]

BARS, HOLDOUT = 400, 60
SETTINGS: dict[str, object] = {
    "model_name": "kronos-nano",
    "lookback": 32,
    "horizon": 5,
    "validation_bars": HOLDOUT,
    "selection_bars": 40,
    "adapter": "lora",
    "eval_samples": 16,
    "device": "cpu",
    "epochs": 4,
    "learning_rate": 1e-2,
    "average_decay": 0.9,
}


def strong_pattern() -> pd.DataFrame:
    """Make bars with a level that depends mostly on the day of the week."""
    calendar = Calendar(np.zeros((13, 32)), np.array([-0.05, 0.03, 0.05, -0.03, 0.0, 0.0, 0.0]), np.zeros(24))
    return simulate_ticker(2, BARS, dynamics=Dynamics(walk=0.003, deviation=0.003), calendar=calendar).frame()


def train(folder: Path, frame: pd.DataFrame, *more: str) -> Path:
    data, output = folder / "data", folder / "out"
    data.mkdir(exist_ok=True)
    frame.to_csv(data / "AAPL.csv", index=False)
    flags = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert run_training.main([*flags, "--data-dir", str(data), "--output-dir", str(output), "-v", *more]) == 0
    return output


def registry(output: Path) -> Registry:
    return Registry(Tracker(None, output))


def test_an_adapter_that_learned_a_strong_pattern_is_promoted_and_forecasts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = train(tmp_path, strong_pattern(), "--refit-all")
    printed = capsys.readouterr().out
    assert "kronos-AAPL version 1, by its holdout: champion of distribution" in printed
    assert "kronos-AAPL version 2: version 1 on all bars, not itself measured" in printed
    champion = registry(output).champion("kronos-AAPL")
    assert champion is not None
    assert champion.number == 1
    rivals = ("ewma", "garch", "gjr_garch", "har", "base")
    assert set(rivals) <= set(beaten_rivals(champion, "distribution"))
    manifest: dict[str, Any] = json.loads((output / "refits/AAPL/manifest.json").read_text())
    assert manifest["seen_until"]["AAPL"].startswith(str(strong_pattern()["timestamps"].iloc[-1].date()))

    flags = ["--data-dir", str(tmp_path / "data"), "--output-dir", str(output), "--device", "cpu"]
    assert cli.main(["forecast", "AAPL", *flags]) == 0
    printed = capsys.readouterr().out
    assert "kronos-AAPL version 2, a refit of version 1, not itself measured" in " ".join(printed.split())
    assert "not recalibrated" not in printed
    forecast = pd.read_parquet(output / "forecasts/AAPL.parquet")
    assert len(forecast) == 5
    assert forecast["ds"].min() > strong_pattern()["timestamps"].iloc[-1]
    # The same weekdays as in the pattern: Wednesday is the highest, Monday the lowest.
    by_weekday = forecast.set_index(forecast["ds"].dt.weekday)["median"]
    assert by_weekday.idxmax() == 2
    assert by_weekday.idxmin() == 0


def test_an_adapter_that_was_trained_on_shuffled_bars_is_not_promoted_and_naive_forecasts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = strong_pattern()
    values = frame.columns.drop("timestamps")
    order = np.random.default_rng(0).permutation(BARS - HOLDOUT)
    frame.loc[: BARS - HOLDOUT - 1, values] = frame.loc[order, values].to_numpy()
    output = train(tmp_path, frame)
    assert "kronos-AAPL version 1, by its holdout: not promoted; mean" in capsys.readouterr().out
    (version,) = registry(output).versions("kronos-AAPL")
    assert version.aliases == ("challenger",)
    assert version.tags["promoted.mean"] == "no"
    assert registry(output).champion("kronos-AAPL") is None
