"""The result of a training, made without training, for the tests of MLflow's runs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from kronos_pipeline.config import Recipe
from kronos_pipeline.training.publish import TrainingResult
from kronos_pipeline.training.trainer_state import HISTORY

RECIPE = Recipe(model_name="kronos-nano")
ROWS = [[step, 1, 3.0 - step / 10, 3.5, 0.1, 50.0] for step in (1, 2, 3, 4)]
"""A history of four steps, with the columns of `HISTORY`."""
RESULT = TrainingResult(Path("none"), pd.DataFrame(ROWS, columns=list(HISTORY)), {"steps": 4})
