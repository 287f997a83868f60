"""The pipeline in Dagster: assets, checks, jobs, schedules and sensors that call the functions of lower layers."""
