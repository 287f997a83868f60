from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from holdouts import HandMadeWindows, forecast
from matplotlib.figure import Figure
from matplotlib.image import imread
from recorded_calls import record_calls

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.config import Recipe
from kronos_pipeline.evaluation.predictions import models_of
from kronos_pipeline.evaluation.reports import calibration_plots, plots
from kronos_pipeline.evaluation.reports.calibration_plots import calibration_plot, reliability_plot
from kronos_pipeline.evaluation.reports.figures import WARNING
from kronos_pipeline.evaluation.reports.plots import (
    fan_plot,
    forecast_plot,
    loss_plot,
    save_plots,
    steps_plot,
)
from kronos_pipeline.evaluation.scoring.calibration import calibrations

pytestmark = pytest.mark.pictures

RECIPE = Recipe(horizon=4, lookback=8, eval_samples=30)
COLOURS = {"base": "#0072b2", "checkpoint": "#009e73", "adapter": "#d55e00", "naive": "#7a7a7a"}
SEEN = "AAPL: the base model learned from bars up to May 2024, so these may have been seen in pre-training"


def windows(
    bars: int = 60, holdout: int = 10, ticker: str = "AAPL", freq: str = "B", price: float = 100
) -> HandMadeWindows:
    close = price * np.exp(0.01 * np.cumsum(np.random.default_rng(0).normal(size=bars)))
    return HandMadeWindows(close, holdout=holdout, horizon=4, ticker=ticker, freq=freq)


def table(holdout: HandMadeWindows, *models: str) -> pd.DataFrame:
    shifts = {"base": 1.0, "checkpoint": -4.0, "adapter": -8.0}
    return forecast(holdout, {model: shifts[model] for model in models}, RECIPE).predictions


def of(predictions: pd.DataFrame, model: str) -> pd.DataFrame:
    return predictions[predictions["model"] == model]


def pixels(png: bytes) -> np.ndarray:
    image = imread(io.BytesIO(png))  # (height, width, 4), 0 to 1
    assert image.shape == (700, 1200, 4)
    return np.asarray(image)


def has_colour(image: np.ndarray, colour: str) -> bool:
    rgb = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return bool((np.abs(image[..., :3] - rgb).max(axis=-1) < 0.01).sum() > 50)


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Figure]:
    """Call a plot function, and return the figure instead of writing it."""
    recorded = [record_calls(monkeypatch, module, "to_png") for module in (plots, calibration_plots)]

    def draw(plot: Callable[..., bytes], *arguments: Any) -> Figure:
        for calls in recorded:
            calls.clear()
        plot(*arguments)
        figure: Figure = next(calls for calls in recorded if calls)[0][0]
        return figure

    return draw


