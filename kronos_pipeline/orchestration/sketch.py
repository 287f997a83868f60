"""Line drawings that are small enough for the Dagster UI to show them in place.

The UI shows Markdown of fewer than 1,000 characters in place, and longer Markdown in a dialog. A sketch is an SVG of a
few lines inside such a text; the plots of the evaluation are in dialogs.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import dagster as dg
import numpy as np
from numpy.typing import NDArray

SHOWN_IN_PLACE = 1000
"""Characters from which on the UI hides Markdown behind a link."""
_WIDTH, _HEIGHT = 300, 80
_COLOURS = {"grey": "#888", "blue": "#46f", "orange": "#e80", "green": "#3a5"}
"""Colours that are visible on a light and on a dark page."""
_MOST_POINTS = 60
_SMALLEST_RANGE = 0.01
"""Smallest range of the axis as a share of the values, so that a change of a thousandth does not look steep."""


def sketch(lines: Mapping[str, Any]) -> dict[str, dg.MarkdownMetadataValue]:
    """Return a drawing with its range in words as the metadata entry "sketch", or nothing if there is nothing to draw.

    Args:
        lines: values by label, at most four lines of two or more values, on the same axis.
    """
    values = {label: np.asarray(line, np.float64) for label, line in lines.items()}
    values = {label: line for label, line in values.items() if len(line) > 1 and np.isfinite(line).all()}
    points = min(_MOST_POINTS, max(map(len, values.values()), default=0))
    while points > 1:
        text = _markdown(values, points)
        if len(text) < SHOWN_IN_PLACE:
            return {"sketch": dg.MetadataValue.md(text)}
        points = points * 3 // 4
    return {}


def _markdown(values: Mapping[str, NDArray[np.float64]], points: int) -> str:
    low, high = min(line.min() for line in values.values()), max(line.max() for line in values.values())
    span = max(high - low, _SMALLEST_RANGE * max(abs(low), abs(high)))
    bottom, scale = (low + high - span) / 2, (_HEIGHT - 4) / span if span > 0 else 0.0
    colours = dict(zip(values, _COLOURS.items(), strict=False))
    paths = "".join(
        f"<path stroke='{colours[label][1]}' d='{_path(line, points, bottom, scale)}'/>"
        for label, line in values.items()
    )
    svg = f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{_HEIGHT}' fill='none'>{paths}</svg>"
    legend = ", ".join(f"{colour} {label}" for label, (colour, _) in colours.items())
    legend = f"{legend}; {low:,.5g} to {high:,.5g}"
    return f"![sketch](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})\n\n{legend}"


def _path(line: NDArray[np.float64], points: int, bottom: float, scale: float) -> str:
    """Return an SVG path of relative steps, which take fewer characters than positions."""
    chosen = line[np.linspace(0, len(line) - 1, min(points, len(line))).round().astype(int)]
    x = np.linspace(0, _WIDTH, len(chosen)).round().astype(int)
    y = (_HEIGHT - 2 - (chosen - bottom) * scale).round().astype(int)
    steps = "".join(f"{dx}{dy:+d} " if dy < 0 else f"{dx} {dy} " for dx, dy in zip(np.diff(x), np.diff(y), strict=True))
    return f"M{x[0]} {y[0]}l{steps.rstrip()}"
