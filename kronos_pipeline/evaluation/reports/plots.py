"""Plots of forecasts beside the real closes, of intervals, of the error by bars ahead, and of the training losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.atomic_writes import write_file
from kronos_pipeline.errors import count
from kronos_pipeline.evaluation.predictions import EWMA, VOLATILITY_RIVALS, models_of, without_variants
from kronos_pipeline.evaluation.reports.calibration_plots import calibration_plot, reliability_plot
from kronos_pipeline.evaluation.reports.figures import (
    BANDS,
    BLUE,
    FAINT,
    INK,
    ORANGE,
    STYLES,
    bar_axis,
    new_figure,
    numbered,
    step_axis,
    to_png,
)
from kronos_pipeline.evaluation.reports.text_table import price
from kronos_pipeline.evaluation.scoring.calibration import calibrations
from kronos_pipeline.evaluation.scoring.metrics import score

CONTEXT_BARS = 100
"""Maximum number of known bars before a forecast; a fan chart is limited to a multiple of the forecast's bars."""
_CONTEXT_TIMES, _LEAST_CONTEXT = 3, 30
_FAN_BARS = 150
"""Maximum number of forecast bars in a fan chart, which shows the newest cutoffs."""
_FEW_STEPS = 20
_SMALL: dict[str, Any] = {"verticalalignment": "top", "fontsize": 10, "color": "#555555"}


def save_plots(
    layout: ArtifactLayout, bars: pd.DataFrame, predictions: pd.DataFrame, trained: str, notes: Sequence[str]
) -> dict[str, Path]:
    """Draw a ticker's holdout: `plots/<T>.png`, and in `plots/<T>/` a picture of each other kind.

    Args:
        layout: where artifacts lie.
        bars: the ticker's bars, by time; `timestamps` and `close` are read.
        predictions: the ticker's table, see `evaluation.predictions`.
        trained: the model of the fan chart and the reliability plot; without its forecasts the random walk is drawn.
        notes: notes on every plot.

    Returns:
        The files by kind: "holdout", "fan", "steps", "reliability", "calibration".
    """
    ticker = str(predictions["unique_id"].iloc[0])
    model = trained if trained in models_of(predictions) else EWMA
    model_rows = predictions[predictions["model"] == model]
    by_volatility = f"{ticker}: do the intervals of {model} hold when it matters? Holdout"
    pictures = {
        "holdout": forecast_plot(bars, predictions, f"{ticker}: holdout forecasts, each model's mean path", notes),
        "fan": fan_plot(bars, model_rows, f"{ticker}: holdout forecast by {model}, with its intervals", notes),
        "steps": steps_plot(predictions, f"{ticker}: error by bars ahead, holdout", notes),
        "reliability": reliability_plot(model_rows, f"{ticker}: do the intervals of {model} hold? Holdout", notes),
        "calibration": calibration_plot(calibrations(predictions, [model])[model], by_volatility, notes),
    }
    paths = {kind: layout.plot(ticker) if kind == "holdout" else layout.picture(ticker, kind) for kind in pictures}
    for kind, png in pictures.items():
        write_file(paths[kind], lambda handle, png=png: handle.write(png))  # type: ignore[misc]
    return paths


def forecast_plot(bars: pd.DataFrame, predictions: pd.DataFrame, title: str, notes: Sequence[str] = ()) -> bytes:
    """Draw each model's mean path from each cutoff beside the real close, as PNG.

    Args:
        bars: a ticker's bars, by time; `timestamps` and `close` are read.
        predictions: the ticker's table, see `evaluation.predictions`.
        title: the heading.
        notes: notes below the heading.
    """
    stamps = pd.DatetimeIndex(bars["timestamps"])
    position, close = numbered(stamps), bars["close"].to_numpy(np.float64)
    first, last = int(position[predictions["ds"].min()]), int(position[predictions["ds"].max()])
    shown = np.arange(max(0, first - CONTEXT_BARS), last + 1)
    scores = score(predictions)[str(predictions["unique_id"].iloc[0])]

    figure, (axes,) = new_figure(title, notes)
    for cutoff in predictions["cutoff"].unique():
        axes.axvline(int(position[cutoff]), color=FAINT, linewidth=1, zorder=0)
    axes.plot(shown, close[shown], color=INK, linewidth=1.6, label="real close", zorder=2)
    for model in _drawn_models(predictions):
        x, y = _broken_line(predictions[predictions["model"] == model], "mean", position, close)
        axes.plot(x, y, label=f"{model} (MAE {price(scores[model]['mae'])})", zorder=3, **STYLES[model])
    axes.plot([], [], color=FAINT, linewidth=1.5, label="cutoff")
    bar_axis(axes, stamps, shown[0], shown[-1])
    axes.set_ylabel("close (price)")
    return to_png(figure, columns=4)