def lines(figure: Figure, panel: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {str(line.get_label()): (line.get_xdata(), line.get_ydata()) for line in figure.axes[panel].lines}  # type: ignore[misc]


# Visible parts of a plot


@pytest.mark.slow
@pytest.mark.parametrize("ticker", ["^GSPC", "EURUSD=X"])
def test_a_holdout_is_five_opaque_light_pictures_with_the_notes_on_each(tmp_path: Path, ticker: str) -> None:
    holdout = windows(ticker=ticker)
    predictions = table(holdout, "base", "checkpoint", "adapter")
    paths = save_plots(ArtifactLayout(tmp_path), holdout.bars.frame, predictions, "adapter", ["costs $1, or $2", SEEN])
    assert paths == {
        "holdout": tmp_path / "plots" / f"{ticker}.png",
        **{
            kind: tmp_path / "plots" / ticker / f"{kind}.png" for kind in ("fan", "steps", "reliability", "calibration")
        },
    }
    for path in paths.values():
        image = pixels(path.read_bytes())
        assert (image[..., 3] == 1).all()
        assert (image[0, 0, :3] == 1).all()
        assert has_colour(image, WARNING)
    for kind in ("holdout", "steps"):
        image = pixels(paths[kind].read_bytes())
        assert all(has_colour(image, colour) for colour in COLOURS.values())


def test_a_picture_without_notes_warns_of_nothing() -> None:
    holdout = windows()
    assert not has_colour(pixels(fan_plot(holdout.bars.frame, of(table(holdout, "base"), "base"), "title")), WARNING)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("price", "notes"),
    [
        (95_000_000, []),
        (0.0001, [SEEN, "embedded demo model", "not itself measured", "x" * 60 + " " + SEEN * 3]),
    ],
)
@pytest.mark.parametrize("kind", ["forecast", "fan", "steps", "reliability", "calibration"])
def test_no_word_is_cut_off(draw: Callable[..., Figure], kind: str, price: float, notes: list[str]) -> None:
    holdout = windows(ticker="A-LONG.SYMBOL=X", price=price, freq="5min")
    predictions = table(holdout, "base", "checkpoint", "adapter")
    bars, adapter, title = holdout.bars.frame, of(predictions, "adapter"), "a/long/path/to/a/folder " * 6
    calls: dict[str, tuple[Any, ...]] = {
        "forecast": (forecast_plot, bars, predictions, title, notes),
        "fan": (fan_plot, bars, adapter, title, notes),
        "steps": (steps_plot, predictions, title, notes),
        "reliability": (reliability_plot, adapter, title, notes),
        "calibration": (calibration_plot, calibrations(predictions, ["adapter"])["adapter"], title, notes),
    }
    figure = draw(*calls[kind])
    image = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    assert image.shape == (700, 1200, 3)
    for edge in (image[:3], image[-3:], image[:, :3], image[:, -3:]):
        assert (edge == 255).all()
    heading, labels = figure.texts, [label for axes in figure.axes for label in (axes.xaxis.label, axes.yaxis.label)]
    assert len(heading) > len(notes)
    for label in labels:
        assert not any(label.get_window_extent().overlaps(line.get_window_extent()) for line in heading)
    assert figure.axes[0].get_window_extent().height > 200
    assert all(axes.get_window_extent().height > 40 for axes in figure.axes)


@pytest.mark.slow
@pytest.mark.parametrize(("bars", "holdout", "freq"), [(13, 1, "B"), (1000, 620, "5min"), (30, 20, "h")])
def test_few_bars_and_many_are_drawn(tmp_path: Path, bars: int, holdout: int, freq: str) -> None:
    ticker_windows = windows(bars, holdout, freq=freq)
    paths = save_plots(
        ArtifactLayout(tmp_path), ticker_windows.bars.frame, table(ticker_windows, "adapter"), "adapter", []
    )
    image = pixels(paths["holdout"].read_bytes())
    assert has_colour(image, COLOURS["adapter"])
    assert not has_colour(image, COLOURS["base"])
    assert has_colour(pixels(paths["fan"].read_bytes()), "#d3e6f2")


@pytest.mark.slow
def test_where_the_trained_model_has_no_forecast_the_ewma_random_walk_shows_its_intervals(tmp_path: Path) -> None:
    holdout = windows()
    paths = save_plots(ArtifactLayout(tmp_path), holdout.bars.frame, table(holdout), "adapter", [])
    assert has_colour(pixels(paths["fan"].read_bytes()), "#d3e6f2")


@pytest.mark.slow
def test_the_same_forecasts_give_the_same_bytes() -> None:
    holdout = windows()
    adapter = of(table(holdout, "adapter"), "adapter")
    assert fan_plot(holdout.bars.frame, adapter, "title", [SEEN]) == fan_plot(
        holdout.bars.frame, adapter, "title", [SEEN]
    )


# Correctness of the drawn values


def test_each_forecast_starts_at_the_real_close_of_its_cutoff(draw: Callable[..., Figure]) -> None:
    holdout = windows()
    predictions = table(holdout, "adapter")
    lines_by_label = lines(draw(forecast_plot, holdout.bars.frame, predictions, "title"))
    label = next(name for name in lines_by_label if name.startswith("adapter (MAE "))
    x, y = lines_by_label[label]
    adapter = of(predictions, "adapter")
    assert list(np.flatnonzero(np.isnan(y))) == [5, 11, 15]  # forecasts of 4, 4 and 2 bars, each after its cutoff
    np.testing.assert_array_equal(x[:5], np.arange(49, 54))
    np.testing.assert_allclose(y[:5], [holdout.close[49], *adapter["mean"][:4]])
    assert {str(name).split()[0] for name in lines_by_label} & set(models_of(predictions)) == {
        "naive",
        "drift",
        "seasonal_naive",
        "adapter",  # the mean path of a volatility rival is the last close, that of naive
    }


