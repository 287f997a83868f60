"""Adapters that train together end as each does alone: weights, losses by step, early stopping and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small import simulated_bars, small_recipe
from tiny import save_tiny_base

from kronos_pipeline import KronosTrainer
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.training.adapters import AdapterJob
from kronos_pipeline.training.publish import TrainingResult

BARS = {"AAPL": 130, "MSFT": 171, "NVDA": 118}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base without dropout, so that nothing is drawn."""
    return save_tiny_base(tmp_path_factory.mktemp("base"), dropout=False)


def recipe_of(base: Path, **changes: Any) -> Recipe:
    return small_recipe(base, **{"adapter_dropout": 0.0, "learning_rate": 1e-2, "epochs": 3, **changes})


def windows_of(recipe: Recipe) -> dict[str, WindowSet]:
    return {ticker: build_windows(simulated_bars(ticker, bars), recipe) for ticker, bars in BARS.items()}


def trainer_of(recipe: Recipe, output: Path, say: Any = lambda _: None) -> KronosTrainer:
    return KronosTrainer(recipe, output, say=say)


def together(recipe: Recipe, output: Path) -> dict[str, TrainingResult]:
    jobs = [AdapterJob(name, [one]) for name, one in windows_of(recipe).items()]
    results = trainer_of(recipe, output).train_adapters(jobs)
    assert all(isinstance(one, TrainingResult) for one in results), results
    return dict(zip(BARS, results, strict=True))  # type: ignore[arg-type]


def alone(recipe: Recipe, output: Path) -> dict[str, TrainingResult]:
    trainer = trainer_of(recipe, output)
    return {name: trainer.train_adapter([one], name) for name, one in windows_of(recipe).items()}


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"grad_accum_steps": 2, "batch_size": 7},
    "averaged": {"average_decay": 0.9},
    "stops early": {"patience": 1, "evaluations_per_epoch": 6, "epochs": 8},
    "embeddings": {"adapter_targets": ["month_embed", "day_embed"], "weight_decay": 0.1},
    "clipped": {"max_grad_norm": 0.01},
}


@pytest.mark.parametrize("case", list(CASES))
def test_each_ends_as_it_does_alone(base: Path, tmp_path: Path, case: str) -> None:
    recipe = recipe_of(base, **CASES[case])
    ours, theirs = together(recipe, tmp_path / "together"), alone(recipe, tmp_path / "alone")
    assert len({one.summary["steps"] for one in theirs.values()}) > 1
    assert any(one.summary["stopped_early"] for one in theirs.values()) is (case == "stops early")
    for name in BARS:
        one, other = ours[name], theirs[name]
        tensors, others = (load_file(some.folder / "adapter_model.safetensors") for some in (one, other))
        torch.testing.assert_close(tensors, others, rtol=2e-3, atol=1e-4)
        for column in one.history.columns.drop("windows_per_second"):
            assert one.history[column].to_numpy() == pytest.approx(other.history[column].to_numpy(), 1e-4, nan_ok=True)
        same = set(one.summary) - {"seconds", "windows_per_second", "selection_loss"}
        assert {key: one.summary[key] for key in same} == {key: other.summary[key] for key in same}
