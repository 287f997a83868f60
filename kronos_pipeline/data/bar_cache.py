"""Cache of parsed CSVs: stored bars replace the reading of a CSV that has not changed.

The key is a hash of the file's name, its bytes, the settings of the reading and the code, stored with the bars. A file
with only a new modification time is unchanged; another version of the code reads every file again, and so does a
damaged store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from kronos_pipeline.checksums import bytes_hash
from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.bars import Bars, csv_key, load_bars
from kronos_pipeline.data.csv_content import read_content
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.csv_table import DEFAULTS
from kronos_pipeline.data.history import KnownBars
from kronos_pipeline.data.ingest import read_files
from kronos_pipeline.errors import ArtifactError, DataError


def read_files_cached(
    files: Sequence[CsvFile],
    stored_at: Callable[[str], Path],
    settings: ReadingSettings = DEFAULTS,
    *,
    accept_history: bool = False,
    now: pd.Timestamp | None = None,
) -> tuple[dict[str, Bars], dict[str, DataError], set[str]]:
    """Read CSVs as `read_files` does, but load the stored bars of unchanged files, and compare changed files with them.

    Args:
        files: the tickers' CSVs.
        stored_at: returns the path of a ticker's stored bars.
        settings: the settings of the reading.
        accept_history: take bars that contradict the stored bars, with a note, instead of refusing the ticker.
        now: the time of reading, with a zone; by default the current time.

    Returns:
        The bars of each valid ticker, the error of each invalid ticker, and the tickers with unchanged files.
    """
    hashes: dict[Path, str] = {}
    stored: dict[str, Bars] = {}
    notes: dict[str, str] = {}
    for file in files:
        path = stored_at(file.ticker)
        if path.exists():
            try:
                stored[file.ticker] = load_bars(path)
            except ArtifactError as error:
                notes[file.ticker] = f"not compared with the bars that were read before: {error}"
    cached = {
        file.ticker: stored[file.ticker]
        for file in files
        if file.ticker in stored and _is_unchanged(file, stored[file.ticker], settings, hashes)
    }
    known = KnownBars(stored, notes, accept_history)
    changed = [file for file in files if file.ticker not in cached]
    read, errors = read_files(changed, settings, known=known, now=now)
    bars_by_ticker = cached | read
    ordered = {file.ticker: bars_by_ticker[file.ticker] for file in files if file.ticker in bars_by_ticker}
    return ordered, errors, set(cached)


def is_current(file: CsvFile, stored: Path, settings: ReadingSettings = DEFAULTS) -> bool:
    """Return whether the stored bars are those of a CSV as it is now, by its contents."""
    try:
        return _is_unchanged(file, load_bars(stored), settings, {})
    except ArtifactError:
        return False


def _is_unchanged(file: CsvFile, bars: Bars, settings: ReadingSettings, hashes: dict[Path, str]) -> bool:
    """Return whether this version of the code read stored bars from these very files.

    Args:
        file: a ticker's CSV.
        bars: the stored bars.
        settings: the settings of the reading.
        hashes: the hash of each CSV so far, to which this one's are added: a CSV may be of many tickers.
    """
    try:
        for part in file.paths:
            if part not in hashes:
                hashes[part] = bytes_hash(read_content(file.part(part)))
    except DataError:
        return False  # reading the CSV reports the error
    return bars.csv_key == csv_key(file, [hashes[part] for part in file.paths], settings)
