"""The windows of a folder of CSVs, for a training from Python."""

from __future__ import annotations

from pathlib import Path

from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.data.ingest import read_folder
from kronos_pipeline.data.windows import WindowSet, build_all_windows
from kronos_pipeline.errors import DataError


def read_windows(config: KronosTrainingConfig) -> tuple[dict[str, WindowSet], dict[str, DataError]]:
    """Read the CSVs of a config's data folder and cut their windows; nothing is written.

    Returns:
        The windows of each fit ticker, and the error of each other ticker.

    Raises:
        DataError: the folder does not exist or has no CSV, or no ticker is fit.
        SettingsError: the settings cannot work for any data.
        ModelError: the base model is unknown.
    """
    bars, errors = read_folder(Path(config.data_dir), config.reading)
    windows, unfit = build_all_windows(list(bars.values()), config)
    errors |= unfit
    if not windows:
        raise DataError([problem for error in errors.values() for problem in error.problems])
    return windows, errors
