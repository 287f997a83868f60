"""Pictures inside the metadata of materialisations."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw

from kronos_pipeline.evaluation.predictions import ADAPTER, BASE, CHECKPOINT
from kronos_pipeline.evaluation.reports.figures import STYLES
from kronos_pipeline.orchestration.metadata import inline_image


def test_the_ui_shows_each_model_in_its_own_colour() -> None:
    picture = Image.new("RGB", (1200, 700), "white")
    # Shades, as the letters and edges of a plot have them, compete for the few colours of the smaller picture.
    for shade in range(256):
        ImageDraw.Draw(picture).rectangle((4 * shade, 100, 4 * shade + 4, 300), fill=(shade, shade, shade))
    colours = {
        model: tuple(round(255 * part) for part in to_rgb(STYLES[model]["color"]))
        for model in (BASE, CHECKPOINT, ADAPTER)
    }
    for number, colour in enumerate(colours.values()):
        ImageDraw.Draw(picture).line((0, 400 + 50 * number, 1200, 400 + 50 * number), fill=colour, width=2)
    png = io.BytesIO()
    picture.save(png, "PNG")

    text = str(inline_image(png.getvalue(), "lines").value)
    with Image.open(io.BytesIO(base64.b64decode(text.split("base64,")[1].rstrip(")")))) as shown:
        column = np.asarray(shown.convert("RGB"), int)[:, 10]
    for number, colour in enumerate(colours.values()):
        y = round((400 + 50 * number) * len(column) / 700)
        assert np.abs(column[y - 1 : y + 2] - colour).sum(axis=1).min() < 120, (number, colour)
