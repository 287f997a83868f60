"""Plots of an evaluation: forecasts and real closes, intervals, error by bars ahead, and reliability of the intervals.

All plots share a background, a style per model, a heading with notes and an axis of bars. They use matplotlib's objects
and not pyplot, which keeps global state that threads would share. The background is opaque and light, so that a plot
reads the same on a light and on a dark page. The colours are those of Okabe and Ito, which people with any colour
vision can tell apart.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.special import bdtr

from kronos_pipeline.artifacts import ArtifactLayout, write_file
from kronos_pipeline.errors import count
from kronos_pipeline.evaluation.predictions import (
    ADAPTER,
    BASE,
    CHECKPOINT,
    CHRONOS,
    DRIFT,
    EWMA,
    GARCH,
    GJR_GARCH,
    HAR,
    LEVELS,
    LIGHTGBM,
    NAIVE,
    SEASONAL,
    VOLATILITY_RIVALS,
    models_of,
    without_variants,
)
from kronos_pipeline.evaluation.reports.text_table import price
from kronos_pipeline.evaluation.scoring.metrics import score

INK, FAINT, PAPER, WARNING = "#1a1a1a", "#d0d0d0", "#ffffff", "#a03000"
BLUE, ORANGE = "#0072b2", "#d55e00"
BANDS = {90: "#d3e6f2", 80: "#a6cde4", 50: "#6aabd0"}
"""Colours of the central intervals by level in percent: the narrower, the darker."""
STYLES: dict[str, dict[str, Any]] = {
    NAIVE: {"color": "#7a7a7a", "linestyle": (0, (4, 2)), "linewidth": 1.4},
    DRIFT: {"color": "#7a7a7a", "linestyle": (0, (1, 1.5)), "linewidth": 1.4},
    SEASONAL: {"color": "#b08d57", "linestyle": (0, (5, 1.5, 1, 1.5)), "linewidth": 1.3},
    EWMA: {"color": "#cc79a7", "linestyle": (0, (6, 2)), "linewidth": 1.3},
    GARCH: {"color": "#cc79a7", "linestyle": (0, (3, 1.5)), "linewidth": 1.3},
    GJR_GARCH: {"color": "#cc79a7", "linestyle": (0, (1, 1)), "linewidth": 1.3},
    HAR: {"color": "#cc79a7", "linestyle": (0, (6, 1.5, 1, 1.5)), "linewidth": 1.3},
    LIGHTGBM: {"color": "#e69f00", "linestyle": (0, (5, 1)), "linewidth": 1.4},
    CHRONOS: {"color": "#56b4e9", "linestyle": (0, (5, 1)), "linewidth": 1.4},
    BASE: {"color": BLUE, "linestyle": "solid", "linewidth": 1.6},
    CHECKPOINT: {"color": "#009e73", "linestyle": "solid", "linewidth": 1.9},
    ADAPTER: {"color": ORANGE, "linestyle": "solid", "linewidth": 1.9},
}
_SIZE, _DPI = (12.0, 7.0), 100  # 1200 x 700 pixels
_TITLE_WIDTH, _NOTE_WIDTH = 95, 105  # letters
_TITLE_HEIGHT, _NOTE_HEIGHT = 0.036, 0.031  # of the picture, per line
CONTEXT_BARS = 100
"""Maximum number of known bars before a forecast; a fan chart is limited to a multiple of the forecast's bars."""
_CONTEXT_TIMES, _LEAST_CONTEXT = 3, 30
_FAN_BARS = 150
"""Maximum number of forecast bars in a fan chart, which shows the newest cutoffs."""
_FEW_STEPS = 20
_PIT_BINS = 5
"""Few bins, as the rank among some dozen paths has few values."""


