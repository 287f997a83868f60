from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from holdouts import HandMadeWindows, RecordingSampler
from matplotlib.image import imread

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.config import Recipe
from kronos_pipeline.evaluation.forecasts import forecast_holdout
from kronos_pipeline.evaluation.plots import forecast_plot, loss_plot, save_forecast_plot

CONFIG = Recipe(horizon=4, lookback=8, eval_samples=3)
COLOURS = {"base": "#0072b2", "checkpoint": "#009e73", "adapter": "#d55e00", "naive": "#7a7a7a"}


def windows(bars: int = 60, holdout: int = 10, ticker: str = "AAPL", freq: str = "B") -> HandMadeWindows:
    close = 100 + np.cumsum(np.random.default_rng(0).normal(size=bars))
    return HandMadeWindows(close, holdout=holdout, horizon=4, ticker=ticker, freq=freq)


def pixels(png: bytes) -> np.ndarray:
    image = imread(io.BytesIO(png))  # (height, width, 4), 0 to 1
    assert image.shape == (700, 1200, 4)
    return np.asarray(image)


def has_colour(image: np.ndarray, colour: str) -> bool:
    wanted = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return bool((np.abs(image[..., :3] - wanted).max(axis=-1) < 0.01).sum() > 50)


@pytest.mark.parametrize("ticker", ["AAPL", "^GSPC", "EURUSD=X", "BRK.B"])
def test_a_plot_is_an_opaque_light_picture_with_every_model_in_its_colour(tmp_path: Path, ticker: str) -> None:
    holdout = windows(ticker=ticker)
    table = forecast_holdout(
        holdout, {"base": 1.0, "checkpoint": -4.0, "adapter": -8.0}, CONFIG, sampler=RecordingSampler()
    )
    path = save_forecast_plot(ArtifactLayout(tmp_path), holdout, table, "a $label$ (embedded demo model)")
    assert path == tmp_path / "plots" / f"{ticker}.png"
    image = pixels(path.read_bytes())
    assert (image[..., 3] == 1).all()
    assert (image[0, 0, :3] == 1).all()
    for colour in COLOURS.values():
        assert has_colour(image, colour)


@pytest.mark.parametrize(("bars", "holdout", "freq"), [(13, 1, "B"), (3000, 1900, "5min"), (30, 20, "h")])
def test_few_bars_and_many_are_drawn(bars: int, holdout: int, freq: str) -> None:
    some = windows(bars, holdout, freq=freq)
    table = forecast_holdout(some, {"adapter": 1.0}, CONFIG, sampler=RecordingSampler())
    image = pixels(forecast_plot(some.bars.frame, table, "title"))
    assert has_colour(image, COLOURS["adapter"])
    assert not has_colour(image, COLOURS["base"])


def test_the_same_forecasts_give_the_same_bytes() -> None:
    some = windows()
    table = forecast_holdout(some, {"adapter": 1.0}, CONFIG, sampler=RecordingSampler())
    assert forecast_plot(some.bars.frame, table, "title") == forecast_plot(some.bars.frame, table, "title")


@pytest.mark.parametrize("steps", [1, 5, 200])
@pytest.mark.parametrize("every", [1, 10, 1000])
def test_losses_are_drawn_however_few_there_are(steps: int, every: int) -> None:
    step = np.arange(1, steps + 1)
    history = pd.DataFrame(
        {
            "step": step,
            "train_loss": 4 + 1 / step,
            "selection_loss": np.where(step % every == 0, 4 + 2 / step, np.nan),
        }
    )
    image = pixels(loss_plot(history, "losses"))
    assert has_colour(image, "#0072b2")
    assert has_colour(image, "#1a1a1a") or not (step % every == 0).any()


def test_pyplot_with_its_global_state_is_not_imported() -> None:
    code = "import sys, kronos_pipeline.evaluation.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
