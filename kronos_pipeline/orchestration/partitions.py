"""Tickers as partitions: the data folder is the list, read when the code location loads.

Partitions are static, so that a run of several tickers is one contiguous range of them. A symbol that comes later is
seen when the code location is loaded again; the sensor names it until then.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import dagster as dg

from kronos_pipeline.data.csv_files import find_csv_files
from kronos_pipeline.errors import DataError

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"


def find_tickers(data_dir: Path) -> list[str]:
    """The symbols in the data folder, sorted.

    Where there is none, the code location still loads, without tickers, and a warning says why: a folder that is filled
    later needs a reload and no restart.
    """
    try:
        folder = find_csv_files(data_dir)
    except DataError as error:
        warnings.warn(f"There are no tickers: {error}. Reload the code location when there are.", stacklevel=2)
        return []
    for problem in folder.problems.values():
        warnings.warn(f"{problem}. It is no partition.", stacklevel=2)
    return list(folder.files)


def split_into_runs(wanted: Iterable[str], tickers: Sequence[str], per_run: int) -> list[Mapping[str, str]]:
    """Tags of the runs that cover the wanted tickers, each a contiguous range of at most `per_run`.

    Args:
        wanted: tickers to run.
        tickers: all partitions, in their order; others than these are left out.
        per_run: tickers in one run, at most.
    """
    wanted = set(wanted)
    ranges: list[list[str]] = []
    for before, ticker in zip([None, *tickers], tickers, strict=False):
        if ticker not in wanted:
            continue
        if ranges and ranges[-1][-1] == before and len(ranges[-1]) < per_run:
            ranges[-1].append(ticker)
        else:
            ranges.append([ticker])
    return [{RANGE_START: one[0], RANGE_END: one[-1]} for one in ranges]


def ticker_partitions(tickers: Sequence[str]) -> dg.StaticPartitionsDefinition:
    """One partition per ticker."""
    return dg.StaticPartitionsDefinition(list(tickers))


def tickers_tested(context: dg.AssetExecutionContext) -> int:
    """How many tickers a verdict is corrected for: all of the code location, whichever of them this run covers."""
    partitions = context.assets_def.partitions_def
    return len(partitions.get_partition_keys()) if partitions else 1
