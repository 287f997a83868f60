"""Tickers as partitions: the symbols of the data folder when the code location loads.

Partitions are static, so that a run of several tickers is one contiguous range. A new symbol becomes a partition when
the code location is reloaded; until then the sensor `changed_csvs` names it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import dagster as dg

from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.csv_files import find_csv_files
from kronos_pipeline.errors import KronosError

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"


def find_tickers(data_dir: Path, reading: Callable[[], ReadingSettings] = ReadingSettings) -> list[str]:
    """Return the symbols of the data folder, sorted.

    Without any CSV, or with invalid settings, the code location loads without tickers, and a warning gives the reason.
    After the correction, a reload suffices.

    Args:
        data_dir: the folder with the CSVs, or the only CSV.
        reading: returns the settings of the reading.
    """
    try:
        folder = find_csv_files(data_dir, reading())
    except KronosError as error:
        warnings.warn(f"There are no tickers: {error}. Correct this and reload the code location.", stacklevel=2)
        return []
    for note in folder.notes:
        warnings.warn(f"{note}.", stacklevel=2)
    for problem in folder.problems.values():
        warnings.warn(f"{problem}. The file gets no partition.", stacklevel=2)
    return list(folder.files)


def split_into_runs(selected: Iterable[str], tickers: Sequence[str], per_run: int) -> list[Mapping[str, str]]:
    """Return the tags of the runs that cover some tickers, each a contiguous range of at most `per_run`.

    Args:
        selected: tickers to run; symbols that are no partition are left out.
        tickers: all partitions, in their order.
        per_run: the largest number of tickers in a run.
    """
    chosen = set(selected)
    ranges: list[list[str]] = []
    for before, ticker in zip([None, *tickers], tickers, strict=False):
        if ticker not in chosen:
            continue
        if ranges and ranges[-1][-1] == before and len(ranges[-1]) < per_run:
            ranges[-1].append(ticker)
        else:
            ranges.append([ticker])
    return [{RANGE_START: tickers_of_run[0], RANGE_END: tickers_of_run[-1]} for tickers_of_run in ranges]


def ticker_partitions(tickers: Sequence[str]) -> dg.StaticPartitionsDefinition:
    """Return the partitions, a ticker each."""
    return dg.StaticPartitionsDefinition(list(tickers))


def tickers_tested(context: dg.AssetExecutionContext) -> int:
    """Return the number of tickers that a verdict is corrected for: all of the code location, not only the run's."""
    partitions = context.assets_def.partitions_def
    return len(partitions.get_partition_keys()) if partitions else 1
