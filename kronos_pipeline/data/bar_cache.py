"""Bars that are stored already: a CSV that has not changed since they were read from it is not read again.

What tells is a hash of the file's name, its bytes and the code, which is stored with the bars: a file that was only
touched is unchanged, and another version of the code reads everything anew, as it does bars that are damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from kronos_pipeline.data.bars import Bars, csv_key, load_bars
from kronos_pipeline.data.csv_files import CsvFile
from kronos_pipeline.data.csv_table import read_content
from kronos_pipeline.data.ingest import read_files
from kronos_pipeline.errors import ArtifactError, DataError


def read_files_cached(
    files: Sequence[CsvFile], stored_at: Callable[[str], Path], *, now: pd.Timestamp | None = None
) -> tuple[dict[str, Bars], dict[str, DataError], set[str]]:
    """`read_files`, but of the files that have not changed the stored bars are loaded.

    Args:
        files: the tickers' CSVs.
        stored_at: where a ticker's bars are stored, by symbol.
        now: the moment of reading, with a zone; by default the clock's.

    Returns:
        The good tickers' bars, what is wrong with each bad one, and the tickers whose files have not changed.
    """
    stored = {file.ticker: one for file in files if (one := load_cached_bars(file, stored_at(file.ticker))) is not None}
    read, bad = read_files([file for file in files if file.ticker not in stored], now=now)
    good = stored | read
    return {file.ticker: good[file.ticker] for file in files if file.ticker in good}, bad, set(stored)


def load_cached_bars(file: CsvFile, path: Path) -> Bars | None:
    """The bars stored at `path`, where they were read from this very file by this version of the code; else None."""
    if not path.exists():
        return None
    try:
        bars = load_bars(path)
        return bars if bars.csv_key == csv_key(file.name, read_content(file)) else None
    except (ArtifactError, DataError):
        return None  # reading the CSV mends it, or says what is wrong
