"""What rivals cost: the rivals that take more time than the sampling of the model that they are compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from kronos_pipeline.evaluation.predictions import ADAPTER, BASE, BASELINES, CHECKPOINT
from kronos_pipeline.training.progress import duration

WORTH_A_LINE = 10.0
"""Seconds over all tickers from which on the cost of a rival is reported; below, nobody waits for the rival."""


def costly_rivals(seconds: Iterable[Mapping[str, float]], model: str | None = None) -> str | None:
    """Return a line with the rivals that cost more than the model's sampling of the same forecasts, or None.

    Args:
        seconds: wall times by model and rival, a mapping per ticker; fits over all tickers are a mapping of their own.
        model: the model; by default the adapter, the checkpoint or the base model, the first that has forecast.
    """
    total: Counter[str] = Counter()
    for times in seconds:
        total.update(times)
    model = next((name for name in (model, ADAPTER, CHECKPOINT, BASE) if name in total), None)
    if model is None:
        return None
    costly = {
        name: time for name, time in total.items() if name in BASELINES and time > max(total[model], WORTH_A_LINE)
    }
    if not costly:
        return None
    listed = ", ".join(f"{name} {duration(costly[name])}" for name in sorted(costly, key=lambda name: -costly[name]))
    return f"rivals that cost more time than the sampling of the {model} ({duration(total[model])}): {listed}"
