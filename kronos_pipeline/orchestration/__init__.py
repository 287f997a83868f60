"""The pipeline in Dagster: assets, checks, jobs, schedules and a sensor around the functions of the layers below."""