def save_plots(
    layout: ArtifactLayout, bars: pd.DataFrame, predictions: pd.DataFrame, trained: str, notes: Sequence[str]
) -> dict[str, Path]:
    """Draw a ticker's holdout: `plots/<T>.png`, and `plots/<T>/fan.png`, `steps.png` and `reliability.png`.

    Args:
        layout: where artifacts lie.
        bars: the ticker's bars, by time; `timestamps` and `close` are read.
        predictions: the ticker's table, see `evaluation.predictions`.
        trained: the model of the fan chart and the reliability plot; without its forecasts the random walk is drawn.
        notes: notes on every plot.

    Returns:
        The files by kind: "holdout", "fan", "steps", "reliability".
    """
    ticker = str(predictions["unique_id"].iloc[0])
    model = trained if trained in models_of(predictions) else EWMA
    model_rows = predictions[predictions["model"] == model]
    pictures = {
        "holdout": forecast_plot(bars, predictions, f"{ticker}: holdout forecasts, each model's mean path", notes),
        "fan": fan_plot(bars, model_rows, f"{ticker}: holdout forecast by {model}, with its intervals", notes),
        "steps": steps_plot(predictions, f"{ticker}: error by bars ahead, holdout", notes),
        "reliability": reliability_plot(model_rows, f"{ticker}: do the intervals of {model} hold? Holdout", notes),
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

    Args:
        bars: a ticker's bars, by time; `timestamps` and `close` are read.
        forecast: the model's rows of a table of predictions or of a forecast of future bars: `cutoff`, `ds`, `median`,
            and `lo_` and `hi_` of each level. The plot shows the newest cutoffs.
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

    figure, (axes,) = new_figure(title, notes)
    for cutoff in drawn["cutoff"].unique():
        axes.axvline(int(position[cutoff]), color=FAINT, linewidth=1, zorder=0)
    for level, colour in BANDS.items():
        x, low = _broken_line(drawn, f"lo_{level}", position, close)
        _, high = _broken_line(drawn, f"hi_{level}", position, close)
        axes.fill_between(x, low, high, color=colour, linewidth=0, label=f"{level} % interval", zorder=1)
    x, median = _broken_line(drawn, "median", position, close)
    axes.plot(x, median, color=BLUE, linewidth=2.0, label="median forecast", zorder=3)
    axes.plot(shown, close[shown], color=INK, linewidth=1.6, label="real close", zorder=4)
    axes.plot([], [], color=FAINT, linewidth=1.5, label="cutoff")
    bar_axis(axes, stamps, shown[0], last)
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


def reliability_plot(forecast: pd.DataFrame, title: str, notes: Sequence[str] = ()) -> bytes:
    """Draw the coverage of one model's intervals, and the ranks of the real closes among its paths, as PNG.

    The left panel has the share of closes within each interval, before and after recalibration; on the diagonal the
    coverage equals the level. The right panel has the histogram of the probability integral transform, which is flat if
    paths and closes have one distribution; its band covers 95 percent of the random variation of as many independent
    bars. Bars of one forecast are not independent, so their variation is larger.

    Args:
        forecast: a model's rows of a table of predictions.
        title: the heading.
        notes: notes below the heading.
    """
    bars, cutoffs = len(forecast), len(forecast[["unique_id", "cutoff"]].drop_duplicates())
    figure, (left, right) = new_figure(title, notes, panels=2)
    left.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="as it should be")
    for prefix, name, colour, marker in (("raw_", "as sampled", ORANGE, "s"), ("", "recalibrated", BLUE, "o")):
        shares = [_coverage(forecast, f"{prefix}lo_{level}", f"{prefix}hi_{level}") for level in LEVELS]
        left.plot(LEVELS, shares, color=colour, marker=marker, markersize=8, linewidth=1.6, label=name)
    left.set_xlim(0, 100)
    left.set_ylim(0, 102)
    left.set_xlabel("interval's level (percent)")
    left.set_ylabel("closes within it (percent)")

    edges = np.linspace(0, 1, _PIT_BINS + 1)
    counts, _ = np.histogram(forecast["pit"].dropna(), edges)
    total = int(counts.sum())
    chance = bdtr(np.arange(total + 1), total, 1 / _PIT_BINS)  # the binomial distribution of a bin's count
    low, high = 100 * np.searchsorted(chance, (0.025, 0.975)) / max(total, 1)
    right.axhspan(low, high, color="#e6e6e6", linewidth=0, zorder=0, label="95 % of chance, were bars independent")
    width = 1 / _PIT_BINS
    right.bar(edges[:-1], 100 * counts / max(total, 1), width, align="edge", color=BANDS[80], edgecolor=PAPER)
    for height, dashes in ((100 * width, (4, 3)), (low, (1, 2)), (high, (1, 2))):
        right.axhline(height, color=INK, linewidth=1, linestyle=(0, dashes))
    right.set_xlim(0, 1)
    right.set_xlabel("rank of the close among the sampled paths (0 to 1)")
    right.set_ylabel(f"share of {count(bars, 'bar')} from {count(cutoffs, 'cutoff')} (percent)")
    return to_png(figure, columns=4)


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


