"""Fine-tune the Kronos candlestick model on your own CSVs and measure it on days that it has never seen.

From Python, without the command line:

    from kronos_pipeline import KronosTrainer, KronosTrainingConfig, evaluate, forecast

    config = KronosTrainingConfig(data_dir="mydata", model_name="kronos-nano", adapter="lora", epochs=1)
    results = KronosTrainer(config).train()                     # an adapter for each CSV
    print(evaluate(config))                                     # its scores on the last days, which it has not seen
    ahead = forecast(bars, adapter="artifacts/adapters/AAPL")   # the next bars of a DataFrame

`run_pipeline(config)` does all that `kronos train` does: training, evaluation, tracking by MLflow, and promotion.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "KronosMultiTickerDataset",
    "KronosPredictor",
    "KronosTrainer",
    "KronosTrainingConfig",
    "evaluate",
    "forecast",
    "run_pipeline",
]

if TYPE_CHECKING:
    from kronos_pipeline.config import KronosTrainingConfig
    from kronos_pipeline.model.predictor.predictor import KronosPredictor
    from kronos_pipeline.pipeline.evaluate import evaluate
    from kronos_pipeline.pipeline.forecast import forecast
    from kronos_pipeline.pipeline.run import run_pipeline
    from kronos_pipeline.training.dataset import KronosMultiTickerDataset
    from kronos_pipeline.training.trainer import KronosTrainer

_HOMES = {
    "KronosTrainingConfig": "kronos_pipeline.config",
    "KronosMultiTickerDataset": "kronos_pipeline.training.dataset",
    "KronosPredictor": "kronos_pipeline.model.predictor.predictor",
    "KronosTrainer": "kronos_pipeline.training.trainer",
    "evaluate": "kronos_pipeline.pipeline.evaluate",
    "forecast": "kronos_pipeline.pipeline.forecast",
    "run_pipeline": "kronos_pipeline.pipeline.run",
}


def __getattr__(name: str) -> Any:
    """Import public names on first use (PEP 562), so that the code location and `--help` load without torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    hint = "; KronosTrainer(config).train() trains" if name == "train" else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    """List the public names, for completion in a shell."""
    return sorted([*globals(), *__all__])