@pytest.mark.slow
def test_a_fan_holds_the_intervals_of_the_newest_cutoffs(draw: Callable[..., Figure]) -> None:
    holdout = windows(400, 300)
    adapter = of(table(holdout, "adapter"), "adapter")
    figure = draw(fan_plot, holdout.bars.frame, adapter, "title")
    x, median = lines(figure)["median forecast"]
    newest = adapter.iloc[-int((~np.isnan(median)).sum() - np.isnan(median).sum()) :]
    assert 100 < len(newest) <= 150
    np.testing.assert_allclose(median[~np.isnan(median)][-4:], newest["median"][-4:])
    bands = {str(band.get_label()): band for band in figure.axes[0].collections}
    for level in (50, 80, 90):
        corners = np.concatenate([path.vertices for path in bands[f"{level} % interval"].get_paths()])
        last = corners[corners[:, 0] == x[~np.isnan(x)][-1]][:, 1]
        assert last.min() == pytest.approx(newest[f"lo_{level}"].iloc[-1])
        assert last.max() == pytest.approx(newest[f"hi_{level}"].iloc[-1])


def test_a_fan_shows_the_probability_of_a_rise_below_and_none_of_it_where_there_is_none(
    draw: Callable[..., Figure],
) -> None:
    holdout = windows()
    adapter = of(table(holdout, "adapter"), "adapter").assign(p_up=0.25)
    panel = draw(fan_plot, holdout.bars.frame, adapter, "title").axes[1]
    y = np.asarray(panel.lines[-1].get_ydata(), np.float64)
    assert set(y[~np.isnan(y)]) == {25.0}
    assert int((~np.isnan(y)).sum()) == len(adapter)


def test_calibration_shows_the_shares_of_the_report_with_their_bands_and_counts(draw: Callable[..., Figure]) -> None:
    holdout = windows(200, 120)
    predictions = table(holdout, "adapter")
    described = calibrations(predictions, ["adapter"])["adapter"]
    left, right = draw(calibration_plot, described, "title").axes
    of_80 = described["coverage"]["80"]
    drawn = {float(y) for line in left.lines for y in np.atleast_1d(np.asarray(line.get_ydata(), np.float64))}
    for share in (of_80["overall"], *of_80["by_volatility"].values()):
        assert {share["percent"], share["low"], share["high"]} <= drawn
    assert [label.get_text().split()[0] for label in left.get_xticklabels()] == ["all", "low", "middle", "high"]
    assert [text.get_text() for text in right.texts] == [f"{entry['bars']:,}" for entry in described["p_up"]["bins"]]
    assert right.get_title(loc="left").startswith("Brier score ")


def test_a_calibration_without_thirds_or_probabilities_says_why(draw: Callable[..., Figure]) -> None:
    predictions = table(windows(), "adapter").assign(p_up=np.nan, variance=np.nan)
    left, right = draw(calibration_plot, calibrations(predictions, ["adapter"])["adapter"], "title").axes
    assert left.get_xlabel().startswith("Not divided by volatility: terciles need 3 cutoffs")
    assert [label.get_text().split()[0] for label in left.get_xticklabels()] == ["all"]
    assert right.get_title(loc="left") == "No Brier score: no probability of a close above the last."


def test_a_fan_of_bars_to_come_goes_on_where_the_known_bars_end(draw: Callable[..., Figure]) -> None:
    holdout = windows()
    adapter = of(table(holdout, "adapter"), "adapter").iloc[-2:]  # the last forecast: two bars
    known = holdout.bars.frame.iloc[:-2]
    lines_by_label = lines(draw(fan_plot, known, adapter, "title"))
    assert lines_by_label["real close"][0][-1] == len(known) - 1
    np.testing.assert_array_equal(lines_by_label["median forecast"][0][:3], len(known) - 1 + np.arange(3))


@pytest.mark.slow
def test_errors_by_step_are_means_over_cutoffs_in_multiples_of_the_mean_change(draw: Callable[..., Figure]) -> None:
    holdout = windows()
    predictions = table(holdout, "base", "adapter")
    figure = draw(steps_plot, predictions, "title")
    adapter = of(predictions, "adapter")
    scale = np.abs(np.diff(holdout.close[:50])).mean()
    by_hand = [np.abs(rows["mean"] - rows["y"]).mean() / scale for _, rows in adapter.groupby("step")]
    steps, errors = lines(figure)["adapter"]
    np.testing.assert_array_equal(steps, [1, 2, 3, 4])
    np.testing.assert_allclose(errors, by_hand)
    assert "scaled" in figure.axes[0].get_ylabel()
    assert "mean over 2 to 3 cutoffs" in figure.axes[0].get_xlabel()
    assert figure.axes[0].get_ylim()[0] == 0


