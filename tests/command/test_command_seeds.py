"""The flag --seeds: the recipe is trained with further seeds, and their spread stands beside the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from small_trainings import small_flags

from kronos_pipeline import run_training
from kronos_pipeline.data.simulate import write_simulated
from kronos_pipeline.evaluation.scoring.targets import target_losses

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_mlflow_store")]


@pytest.mark.parametrize("flags", [(), ("--adapter", "lora")], ids=["checkpoint", "adapter"])
def test_the_spread_over_seeds_and_the_ensemble_are_shown_and_stored(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    output, model = tmp_path / "out", "adapter" if flags else "checkpoint"
    write_simulated(tmp_path / "data", tickers=["AAPL", "MSFT"], bars=130)
    settings = small_flags(tiny_base, data_dir=tmp_path / "data", output_dir=output, epochs=1)
    assert run_training.main([*settings, *flags, "--seeds", "3"]) == 0
    printed = capsys.readouterr().out
    assert f"Loss of the {model} over 3 seeds, holdout, mean over 2 symbols" in printed
    assert "A difference below sd may be a matter of the seed." in printed

    seeds = json.loads((output / "metrics/seeds.json").read_text())
    leaderboard = json.loads((output / "metrics/leaderboard.json").read_text())
    table = pd.read_parquet(output / "metrics/seeds.parquet")
    assert seeds["seeds"] == [0, 1, 2]
    assert set(table["model"]) == {"seed_0", "seed_1", "seed_2"}
    evaluation = json.loads((output / "metrics/evaluation.json").read_text())
    for entry in (evaluation["aggregate"], *evaluation["per_symbol"]):
        assert set(entry["verdicts"]["distribution"]["ensemble"]) == set(entry["verdicts"]["distribution"][model])
    assert "ensemble" in {row["model"] for row in leaderboard["holdout"]["models"]}
    losses = seeds["aggregate"]["mean"]["seeds"]
    assert len(set(losses.values())) == 3
    predictions = pd.read_parquet(output / "metrics/predictions.parquet")
    together = target_losses(predictions, "ensemble", "mean")
    assert seeds["aggregate"]["mean"]["ensemble"] == pytest.approx(together.groupby("unique_id").mean().mean())
    own = target_losses(predictions, model, "mean")
    assert losses["seed_0"] == pytest.approx(own.groupby("unique_id").mean().mean())
    assert seeds["per_symbol"].keys() == {"AAPL", "MSFT"}


def test_several_processes_are_refused(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    settings = small_flags(tiny_base, data_dir=tmp_path, output_dir=tmp_path / "out")
    assert run_training.main([*settings, "--seeds", "2"]) == 2
    assert "--seeds need one process" in capsys.readouterr().err
