"""Find the CSV of each ticker: the data folder is the list of tickers."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from kronos_pipeline.config import NAME
from kronos_pipeline.data.csv_file import CsvFile as CsvFile
from kronos_pipeline.data.csv_file import printable as printable
from kronos_pipeline.errors import DataError, Problem

_BAD_SYMBOL = (
    "the file's name makes no symbol: use letters, digits and .-_^= only, without a leading dot, 64 at most; rename it"
)


@dataclass(frozen=True)
class CsvFolder:
    """The CSVs of a data folder.

    Attributes:
        root: the folder.
        files: the CSV of each ticker, by symbol, sorted.
        problems: files that belong to no ticker, by symbol, or by file name if the name is not a symbol.
    """

    root: Path
    files: dict[str, CsvFile]
    problems: dict[str, DataError] = field(default_factory=dict)

    def file(self, ticker: str) -> CsvFile:
        """Return the CSV of a ticker.

        Raises:
            DataError: the ticker has no CSV, or more than one.
        """
        if ticker in self.files:
            return self.files[ticker]
        if ticker in self.problems:
            raise self.problems[ticker]
        known = ", ".join(list(self.files)[:10]) + (", ..." if len(self.files) > 10 else "")
        rule = f"no CSV for the ticker {ticker!r} here; there are: {known or 'none'}"
        raise DataError(Problem(printable(self.root), rule), ticker)


def find_csv_files(data_dir: Path) -> CsvFolder:
    """Find every `*.csv` at any depth below a folder; a ticker's symbol is the file's name, upper-case.

    Linked folders are followed. Two files for one symbol are a problem of that symbol only.

    Raises:
        DataError: the folder does not exist, cannot be read, or has no CSV.
    """
    shown = printable(data_dir)
    if not data_dir.exists():
        raise DataError(Problem(shown, "no such folder; say where the CSVs are with --data-dir"))
    if not data_dir.is_dir():
        raise DataError(Problem(shown, "this is a file; give --data-dir the folder that it is in"))
    by_symbol: dict[str, list[Path]] = {}
    problems: dict[str, DataError] = {}
    for path in _csv_paths(data_dir):
        # Check before upper-casing, which turns some other letters into ASCII, such as a sharp s into SS.
        if NAME.fullmatch(path.stem):
            by_symbol.setdefault(path.stem.upper(), []).append(path)
        else:
            problems[printable(path.relative_to(data_dir))] = DataError(Problem(printable(path), _BAD_SYMBOL))
    if not by_symbol and not problems:
        raise DataError(Problem(shown, "no CSV in this folder or below it; put one <TICKER>.csv there per ticker"))
    files = {}
    for symbol, paths in sorted(by_symbol.items()):
        if len(paths) == 1:
            files[symbol] = CsvFile(symbol, paths[0])
            continue
        rule = f"more than one file for the symbol {symbol}; keep one of {', '.join(map(printable, paths))}"
        problems[symbol] = DataError(Problem(printable(paths[1]), rule), symbol)
    return CsvFolder(data_dir, files, problems)


def _csv_paths(data_dir: Path) -> list[Path]:
    paths: list[Path] = []
    visited = set()
    for folder, below, names in os.walk(data_dir, followlinks=True, onerror=_refuse):
        # A link to a parent folder would loop for ever.
        if (real := os.path.realpath(folder)) in visited:
            below.clear()
            continue
        visited.add(real)
        below.sort()
        paths += [Path(folder, name) for name in names if name.lower().endswith(".csv")]
    return sorted(path for path in paths if path.is_file())


def _refuse(error: OSError) -> None:
    folder = printable(Path(error.filename or "."))
    raise DataError(Problem(folder, f"this folder cannot be read ({error.strerror})")) from error