def _coverage(forecast: pd.DataFrame, low: str, high: str) -> float:
    """The share of real closes within an interval, in percent; NaN, which is not drawn, where there is none."""
    there = forecast.dropna(subset=[low, high])
    return 100 * float(there["y"].between(there[low], there[high]).mean()) if len(there) else float("nan")


def new_figure(title: str, notes: Sequence[str] = (), panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Create a figure with a heading and empty panels side by side.

    Args:
        title: the heading.
        notes: warnings to the reader, each a line of its own below the heading.
        panels: number of panels.
    """
    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    # A folder's or a symbol's name may hold a $, which would start a formula.
    style: dict[str, Any] = {"verticalalignment": "top", "parse_math": False}
    top = 0.975
    for line in textwrap.wrap(title, _TITLE_WIDTH):
        figure.text(0.015, top, line, fontsize=14, color=INK, **style)
        top -= _TITLE_HEIGHT
    for line in (line for note in notes for line in textwrap.wrap(note, _NOTE_WIDTH)):
        figure.text(0.015, top - 0.006, line, fontsize=11.5, fontweight="bold", color=WARNING, **style)
        top -= _NOTE_HEIGHT
    layout = {"w_pad": 0.15, "h_pad": 0.12, "wspace": 0.03, "rect": (0, 0, 1, top - 0.01)}
    figure.get_layout_engine().set(**layout)  # type: ignore[union-attr]
    axes = [figure.add_subplot(1, panels, number + 1, facecolor=PAPER) for number in range(panels)]
    for panel in axes:
        panel.grid(axis="y", color=FAINT, linewidth=0.6, alpha=0.7)
        panel.ticklabel_format(axis="y", useOffset=False)  # a price is read off the axis, without a sum
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=11)
        panel.xaxis.label.set_fontsize(12)
        panel.yaxis.label.set_fontsize(12)
    return figure, axes


def to_png(figure: Figure, columns: int = 5) -> bytes:
    """Return the figure as PNG, 1200 x 700 pixels, with one legend for all panels below."""
    handles = [entry for axes in figure.axes for entry in zip(*axes.get_legend_handles_labels(), strict=True)]
    figure.legend(
        [handle for handle, _ in handles],
        [label for _, label in handles],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=11,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def bar_axis(axes: Axes, stamps: pd.DatetimeIndex, first: int, last: int) -> None:
    """Make bars number `first` to `last` the horizontal axis: nights, weekends and holes take no room."""
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _date(stamps, x)))
    daily = bool((stamps == stamps.normalize()).all())
    axes.set_xlabel("date of the bar" if daily else "time of the bar, as the file has it")


def step_axis(axes: Axes, label: str) -> None:
    """Make whole numbers the horizontal axis."""
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    axes.set_xlabel(label)


def _date(stamps: pd.DatetimeIndex, x: float) -> str:
    """Return the date of bar number `x`, with the time of day if bars are not daily; empty beyond the data."""
    if not 0 <= round(x) < len(stamps):
        return ""
    daily = bool((stamps == stamps.normalize()).all())
    return stamps[round(x)].strftime("%Y-%m-%d" if daily else "%Y-%m-%d\n%H:%M")


def numbered(stamps: pd.DatetimeIndex) -> pd.Series:
    """Return the bar number of each time."""
    return pd.Series(np.arange(len(stamps)), index=stamps)