def fan_plot(bars: pd.DataFrame, forecast: pd.DataFrame, title: str, notes: Sequence[str] = ()) -> bytes:
    """Draw one model's median and central intervals from each cutoff, and the real close as far as it is known, as PNG.

    A small panel below has the probability that each close lies above the close at the cutoff.

    Args:
        bars: a ticker's bars, by time; `timestamps` and `close` are read.
        forecast: the model's rows of a table of predictions or of a forecast of future bars: `cutoff`, `ds`, `median`,
            `lo_` and `hi_` of each level, and `p_up`. The plot shows the newest cutoffs.
        title: the heading.
        notes: notes below the heading.
    """
    forecasts = [rows for _, rows in forecast.groupby("cutoff", sort=True)]
    sizes = np.cumsum([len(rows) for rows in forecasts[::-1]])
    drawn = pd.concat(forecasts[-max(int((sizes <= _FAN_BARS).sum()), 1) :])
    known = pd.DatetimeIndex(bars["timestamps"])
    stamps = known.union(pd.DatetimeIndex(drawn["ds"]))
    position, close = numbered(stamps), bars["close"].to_numpy(np.float64)
    first, last = int(position[drawn["cutoff"].min()]), int(position[drawn["ds"].max()])
    before = min(CONTEXT_BARS, max(_CONTEXT_TIMES * (last - first), _LEAST_CONTEXT))
    shown = np.arange(max(0, first - before), min(last + 1, len(known)))

    figure, (axes, below) = new_figure(title, notes, heights=(5, 1))
    for cutoff in drawn["cutoff"].unique():
        for panel in (axes, below):
            panel.axvline(int(position[cutoff]), color=FAINT, linewidth=1, zorder=0)
    for level, colour in BANDS.items():
        x, low = _broken_line(drawn, f"lo_{level}", position, close)
        _, high = _broken_line(drawn, f"hi_{level}", position, close)
        axes.fill_between(x, low, high, color=colour, linewidth=0, label=f"{level} % interval", zorder=1)
    x, median = _broken_line(drawn, "median", position, close)
    axes.plot(x, median, color=BLUE, linewidth=2.0, label="median forecast", zorder=3)
    axes.plot(shown, close[shown], color=INK, linewidth=1.6, label="real close", zorder=4)
    axes.plot([], [], color=FAINT, linewidth=1.5, label="cutoff")
    x, p_up = _broken_line(drawn, "p_up", position, np.full(len(close), np.nan))
    below.axhline(50, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    below.plot(x, 100 * p_up, color=ORANGE, linewidth=1.6, marker=".")
    below.text(0.005, 0.93, "probability of a close above the close at the cutoff", transform=below.transAxes, **_SMALL)
    below.set_ylim(0, 100)
    below.set_yticks([0, 50, 100])
    below.set_ylabel("P(up) (%)")
    bar_axis(axes, stamps, shown[0], last)
    bar_axis(below, stamps, shown[0], last)
    axes.set_xlabel("")
    axes.tick_params(labelbottom=False)
    axes.set_ylabel("close (price)")
    return to_png(figure, columns=6)


def steps_plot(predictions: pd.DataFrame, title: str, notes: Sequence[str] = ()) -> bytes:
    """Draw each model's error by bars ahead, the mean over tickers and cutoffs, as PNG.

    Errors are scaled: 1 is the mean change from one close to the next. If a ticker has no such scale, they are in price
    units.

    Args:
        predictions: a table, see `evaluation.predictions`, of one ticker or of many.
        title: the heading.
        notes: notes below the heading.
    """
    scaled = bool((predictions["scale"] > 0).all())
    error = (predictions["mean"] - predictions["y"]).abs() / (predictions["scale"] if scaled else 1.0)
    means = error.groupby([predictions["model"], predictions["step"]]).mean()
    cutoffs = predictions.groupby("step")[["unique_id", "cutoff"]].apply(lambda rows: len(rows.drop_duplicates()))

    figure, (axes,) = new_figure(title, notes)
    for model in _drawn_models(predictions):
        steps = means[model]
        dots = "o" if len(steps) < _FEW_STEPS else "none"  # a line through one point shows nothing
        axes.plot(steps.index, steps, marker=dots, markersize=4, label=model, **STYLES[model])
    axes.set_ylim(bottom=0)
    few, many = int(cutoffs.min()), int(cutoffs.max())
    number = count(many, "cutoff") if few == many else f"{few:,} to {count(many, 'cutoff')}"
    step_axis(axes, f"bars ahead of the cutoff (each point: mean over {number})")
    axes.set_ylabel("scaled error (1: mean move of a close)" if scaled else "mean absolute error (price)")
    return to_png(figure, columns=7)


def loss_plot(history: pd.DataFrame, title: str) -> bytes:
    """Draw the losses of a training by step as PNG, the best step marked.

    Args:
        history: `TrainingResult.history`; `step`, `train_loss` and `selection_loss` (nats per token, NaN if not
            evaluated) are read. Step 0 is the untouched model, drawn as a dashed line.
        title: the heading.
    """
    figure, (axes,) = new_figure(title)
    train = history.dropna(subset=["train_loss"])
    selection = history.dropna(subset=["selection_loss"])
    dots = "o" if len(train) < _FEW_STEPS else "none"
    axes.plot(train["step"], train["train_loss"], color=BLUE, linewidth=1.3, marker=dots, label="training loss")
    axes.plot(
        selection["step"], selection["selection_loss"], color=ORANGE, linewidth=1.8, marker="o", label="selection loss"
    )
    untouched, selection = selection[selection["step"] == 0], selection[selection["step"] > 0]
    for loss in untouched["selection_loss"]:
        axes.axhline(loss, color=ORANGE, linewidth=1, linestyle="dashed", label=f"untouched model: {loss:.4g}")
    if len(selection):
        best = selection.iloc[int(selection["selection_loss"].argmin())]
        axes.axvline(best["step"], color=FAINT, linewidth=1, zorder=0)
        label = f"best: {best['selection_loss']:.4g} at step {int(best['step'])}"
        if len(untouched):
            label += f" ({best['selection_loss'] - untouched['selection_loss'].iloc[0]:+.2g})"
        axes.plot(best["step"], best["selection_loss"], "*", markersize=16, color=INK, label=label)
    step_axis(axes, "optimiser step")
    axes.set_ylabel("loss (nats per token)")
    return to_png(figure)


def _drawn_models(predictions: pd.DataFrame) -> list[str]:
    """Return the models with a line of their own; the mean path of a volatility rival is the last close."""
    return [model for model in without_variants(models_of(predictions)) if model not in VOLATILITY_RIVALS]


def _broken_line(
    table: pd.DataFrame, column: str, position: pd.Series, close: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Join the forecasts of a column to one line: each starts at its cutoff's close, with NaN between forecasts."""
    x: list[np.ndarray] = []
    y: list[np.ndarray] = []
    for cutoff, rows in table.groupby("cutoff", sort=True):
        origin = int(position[cutoff])
        x.append(np.array([origin, *position[rows["ds"]], np.nan]))
        y.append(np.array([close[origin], *rows[column], np.nan]))
    return np.concatenate(x), np.concatenate(y)
