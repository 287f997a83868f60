"""Cache of parsed CSVs: stored bars replace the reading of a CSV that has not changed.

The key is a hash of the file's name, its bytes, the settings of the reading and the code, stored with the bars. A file
with only a new modification time is unchanged; another version of the code reads every file again, and so does a
damaged store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from kronos_pipeline.artifacts import bytes_hash
from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.bars import Bars, csv_key, load_bars
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.csv_table import DEFAULTS, read_content
from kronos_pipeline.data.ingest import read_files
from kronos_pipeline.errors import ArtifactError, DataError


def read_files_cached(
    files: Sequence[CsvFile],
    stored_at: Callable[[str], Path],
    settings: ReadingSettings = DEFAULTS,
    *,
    now: pd.Timestamp | None = None,
) -> tuple[dict[str, Bars], dict[str, DataError], set[str]]:
    """Read CSVs as `read_files` does, but load the stored bars of unchanged files.

    Args:
        files: the tickers' CSVs.
        stored_at: returns the path of a ticker's stored bars.
        settings: the settings of the reading.
        now: the time of reading, with a zone; by default the current time.

    Returns:
        The bars of each valid ticker, the error of each invalid ticker, and the tickers with unchanged files.
    """
    hashes: dict[Path, str] = {}
    stored = {file.ticker: _load_unchanged(file, stored_at(file.ticker), settings, hashes) for file in files}
    cached = {ticker: bars for ticker, bars in stored.items() if bars is not None}
    read, errors = read_files([file for file in files if file.ticker not in cached], settings, now=now)
    bars_by_ticker = cached | read
    ordered = {file.ticker: bars_by_ticker[file.ticker] for file in files if file.ticker in bars_by_ticker}
    return ordered, errors, set(cached)


def is_current(file: CsvFile, stored: Path, settings: ReadingSettings = DEFAULTS) -> bool:
    """Return whether the stored bars are those of a CSV as it is now, by its contents."""
    return _load_unchanged(file, stored, settings, {}) is not None


def _load_unchanged(file: CsvFile, path: Path, settings: ReadingSettings, hashes: dict[Path, str]) -> Bars | None:
    """Return the bars stored at `path` if this version of the code read them from these very files, else None.

    Args:
        file: a ticker's CSV.
        path: the stored bars.
        settings: the settings of the reading.
        hashes: the hash of each CSV so far, to which this one's are added: a CSV may be of many tickers.
    """
    if not path.exists():
        return None
    try:
        bars = load_bars(path)
        for part in file.paths:
            if part not in hashes:
                hashes[part] = bytes_hash(read_content(file.part(part)))
        contents = [hashes[part] for part in file.paths]
        return bars if bars.csv_key == csv_key(file, contents, settings) else None
    except (ArtifactError, DataError):
        return None  # reading the CSV replaces it or reports the error
