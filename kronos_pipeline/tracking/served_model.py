"""The model code that `mlflow models serve` runs: bars in, the forecast of the next bars and its quantiles out.

MLflow copies this file into each registered model and runs the copy, so the file only maps MLflow's interface to this
project's functions.
"""

from __future__ import annotations

from pathlib import Path

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from kronos_pipeline.errors import KronosError
from kronos_pipeline.tracking.serving import ServedForecaster


class ServedModel(PythonModel):
    """A registered adapter or checkpoint as a `pyfunc`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model on its base.

        Raises:
            ModelError: the base model is missing, or differs from the base model of the training.
        """
        self._forecaster = ServedForecaster(Path(context.artifacts["model"]), **context.model_config)

    def predict(self, model_input: pd.DataFrame) -> pd.DataFrame:  # type: ignore[override]  # MLflow takes it so
        """Forecast the next bars; see `ServedForecaster.forecast`.

        Raises:
            MlflowException: the bars are invalid; over HTTP, a status 400 with the errors of the bars.
        """
        try:
            return self._forecaster.forecast(model_input)
        except KronosError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error


mlflow.models.set_model(ServedModel())
