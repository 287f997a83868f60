"""Pictures of one pixel, for runs that are not about what a picture shows; drawing takes half a second each."""

from __future__ import annotations

from typing import Any


def draw_one_pixel(canvas: Any) -> None:
    """Stand in for `FigureCanvasAgg.draw`."""
    canvas.figure.set_size_inches(1 / canvas.figure.dpi, 1 / canvas.figure.dpi)
    canvas.renderer = canvas.get_renderer()
