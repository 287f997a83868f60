"""What `mlflow models serve` runs: bars in, the forecast of the next bars and its quantiles out.

MLflow keeps a copy of this file in each registered model and runs that copy, so it holds only the way from MLflow's
words to this project's functions.
"""

from __future__ import annotations

from pathlib import Path

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

from kronos_pipeline.errors import KronosError
from kronos_pipeline.tracking.serving import ServedForecaster


class ServedModel(PythonModel):
    """A registered adapter or checkpoint as a `pyfunc`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model on its base.

        Raises:
            ModelError: the base model is gone, or is another than the one that it was trained on.
        """
        self._forecaster = ServedForecaster(Path(context.artifacts["model"]), **context.model_config)

    def predict(self, model_input: pd.DataFrame) -> pd.DataFrame:  # type: ignore[override]  # MLflow takes it so
        """The forecast of the bars to come; see `ServedForecaster.forecast`.

        Raises:
            MlflowException: the bars are bad; over HTTP it is a status 400 that says what is wrong with them.
        """
        try:
            return self._forecaster.forecast(model_input)
        except KronosError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error


mlflow.models.set_model(ServedModel())
