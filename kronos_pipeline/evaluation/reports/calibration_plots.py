"""Plots of calibration: coverage and ranks of the intervals, coverage by volatility, and reliability of P(up)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd

from kronos_pipeline.errors import count
from kronos_pipeline.evaluation.predictions import LEVELS
from kronos_pipeline.evaluation.reports.figures import BANDS, BLUE, INK, ORANGE, PAPER, new_figure, to_png
from kronos_pipeline.evaluation.scoring.calibration import TERCILES, binomial_band

_PIT_BINS = 5
"""Few bins, as the rank among some dozen paths has few values."""
_BAND = "#dcdcdc"
_EDGE = 92
"""The percentage from which a dot's number stands on its left, within the panel."""
_LABEL_WIDTH = 55  # letters
_LEVEL_COLOURS = {50: "#56b4e9", 80: BLUE, 90: "#003f66"}


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
    low, high = (100 * end for end in binomial_band(max(total, 1), 1 / _PIT_BINS))
    right.axhspan(low, high, color="#e6e6e6", linewidth=0, zorder=0, label="95 % of chance, were bars independent")
    width = 1 / _PIT_BINS
    right.bar(edges[:-1], 100 * counts / max(total, 1), width, align="edge", color=BANDS[80], edgecolor=PAPER)
    for height, dashes in ((100 * width, (4, 3)), (low, (1, 2)), (high, (1, 2))):
        right.axhline(height, color=INK, linewidth=1, linestyle=(0, dashes))
    right.set_xlim(0, 1)
    right.set_xlabel("rank of the close among the sampled paths (0 to 1)")
    right.set_ylabel(f"share of {count(bars, 'bar')} from {count(cutoffs, 'cutoff')} (percent)")
    return to_png(figure, columns=4)


def calibration_plot(calibration: Mapping[str, Any], title: str, notes: Sequence[str] = ()) -> bytes:
    """Draw the coverage by volatility at the cutoff, and the reliability of P(up), as PNG.

    Bands cover 95 percent of the variation by chance of a calibrated model, see `scoring.calibration`. In the left
    panel the dashes are the levels of the intervals. In the right panel a dot on the diagonal is a probability that
    came true; its number is that of the bars with such a probability.

    Args:
        calibration: the description of one model, see `scoring.calibration.calibrations`.
        title: the heading.
        notes: notes below the heading.
    """
    figure, (left, right) = new_figure(title, notes, panels=2)
    no_terciles = calibration["coverage"][str(LEVELS[0])]["by_volatility"][TERCILES[0]]["reason"]
    groups = ("all",) if no_terciles else ("all", *TERCILES)
    for level in LEVELS:
        shares = [_share(calibration, level, group) for group in groups]
        for x, share in enumerate(shares):
            left.plot([x - 0.38, x + 0.38], [level, level], color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=2.5)
            if share["percent"] is None:
                continue
            offset = x + 0.2 * (LEVELS.index(level) - 1)
            left.plot([offset] * 2, [share["low"], share["high"]], color=_BAND, linewidth=16, solid_capstyle="butt")
            level_dot: dict[str, Any] = {
                "color": _LEVEL_COLOURS[level],
                "marker": "o",
                "markersize": 9,
                "linestyle": "none",
                "clip_on": False,
            }
            left.plot(offset, share["percent"], zorder=3, label=f"{level} % interval" if not x else None, **level_dot)
    left.set_xticks(range(len(groups)), [_group_label(group, calibration) for group in groups])
    left.set_xlim(-0.5, len(groups) - 0.5)
    left.set_ylim(0, 105)
    left.set_xlabel(_no_terciles_text(no_terciles) if no_terciles else "volatility at the cutoff, in thirds")
    left.set_ylabel("closes within the interval (percent)")

    up = calibration["p_up"]
    right.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="as it should be", zorder=2.5)
    bar: dict[str, Any] = {"color": _BAND, "linewidth": 16, "solid_capstyle": "butt"}
    dot: dict[str, Any] = {"color": ORANGE, "marker": "o", "markersize": 9, "linestyle": "none", "clip_on": False}
    for number, entry in enumerate(up["bins"]):
        x, first = entry["p_up"], not number
        right.plot([x, x], [entry["low"], entry["high"]], label="95 % of chance" if first else None, **bar)
        right.plot(x, entry["percent"], zorder=3, label="P(up)" if first else None, **dot)
        label = f"{entry['bars']:,}"
        at_edge = x > _EDGE
        right.annotate(
            label,
            (x, entry["percent"]),
            (-8 if at_edge else 8, 6),
            textcoords="offset points",
            ha="right" if at_edge else "left",
            fontsize=10,
            zorder=4,
        )
    right.set_xlim(0, 100)
    right.set_ylim(0, 105)
    right.set_xlabel("forecast probability of a close above the last (percent)")
    right.set_ylabel("closes above the last (percent)")
    right.set_title(_brier_text(up), loc="left", fontsize=11)
    return to_png(figure, columns=6)


def _share(calibration: Mapping[str, Any], level: int, group: str) -> Mapping[str, Any]:
    """Return the coverage of a level, over all forecasts or over those of a tercile of the volatility."""
    entry = calibration["coverage"][str(level)]
    return cast("Mapping[str, Any]", entry["overall"] if group == "all" else entry["by_volatility"][group])


def _group_label(group: str, calibration: Mapping[str, Any]) -> str:
    """Return a tercile with the number of forecasts that share no bar."""
    return f"{group}\n{count(_share(calibration, LEVELS[0], group)['forecasts'], 'forecast')}"


def _no_terciles_text(reason: str) -> str:
    return textwrap.fill(f"Not divided by volatility: {reason}.", _LABEL_WIDTH)


def _brier_text(up: Mapping[str, Any]) -> str:
    if up["brier"] is None:
        return f"No Brier score: {up['reason']}."
    skill = f"skill {100 * up['skill']:+.1f} %" if up["skill"] is not None else up["reason"]
    return f"Brier score {up['brier']:.3f} (0.250 for always 50 %), {skill}"


def _coverage(forecast: pd.DataFrame, low: str, high: str) -> float:
    """The share of real closes within an interval, in percent; NaN, which is not drawn, where there is none."""
    there = forecast.dropna(subset=[low, high])
    return 100 * float(there["y"].between(there[low], there[high]).mean()) if len(there) else float("nan")
