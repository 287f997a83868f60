"""Style of all plots: background, a style per model, a heading with notes, and axes of bars and steps.

The plots use matplotlib's objects and not pyplot, which keeps global state that threads would share. The background is
opaque and light, so that a plot reads the same on a light and on a dark page. The colours are those of Okabe and Ito,
which people with any colour vision can tell apart.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from kronos_pipeline.evaluation.predictions import (
    ADAPTER,
    BASE,
    CHECKPOINT,
    CHRONOS,
    DRIFT,
    ENSEMBLE,
    EWMA,
    GARCH,
    GJR_GARCH,
    HAR,
    LIGHTGBM,
    NAIVE,
    SEASONAL,
)

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
    ENSEMBLE: {"color": "#8c564b", "linestyle": "solid", "linewidth": 1.9},
}
_SIZE, _DPI = (12.0, 7.0), 100  # 1200 x 700 pixels
_TITLE_WIDTH, _NOTE_WIDTH = 95, 105  # letters
_TITLE_HEIGHT, _NOTE_HEIGHT = 0.036, 0.031  # of the picture, per line


def new_figure(
    title: str, notes: Sequence[str] = (), panels: int = 1, heights: Sequence[float] = (1,)
) -> tuple[Figure, list[Axes]]:
    """Create a figure with a heading and empty panels, row by row.

    Args:
        title: the heading.
        notes: warnings to the reader, each a line of its own below the heading.
        panels: number of panels side by side.
        heights: relative height of each row of panels.
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
    grid = figure.add_gridspec(len(heights), panels, height_ratios=heights)
    axes = [figure.add_subplot(grid[number], facecolor=PAPER) for number in range(len(heights) * panels)]
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
    """Return the figure as PNG, 1200 x 700 pixels of at most 256 colours, with one legend for all panels below.

    The palette makes the file a third as large: each training leaves ten plots in the output folder and in MLflow.
    """
    handles = [entry for axes in figure.axes for entry in zip(*axes.get_legend_handles_labels(), strict=True)]
    figure.legend(
        [handle for handle, _ in handles],
        [label for _, label in handles],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=11,
    )
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib has no types here
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    buffer = io.BytesIO()
    pixels.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE).save(
        buffer, "png", optimize=True
    )
    return buffer.getvalue()


def bar_axis(axes: Axes, stamps: pd.DatetimeIndex, first: int, last: int) -> None:
    """Make bars number `first` to `last` the horizontal axis: nights, weekends and holes take no room."""
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    daily = bool((stamps == stamps.normalize()).all())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _date(stamps, x, daily)))
    axes.set_xlabel("date of the bar" if daily else "time of the bar, as the file has it")


def step_axis(axes: Axes, label: str) -> None:
    """Make whole numbers the horizontal axis."""
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    axes.set_xlabel(label)


def _date(stamps: pd.DatetimeIndex, x: float, daily: bool) -> str:
    """Return the date of bar number `x`, with the time of day if bars are not daily; empty beyond the data."""
    if not 0 <= round(x) < len(stamps):
        return ""
    return stamps[round(x)].strftime("%Y-%m-%d" if daily else "%Y-%m-%d\n%H:%M")


def numbered(stamps: pd.DatetimeIndex) -> pd.Series:
    """Return the bar number of each time."""
    return pd.Series(np.arange(len(stamps)), index=stamps)