def test_errors_of_a_ticker_without_a_scale_are_in_price_units(draw: Callable[..., Figure]) -> None:
    predictions = table(windows(), "adapter").assign(scale=0.0)
    figure = draw(steps_plot, predictions, "title")
    adapter = of(predictions, "adapter")
    np.testing.assert_allclose(
        lines(figure)["adapter"][1], [np.abs(rows["mean"] - rows["y"]).mean() for _, rows in adapter.groupby("step")]
    )
    assert "price" in figure.axes[0].get_ylabel()


def test_reliability_counts_the_closes_within_each_interval_and_where_they_lie(draw: Callable[..., Figure]) -> None:
    bars = 100
    y = np.arange(bars, dtype=float)
    adapter = pd.DataFrame(
        {"unique_id": "A", "cutoff": pd.Timestamp("2024-01-01"), "y": y, "pit": (y + 0.5) ** 2 / bars**2}
    )
    for level, share in ((50, 0.3), (80, 0.7), (90, 0.85)):
        adapter[f"raw_lo_{level}"], adapter[f"raw_hi_{level}"] = 0.0, share * bars - 0.5
        adapter[f"lo_{level}"], adapter[f"hi_{level}"] = 0.0, level - 0.5
    figure = draw(reliability_plot, adapter, "title")
    np.testing.assert_allclose(lines(figure)["as sampled"][1], [30, 70, 85])
    np.testing.assert_allclose(lines(figure)["recalibrated"][1], [50, 80, 90])
    heights = [patch.get_height() for patch in figure.axes[1].patches if patch.get_width() == pytest.approx(0.2)]  # type: ignore[attr-defined]
    np.testing.assert_allclose(heights, [45, 18, 14, 12, 11])
    assert "100 bars from 1 cutoff " in figure.axes[1].get_ylabel()


def test_the_band_of_a_flat_histogram_is_that_of_chance(draw: Callable[..., Figure]) -> None:
    """The band holds 95 percent of the columns of histograms of independent, uniform bars."""
    holdout = windows()
    adapter = of(table(holdout, "adapter"), "adapter").sample(200, replace=True, random_state=0)
    figure = draw(reliability_plot, adapter, "title")
    marks = sorted(float(np.asarray(line.get_ydata())[0]) for line in figure.axes[1].lines)
    low, expected, high = marks
    assert expected == pytest.approx(20)
    shares = np.random.default_rng(0).multinomial(200, [0.2] * 5, size=4000) / 2
    assert np.mean((shares >= low) & (shares <= high)) == pytest.approx(0.955, abs=0.015)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 5, 200])
@pytest.mark.parametrize("eval_every", [1, 10, 1000])
def test_losses_are_drawn_however_few_there_are(steps: int, eval_every: int) -> None:
    step = np.arange(1, steps + 1)
    history = pd.DataFrame(
        {
            "step": step,
            "train_loss": 4 + 1 / step,
            "selection_loss": np.where(step % eval_every == 0, 4 + 2 / step, np.nan),
        }
    )
    image = pixels(loss_plot(history, "losses"))
    assert has_colour(image, "#0072b2")
    assert has_colour(image, "#1a1a1a") or not (step % eval_every == 0).any()


def test_the_loss_of_the_untouched_model_is_drawn_and_is_not_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "to_png", lambda figure: figure.axes[0].get_legend_handles_labels()[1])
    history = pd.DataFrame({"step": [0, 1], "train_loss": [np.nan, 4.0], "selection_loss": [3.0, 4.0]})
    labels: object = loss_plot(history, "losses")
    assert labels == ["training loss", "selection loss", "untouched model: 3", "best: 4 at step 1 (+1)"]


@pytest.mark.slow
def test_pyplot_with_its_global_state_is_not_imported() -> None:
    code = "import sys, kronos_pipeline.evaluation.reports.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
