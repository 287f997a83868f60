"""Find the tickers of a data folder: which files, and which rows of a file of several tickers, are whose bars."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from kronos_pipeline.checksums import file_hash
from kronos_pipeline.config import ReadingSettings
from kronos_pipeline.data.csv_file import CsvFile, printable
from kronos_pipeline.data.csv_symbols import symbols_of
from kronos_pipeline.data.csv_table import DEFAULTS
from kronos_pipeline.data.data_folder import FolderFiles, find_files, first_lines
from kronos_pipeline.data.file_names import FileName, is_period, read_file_name
from kronos_pipeline.errors import DataError, Problem, count, enumerate_some, printable_text
from kronos_pipeline.names import NAME, NAME_RULE

_SUFFIXES = (".csv.txt", ".csv.csv", ".csv", ".tsv", ".txt")
_NO_TEXT = re.compile(
    r"\.(xls[xm]?|ods|numbers|parquet|feather|arrow|h(df)?5|pkl|jsonl?|xml|zip|gz|bz2|xz|zst|7z|rar|tar|db)"
)

_YEAR = re.compile(r"(?:19|20)\d\d")
_LETTERS = re.compile(r"[\W_]+")

_Item = TypeVar("_Item")
_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class CsvFolder:
    """The CSVs of a data folder.

    Attributes:
        root: the folder, or the only file.
        files: the CSV of each ticker, by symbol, sorted.
        problems: files that belong to no ticker, by symbol, or by file name if the name is not a symbol.
        notes: facts about the folder, a sentence each: files that are not read, tickers that share a symbol.
        vanished: tickers that a file held when it was read before, and holds no longer; see `find_vanished`.
    """

    root: Path
    files: dict[str, CsvFile]
    problems: dict[str, DataError] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    vanished: dict[str, DataError] = field(default_factory=dict)

    def file(self, ticker: str) -> CsvFile:
        """Return the CSV of a ticker.

        Raises:
            DataError: the ticker has no CSV, or more than one.
        """
        if ticker in self.files:
            return self.files[ticker]
        for problems in (self.problems, self.vanished):
            if ticker in problems:
                raise problems[ticker]
        known = ", ".join(list(self.files)[:10]) + (", ..." if len(self.files) > 10 else "")
        rule = f"no CSV for the ticker {ticker!r} here; there are: {known or 'none'}"
        raise DataError(Problem(printable(self.root), rule), ticker)


@dataclass(frozen=True)
class _Named:
    """A file and its name."""

    path: Path
    name: FileName


def find_csv_files(data_dir: Path, settings: ReadingSettings = DEFAULTS) -> CsvFolder:
    """Find the CSVs of every ticker in a folder, at any depth, or in one file.

    A file's symbol is its name, upper-case, or the only symbol in its name. Files of a month, a day or another period
    of one symbol are one ticker. A file with a column of several symbols has a ticker for each. Two files for one
    symbol are a problem of that symbol only, and so is a link that leads out of the folder.

    Args:
        data_dir: a folder, or one file.
        settings: the settings of the reading, for the name of the column of symbols.

    Raises:
        DataError: the folder does not exist, cannot be read, or has no CSV.
    """
    shown = printable(data_dir)
    if not data_dir.exists():
        raise DataError(Problem(shown, "no such folder; say where the CSVs are with --data-dir"))
    found = FolderFiles([data_dir]) if data_dir.is_file() else find_files(data_dir)
    if data_dir.is_file() and _NO_TEXT.fullmatch(data_dir.suffix.lower()):
        raise DataError(Problem(shown, f"a {data_dir.suffix.lower()} file is not read; save the table as CSV"))
    notes = [_others_note(found.others)] if found.others else []
    for kind, folders in (("hidden folders", found.hidden), ("folders outside, behind links,", found.outside)):
        if folders:
            notes.append(f"{kind} are not searched: {enumerate_some([printable(path) for path in folders])}")
    if not found.csvs and not found.refused:
        unread = f" ({'; '.join(notes)})" if notes else ""
        rule = f"no CSV in this folder or below it; put one <TICKER>.csv there per ticker{unread}"
        raise DataError(Problem(shown, rule))
    named: list[_Named] = []
    files: list[CsvFile] = []
    problems: dict[str, DataError] = {}
    for path, rule in found.refused.items():
        ticker = _stem(path).upper()
        key = ticker if NAME.fullmatch(ticker) else printable(path.relative_to(data_dir))
        problems[key] = DataError(Problem(printable(path), rule), key)
    for entry in _read_names(found.csvs):
        if entry.name.symbol is not None:
            named.append(entry)
            continue
        key = printable(entry.path.relative_to(data_dir)) if data_dir.is_dir() else printable(Path(entry.path.name))
        candidate = CsvFile(key, entry.path)
        cells = _symbols(entry.path, settings)
        if any(cells):
            files += _tickers(candidate, {entry.path: cells}, problems)
        else:
            problems[key] = DataError(Problem(printable(entry.path), _unclear(entry.name)))
    for file in _join_parts(named, problems):
        symbols = {path: _symbols(path, settings) for path in file.paths}
        several = {cell for cells in symbols.values() for cell in cells if cell}
        files += _tickers(file, symbols, problems) if len(several) > 1 else [_with_symbol_note(file, several)]
    joined_files = {}
    for ticker, same in _group(files, lambda file: file.ticker).items():
        if ticker in problems:
            continue
        joined = same[0] if len(same) == 1 else _join_dates(same)
        if joined is None:
            problems[ticker] = _several(ticker, [path for file in same for path in file.paths])
        else:
            joined_files[ticker] = joined
    return CsvFolder(
        data_dir, dict(sorted(joined_files.items())), problems, (*notes, *_interval_notes(named, joined_files))
    )


def _read_names(paths: Sequence[Path]) -> list[_Named]:
    """Read the name of each file; the copy of a file belongs to the ticker of that file."""
    named = [_Named(path, read_file_name(_stem(path))) for path in paths]
    years = _group([entry for entry in named if _YEAR.fullmatch(entry.name.stem)], lambda entry: entry.path.parent)
    for same in years.values():
        # A stock may have the number 2023, but not one that is the year of its bars beside another such.
        if len(same) > 1 and all(entry.name.stem in "".join(first_lines(entry.path)[:3]) for entry in same):
            parts = {entry.path for entry in same}
            named = [
                replace(entry, name=FileName(entry.name.stem, (), None, entry.name.stem))
                if entry.path in parts
                else entry
                for entry in named
            ]
    literal = {entry.name.stem.upper() for entry in named if entry.name.literal}
    return [
        replace(entry, name=FileName(entry.name.stem, (entry.name.stem.upper(),), literal=True))
        if not entry.name.literal and entry.name.stem.upper() in literal
        else entry
        for entry in named
    ]


def _stem(path: Path) -> str:
    suffix = next((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), path.suffix)
    return path.name[: len(path.name) - len(suffix)]


def _join_parts(named: Sequence[_Named], problems: dict[str, DataError]) -> list[CsvFile]:
    """Return the CSVs of each ticker; files of one symbol that are no parts of it become a problem."""
    intervals = {
        symbol: {entry.name.split[1] for entry in same} - {None}
        for symbol, same in _group(named, lambda entry: entry.name.split[0]).items()
    }
    literal = {entry.name.split: entry.name.candidates[0] for entry in named if entry.name.literal}

    def ticker_of(entry: _Named) -> str:
        name = entry.name
        symbol = name.candidates[0]
        if not name.literal and name.split in literal:
            return literal[name.split]
        if name.literal or name.interval is None or len(intervals[name.split[0]]) < 2:
            return symbol
        return f"{symbol}{'-' if f'-{name.interval}' in name.stem else '_'}{name.interval.upper()}"

    files = []
    for ticker, same in _group(named, ticker_of).items():
        if not NAME.fullmatch(ticker):
            problems[ticker] = DataError(Problem(printable(same[0].path), _unclear(same[0].name)), ticker)
            continue
        distinct = _without_copies(same)
        paths = [
            entry.path for entry in sorted(distinct, key=lambda entry: (_digits(entry.name.period or ""), entry.path))
        ]
        parts = all(entry.name.period for entry in distinct) and len({entry.name.series for entry in distinct}) == 1
        if len(distinct) > 1 and not parts:
            problems[ticker] = _several(ticker, paths)
            continue
        files.append(CsvFile(ticker, paths[0], tuple(paths[1:]), None, tuple(_name_notes(ticker, same, distinct))))
    return files


def _join_dates(files: Sequence[CsvFile]) -> CsvFile | None:
    """Join files that each have the tickers of a date, by their names, such as 2023-11-05.csv; None for other files."""
    paths = sorted((path for file in files for path in file.paths), key=lambda path: _digits(_stem(path)))
    if (
        len({file.symbol for file in files}) > 1
        or files[0].symbol is None
        or not all(map(is_period, map(_stem, paths)))
    ):
        return None
    names = enumerate_some([printable(Path(path.name)) for path in paths])
    note = f"{len(paths)} files are the parts of {files[0].ticker}, as their names say: {names}"
    return replace(files[0], path=paths[0], further=tuple(paths[1:]), notes=(*files[0].notes, note))


def _name_notes(ticker: str, entries: Sequence[_Named], distinct: Sequence[_Named]) -> list[str]:
    notes = []
    if len(distinct) > 1:
        names = enumerate_some([printable(Path(entry.path.name)) for entry in distinct])
        notes.append(f"{len(distinct)} files are the parts of {ticker}, as their names say: {names}")
    elif distinct[0].name.period:
        notes.append(
            f"the name {printable(Path(distinct[0].path.name))} is read as {ticker}, {distinct[0].name.period}"
        )
    elif distinct[0].path.name.upper() != ticker + distinct[0].path.suffix.upper():
        notes.append(f"the name {printable(Path(distinct[0].path.name))} is read as {ticker}")
    kept_paths = {entry.path for entry in distinct}
    copies = [printable(Path(entry.path.name)) for entry in entries if entry.path not in kept_paths]
    if copies:
        notes.append(f"copies to the byte, left out: {enumerate_some(copies)}")
    return notes


def _without_copies(same: Sequence[_Named]) -> list[_Named]:
    """Leave out files that are the same to the byte as another file of the same period."""
    if len(same) == 1:
        return list(same)
    distinct: list[_Named] = []
    for _, group in sorted(_group(same, lambda entry: (entry.name.period or "", entry.path.stat().st_size)).items()):
        first: dict[str, _Named] = {}
        for entry in sorted(group, key=lambda entry: len(entry.path.name)):
            content = file_hash(entry.path) if len(group) > 1 and entry.path.stat().st_size else str(entry.path)
            first.setdefault(content, entry)
        distinct += first.values()
    return distinct


def _tickers(file: CsvFile, symbols: Mapping[Path, Sequence[str]], problems: dict[str, DataError]) -> list[CsvFile]:
    """Return a CSV for each symbol of a file of several tickers; a symbol that makes no ticker becomes a problem.

    Args:
        file: the file, or the parts of it.
        symbols: the cells of the column of symbols in each part.
        problems: receives the problems, by ticker or by file and cell.
    """
    cells = list(dict.fromkeys(cell for path in file.paths for cell in symbols.get(path, ())))
    cells_by_path = {path: frozenset(symbols.get(path, ())) for path in file.paths}
    by_ticker = _group(cells, _ticker_of_cell)
    files = []
    for ticker, same in by_ticker.items():
        if not ticker:
            key = f"{file.ticker}: no symbol"
            problems[key] = DataError(Problem(file.name, "no symbol in some lines; write one into each line"), key)
        elif not NAME.fullmatch(ticker):
            key = printable_text(f"{file.ticker}: {ticker}")
            rule = f"the symbol {same[0]!r} of some lines makes no ticker: use {NAME_RULE}"
            problems[key] = DataError(Problem(file.name, rule), key)
        elif len(same) > 1:
            rule = f"{enumerate_some([repr(cell) for cell in same])} are one ticker, {ticker}; write them alike"
            problems[ticker] = DataError(Problem(file.name, rule), ticker)
        else:
            paths = [path for path in file.paths if same[0] in cells_by_path[path]]
            spelling = "" if same[0].upper() == ticker else f", written {same[0]}"
            note = f"one of {count(len(cells), 'ticker')} in its file, by the column of symbols{spelling}"
            files.append(CsvFile(ticker, paths[0], tuple(paths[1:]), same[0], (*file.notes, note)))
    return files


def _ticker_of_cell(cell: str) -> str:
    """Return the ticker of a symbol, upper-case: ZZUSD of ZZ/USD, ZZS of BATS:ZZS; it may be invalid."""
    text = cell.strip()
    if not text.isascii():
        return text
    text = text.upper()
    if pair := re.fullmatch(r"([A-Z0-9]{2,10})[/ ]([A-Z]{3,5})", text):
        return pair[1] + pair[2]
    if exchange_symbol := re.fullmatch(r"[A-Z]+:(\S+)", text):
        return exchange_symbol[1]
    return text.removeprefix("$")


def _symbols(path: Path, settings: ReadingSettings) -> Sequence[str]:
    """Return the distinct cells of a file's column of symbols, as `symbols_of` does."""
    try:
        state = path.stat()
    except OSError:
        return ()  # reading the file reports it
    return _symbols_of_state(path, state.st_size, state.st_mtime_ns, tuple(settings.columns))


