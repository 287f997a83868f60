"""Training of many adapters by one command: it names the adapters that fail, and trains the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_trainings import SMALL, simulated_windows, small_recipe

from kronos_pipeline import KronosTrainer
from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.errors import DataError, KronosError
from kronos_pipeline.pipeline.train import train_all
from kronos_pipeline.tracking.runs import Tracker

pytestmark = pytest.mark.slow


@pytest.fixture
def windows(tiny_base: Path) -> dict[str, WindowSet]:
    """Write two good tickers, and a ticker without windows in its selection block."""
    names = ["AAPL", "BAD", "MSFT"]
    windows = dict(zip(names, simulated_windows(small_recipe(tiny_base), names), strict=True))
    rows = windows["BAD"].rows
    return windows | {"BAD": replace(windows["BAD"], rows=rows[rows["split"] != "selection"])}


@pytest.mark.usefixtures("one_mlflow_store")
@pytest.mark.parametrize("skips", [True, False])
def test_one_that_fails_leaves_the_others(
    tiny_base: Path, tmp_path: Path, windows: dict[str, WindowSet], skips: bool
) -> None:
    config = KronosTrainingConfig(**{**SMALL, "model_name": str(tiny_base), "adapter": "lora", "epochs": 1})
    trainer = KronosTrainer(config.recipe, tmp_path, say=lambda _: None)
    tracker, skipped = Tracker(None, tmp_path), dict[str, KronosError]()
    if skips:
        trained = train_all(config, trainer, tracker, windows, skipped.__setitem__)
        assert [training.tickers for training in trained] == [["AAPL"], ["MSFT"]]
        assert list(skipped) == ["BAD"]
    else:
        with pytest.raises(DataError, match="selection"):
            train_all(config, trainer, tracker, windows)
    assert {path.name for path in (tmp_path / "adapters").iterdir() if path.is_symlink()} == {"AAPL", "MSFT"}
