"""Pictures of a result: the forecasts beside the truth, and the losses of a training.

Drawn with matplotlib's objects alone: pyplot keeps global state, which threads would share. The background is opaque
and light, so that a picture reads the same on a light and on a dark page. Colours are Okabe and Ito's, which people
with any colour vision can tell apart.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kronos_pipeline.artifacts import ArtifactLayout, write_file
from kronos_pipeline.evaluation.forecasts import NAIVE
from kronos_pipeline.evaluation.metrics import model_columns, score

if TYPE_CHECKING:
    from kronos_pipeline.data.windows import WindowSet

CONTEXT_BARS = 100
_FEW_STEPS = 20
_SIZE, _DPI = (12.0, 7.0), 100  # 1200 x 700 pixels
_INK, _FAINT, _PAPER = "#1a1a1a", "#d0d0d0", "#ffffff"
_STYLES = {
    NAIVE: {"color": "#7a7a7a", "linestyle": (0, (4, 2)), "linewidth": 1.3},
    "base": {"color": "#0072b2", "linestyle": "solid", "linewidth": 1.6},
    "checkpoint": {"color": "#009e73", "linestyle": "solid", "linewidth": 1.8},
    "adapter": {"color": "#d55e00", "linestyle": "solid", "linewidth": 1.8},
}
_OTHER = {"color": "#cc79a7", "linestyle": "solid", "linewidth": 1.6}


def save_forecast_plot(layout: ArtifactLayout, windows: WindowSet, forecasts: pd.DataFrame, label: str) -> Path:
    """Draw a ticker's last bars, its holdout, and what each model forecast from each cutoff, to `plots/<T>.png`.

    Args:
        layout: where artifacts lie.
        windows: the ticker's windows.
        forecasts: the ticker's table, as `forecast_holdout` makes it; prices in the file's unit.
        label: the base model's label, which says so where it is the embedded demo model.
    """
    png = forecast_plot(windows.bars.frame, forecasts, f"{windows.ticker}: holdout forecasts, base model {label}")
    path = layout.plot(windows.ticker)
    write_file(path, lambda handle: handle.write(png))
    return path


def forecast_plot(bars: pd.DataFrame, forecasts: pd.DataFrame, title: str) -> bytes:
    """Draw forecasts beside the truth as PNG, 1200 x 700 pixels.

    The horizontal axis counts bars, so nights, weekends and holes take no room.

    Args:
        bars: a ticker's bars, by time; `timestamps` and `close` are read.
        forecasts: the ticker's table, as `forecast_holdout` makes it.
        title: the heading.
    """
    position = pd.Series(np.arange(len(bars)), index=pd.DatetimeIndex(bars["timestamps"]))
    close = bars["close"].to_numpy(np.float64)
    first, last = int(position[forecasts["ds"].min()]), int(position[forecasts["ds"].max()])
    shown = np.arange(max(0, first - CONTEXT_BARS), last + 1)
    scores = score(forecasts)[str(forecasts["unique_id"].iloc[0])]

    figure, axes = _new_figure(title)
    for cutoff in forecasts["cutoff"].unique():
        axes.axvline(int(position[cutoff]), color=_FAINT, linewidth=1, zorder=0)
    axes.plot(shown, close[shown], color=_INK, linewidth=1.6, label="real close", zorder=2)
    for model in model_columns(forecasts):
        mae = scores[model]["mae"] if model in scores else None
        error = "undefined" if mae is None else f"{mae:.4g}"
        x, y = _broken_line(forecasts, model, position, close)
        axes.plot(x, y, label=f"{model} (MAE {error})", zorder=3, **_STYLES.get(model, _OTHER))  # type: ignore[arg-type]
    axes.plot([], [], color=_FAINT, linewidth=1.5, label="cutoff")
    stamps = pd.DatetimeIndex(bars["timestamps"])
    axes.set_xlim(shown[0] - 0.5, shown[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _date(stamps, x)))
    axes.set_xlabel("trading date")
    axes.set_ylabel("close (price)")
    return _png(figure, axes)


def loss_plot(history: pd.DataFrame, title: str) -> bytes:
    """Draw the losses of a training by step as PNG, 1200 x 700 pixels, the best step marked.

    Args:
        history: `TrainingResult.history`; `step`, `train_loss` and `selection_loss` (nats per token, NaN where not
            evaluated) are read.
        title: the heading.
    """
    figure, axes = _new_figure(title)
    train = history.dropna(subset=["train_loss"])
    selection = history.dropna(subset=["selection_loss"])
    dots = "o" if len(train) < _FEW_STEPS else "none"  # a line through one point shows nothing
    axes.plot(train["step"], train["train_loss"], color="#0072b2", linewidth=1.3, marker=dots, label="training loss")
    axes.plot(
        selection["step"],
        selection["selection_loss"],
        color="#d55e00",
        linewidth=1.8,
        marker="o",
        label="selection loss",
    )
    if len(selection):
        best = selection.iloc[int(selection["selection_loss"].argmin())]
        axes.axvline(best["step"], color=_FAINT, linewidth=1, zorder=0)
        axes.plot(
            best["step"],
            best["selection_loss"],
            linestyle="none",
            marker="*",
            markersize=16,
            color=_INK,
            label=f"best: {best['selection_loss']:.4g} at step {int(best['step'])}",
        )
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss (nats per token)")
    return _png(figure, axes)


def _broken_line(
    forecasts: pd.DataFrame, model: str, position: pd.Series, close: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A model's rolls as one line: each starts at the real close of its cutoff, and NaN parts it from the next."""
    x: list[np.ndarray] = []
    y: list[np.ndarray] = []
    for cutoff, roll in forecasts.groupby("cutoff", sort=True):
        origin = int(position[cutoff])
        x.append(np.array([origin, *position[roll["ds"]], np.nan]))
        y.append(np.array([close[origin], *roll[model], np.nan]))
    return np.concatenate(x), np.concatenate(y)


def _date(stamps: pd.DatetimeIndex, x: float) -> str:
    """The date of bar number `x`, with the time of day where bars are not daily; empty off the data."""
    if not 0 <= round(x) < len(stamps):
        return ""
    daily = (stamps == stamps.normalize()).all()
    return stamps[round(x)].strftime("%Y-%m-%d" if daily else "%Y-%m-%d\n%H:%M")


def _new_figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor=_PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)  # type: ignore[union-attr, call-arg]
    axes = figure.add_subplot(facecolor=_PAPER)
    # A folder's or a symbol's name may hold a $, which would start a formula.
    axes.set_title(title, fontsize=14, color=_INK, loc="left", parse_math=False)
    axes.grid(axis="y", color=_FAINT, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=11)
    axes.xaxis.label.set_fontsize(12)
    axes.yaxis.label.set_fontsize(12)
    return figure, axes


def _png(figure: Figure, axes: Axes) -> bytes:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