@lru_cache(1 << 16)
def _symbols_of_state(path: Path, size: int, changed: int, columns: tuple[str, ...]) -> Sequence[str]:  # noqa: ARG001
    """Remember the symbols of an unchanged file for the next look at its folder; a sensor looks every minute."""
    return symbols_of(CsvFile(path.stem, path), ReadingSettings(columns=list(columns)))


def _with_symbol_note(file: CsvFile, cells: set[str]) -> CsvFile:
    """Add a note to a file whose column of symbols has another symbol than its name."""
    other = [cell for cell in cells if _LETTERS.sub("", cell).upper() != _LETTERS.sub("", file.ticker)]
    if not other:
        return file
    note = f"the ticker is {file.ticker}, by the file's name, and not {other[0]}, as its column of symbols says"
    return replace(file, notes=(*file.notes, note))


def _several(ticker: str, paths: Sequence[Path]) -> DataError:
    rule = f"more than one file for the symbol {ticker}; keep one of {', '.join(map(printable, paths))}"
    return DataError(Problem(printable(paths[1]), rule), ticker)


def _unclear(name: FileName) -> str:
    detail = ""
    if len(name.candidates) > 1:
        detail = f" but may hold several ({enumerate_some([printable(Path(word)) for word in name.candidates])})"
    if name.period and not name.candidates:
        return f"the file's name is a period and no symbol: name it SYMBOL-{name.period}, {NAME_RULE}"
    return f"the file's name makes no symbol{detail}: rename it to the symbol alone, {NAME_RULE}"


def _interval_notes(named: Sequence[_Named], files: dict[str, CsvFile]) -> list[str]:
    """Return a note for each symbol with bars of several intervals, each of which is a ticker."""
    symbols = {entry.path: entry.name.split[0] for entry in named}
    tickers = _group(
        [file for file in files.values() if file.path in symbols and file.symbol is None],
        lambda file: symbols[file.path],
    )
    return [
        f"{enumerate_some([file.ticker for file in same])} look like intervals of one symbol, {symbol}: each is a "
        "ticker of its own"
        for symbol, same in tickers.items()
        if len(same) > 1
    ]


def _others_note(others: Sequence[Path]) -> str:
    kinds = Counter(path.suffix.lower() or "without a suffix" for path in others)
    kinds_text = enumerate_some([f"{number} {kind}" for kind, number in sorted(kinds.items())])
    return f"{count(len(others), 'other file')} not read: {kinds_text}; save a table as CSV"


def _digits(period: str) -> str:
    return re.sub(r"\D", "", period)


def _group(items: Iterable[_Item], key: Callable[[_Item], _Key]) -> dict[_Key, list[_Item]]:
    groups: dict[_Key, list[_Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
