"""Manifests and MLflow tags mark a holdout that the base model may have seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from small_trainings import simulated_bars, small_recipe

from kronos_pipeline import KronosTrainer
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.data.bars import make_bars
from kronos_pipeline.data.windows import WindowSet, build_windows
from kronos_pipeline.evaluation.provenance import contamination
from kronos_pipeline.model.loading import KronosModel, load_base
from kronos_pipeline.tracking.runs import Tracker

MARK = "may have been seen in pre-training"


@pytest.fixture(scope="module")
def published(tiny_base: Path) -> KronosModel:
    """Make a small model with the provenance of Kronos-small."""
    base = load_base(find_base_model(str(tiny_base)), torch.device("cpu"))
    return replace(base, source=replace(base.source, pretraining=find_base_model("Kronos-small").pretraining))


def windows_whose_holdout_begins(ticker: str, first: str, base: Path) -> WindowSet:
    recipe = small_recipe(base)
    bars = simulated_bars(ticker)
    frame = bars.frame.copy()
    holdout_start = frame["timestamps"].iloc[build_windows(bars, recipe).holdout_start]
    frame["timestamps"] += pd.Timestamp(first) - holdout_start
    return build_windows(make_bars(ticker, frame, source=bars.source), recipe.model_copy(update={"max_gap": 50}))


def test_it_is_told_of_the_first_bar_that_is_scored() -> None:
    source = find_base_model("Kronos-small")
    assert MARK in str(contamination(source, pd.Timestamp("2024-05-31 23:59:59.999999999")))
    assert contamination(source, pd.Timestamp("2024-06-01")) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("firsts", "message"),
    [
        ({"AAPL": "2024-06-03"}, None),
        ({"AAPL": "2024-06-03", "MSFT": "2024-05-30"}, "2024-05-30"),
    ],
)
def test_a_trainings_manifest_and_its_mlflow_run_are_marked_where_one_holdout_is_old(
    published: KronosModel,
    tiny_base: Path,
    tmp_path: Path,
    made_mlflow_store: str,
    firsts: dict[str, str],
    message: str | None,
) -> None:
    windows = [windows_whose_holdout_begins(ticker, first, tiny_base) for ticker, first in firsts.items()]
    recipe = small_recipe(tiny_base, epochs=1)
    trainer = KronosTrainer(recipe, tmp_path, base=published, say=lambda _: None)
    tracker = Tracker(made_mlflow_store, tmp_path)
    with tracker.training_run("checkpoint", KronosTrainingConfig(**recipe.model_dump())) as run:
        result = trainer.train_checkpoint(windows)
        run.finish(result.summary, result.history, result.folder)
    manifest = json.loads((result.folder / "manifest.json").read_text())
    tags = MlflowClient(made_mlflow_store).get_run(run.run_id).data.tags
    if message is None:
        assert manifest["contamination"] is None
        assert "contamination" not in tags
    else:
        assert MARK in manifest["contamination"]
        assert message in manifest["contamination"]
        assert tags["contamination"] == manifest["contamination"]
