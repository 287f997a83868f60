-- Run once by the image of PostgreSQL, when its volume is empty: MLflow's registry lies beside Dagster's storage.
CREATE DATABASE mlflow;
