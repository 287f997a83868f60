"""The targets that a forecast is judged by: mean, distribution and volatility."""

from __future__ import annotations

from typing import Literal, get_args

Target = Literal["mean", "distribution", "volatility"]
TARGETS: tuple[Target, ...] = get_args(Target)
