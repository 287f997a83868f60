"""Fine-tune the Kronos candlestick model on your own CSVs and measure it on days that it has never seen."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["KronosMultiTickerDataset", "KronosPredictor", "KronosTrainer", "KronosTrainingConfig"]

if TYPE_CHECKING:
    from kronos_pipeline.config import KronosTrainingConfig
    from kronos_pipeline.model.predictor.predictor import KronosPredictor
    from kronos_pipeline.training.dataset import KronosMultiTickerDataset
    from kronos_pipeline.training.trainer import KronosTrainer

_HOMES = {
    "KronosTrainingConfig": "kronos_pipeline.config",
    "KronosMultiTickerDataset": "kronos_pipeline.training.dataset",
    "KronosPredictor": "kronos_pipeline.model.predictor.predictor",
    "KronosTrainer": "kronos_pipeline.training.trainer",
}


def __getattr__(name: str) -> Any:
    """Import public names on first use (PEP 562), so that the code location and `--help` load without torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
