"""Check whether a folder of CSVs is fit for training and has enough data; the report of `kronos doctor`.

A ticker is fit if its file has no problem and gives a window in each split. Enough data is a rule of thumb. Adjacent
windows share almost all bars, so the measure is the number of non-overlapping horizons in the training targets: at
least `HORIZONS_PER_TICKER` for an adapter, and `HORIZONS_IN_ALL` over all tickers for a checkpoint. Daily bars should
also cover a year of training, as times are a model input and the model should see every month.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bar_schedule import BarSchedule, find_bar_schedule, interval_name, mixed_intervals
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.data.column_names import column_rows
from kronos_pipeline.data.csv_files import find_csv_files
from kronos_pipeline.data.ingest import read_files
from kronos_pipeline.data.windows import STRADDLING, WindowSet, build_all_windows
from kronos_pipeline.errors import DataError, Problem, count, enumerate_some

HORIZONS_PER_TICKER = 20
HORIZONS_IN_ALL = 100
_COUNTS = ("train", "sel.", "cutoffs")
MANY = 20
"""Largest number of tickers that the report shows one by one."""
_NUMBER = re.compile(r"\d[\d.,:/-]*")
_YEAR = 360
"""Days; a year of trading days may begin and end with holidays."""


@dataclass(frozen=True)
class TickerReport:
    """Report on one ticker.

    Attributes:
        ticker: the symbol, or the file's name if the name is not a symbol.
        bars: the bars, or None for a file with problems.
        interval: the usual time from one bar to the next, such as "1 day"; None without bars.
        windows: the windows, or None for an unfit ticker.
        problems: the reasons that a ticker is not fit; empty for a fit ticker.
        doubts: the reasons that a fit ticker's data is not enough, one sentence each; empty for enough data.
    """

    ticker: str
    bars: Bars | None
    interval: str | None
    windows: WindowSet | None
    problems: tuple[Problem, ...]
    doubts: tuple[str, ...]

    @property
    def fit(self) -> bool:
        """True without problems."""
        return not self.problems

    @property
    def enough(self) -> bool:
        """True if the ticker is fit and has enough data for an adapter of its own."""
        return self.fit and not self.doubts

    @property
    def verdict(self) -> str:
        """The verdict in a word or two."""
        return "enough" if self.enough else "little" if self.fit else "not fit"

    def remarks(self) -> list[str]:
        """Return doubts, notes and windows left out, a line each."""
        excluded = self.windows.excluded if self.windows else {}
        return [
            *(f"not enough: {doubt}" for doubt in self.doubts),
            *(f"note: {note}" for note in (self.bars.notes if self.bars else ())),
            # Any data has windows between two splits, so they are no news.
            *(f"left out: {number}, {reason}" for reason, number in excluded.items() if reason != STRADDLING),
        ]

    @property
    def horizons(self) -> int:
        """The number of non-overlapping horizons in the training targets."""
        if self.windows is None:
            return 0
        rows, bars = self.windows.rows, len(self.windows.bars)
        train = (rows["split"] == "train").to_numpy()
        target_starts = np.bincount(rows["origin"].to_numpy()[train] + 1, minlength=bars + 1)
        target_ends = np.bincount(rows["end"].to_numpy()[train], minlength=bars + 1)
        return int((np.cumsum(target_starts - target_ends) > 0).sum()) // self.windows.horizon


@dataclass(frozen=True)
class FolderReport:
    """Report on a folder.

    Attributes:
        tickers: a report per ticker, sorted by symbol.
        notes: facts about the folder, a sentence each.
    """

    tickers: tuple[TickerReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def fit(self) -> bool:
        """True if every ticker is fit."""
        return all(report.fit for report in self.tickers)

    @property
    def horizons(self) -> int:
        """The number of non-overlapping horizons in all tickers' training targets."""
        return sum(report.horizons for report in self.tickers)

    @property
    def enough_for_checkpoint(self) -> bool:
        """True if the tickers together have enough data for a checkpoint."""
        return self.horizons >= HORIZONS_IN_ALL

    def of(self, symbols: Sequence[str]) -> FolderReport:
        """Return the report on some tickers.

        Raises:
            DataError: the folder lacks a ticker.
        """
        known = {report.ticker: report for report in self.tickers}
        wanted = [symbol if symbol in known else symbol.upper() for symbol in symbols]
        if missing := [symbol for symbol in wanted if symbol not in known]:
            rule = f"no such ticker here; there are: {enumerate_some(list(known), 10)}"
            raise DataError([Problem(symbol, rule) for symbol in missing])
        return FolderReport(tuple(known[symbol] for symbol in dict.fromkeys(wanted)), self.notes)

    def lines(self) -> list[str]:
        """Return the verdict and the folder's notes; then each ticker's problems, doubts and notes, one per line.

        Of more than `MANY` tickers, problems, doubts and notes are summed up by kind.
        """
        fit = sum(report.fit for report in self.tickers)
        enough = sum(report.enough for report in self.tickers)
        checkpoint = "enough" if self.enough_for_checkpoint else f"fewer than the {HORIZONS_IN_ALL} it should have"
        lines = [
            f"{fit} of {len(self.tickers)} tickers are fit for training, {enough} have enough to train an adapter.",
            f"A checkpoint over all has {self.horizons} horizons of training targets end to end: {checkpoint}.",
        ]
        lines += [f"note: {note}" for note in (*self.notes, *self._interval_notes())]
        if len(self.tickers) > MANY:
            return lines + _summed_up(self.tickers)
        for report in self.tickers:
            lines += [f"problem: {line}" for line in str(DataError(report.problems)).splitlines()]
            lines += [f"{report.ticker}: {remark}" for remark in report.remarks()]
        return lines

    def _interval_notes(self) -> list[str]:
        fit = [report.bars for report in self.tickers if report.bars and report.fit]
        mixed = mixed_intervals({bars.ticker: bars.frame["timestamps"].to_numpy() for bars in fit})
        if mixed is None:
            return []
        return [f"bars of different intervals ({mixed}): a checkpoint over them needs --mix-intervals, adapters do not"]


def _summed_up(reports: Sequence[TickerReport]) -> list[str]:
    """Return a line per kind of problem or remark: the number of tickers, and the first of them."""
    tickers: dict[str, list[str]] = {}
    for report in reports:
        problems = [f"problem: {problem.rule}" for problem in report.problems]
        for kind in dict.fromkeys(_kind(remark) for remark in (*problems, *report.remarks())):
            tickers.setdefault(kind, []).append(report.ticker)
    lines = [
        f"{kind}: {count(len(symbols), 'ticker')} ({enumerate_some(symbols, 3)})"
        for kind, symbols in sorted(tickers.items(), key=lambda item: -len(item[1]))
    ]
    return [*lines, f"--ticker {reports[0].ticker} shows a ticker in full."] if lines else []


def _kind(remark: str) -> str:
    """Return a remark without its numbers, and without the details after a second colon."""
    heading, _, text = remark.partition(": ")
    return f"{heading}: {_NUMBER.sub('#', text.partition(': ')[0])}"


def examine_folder(data_dir: Path, recipe: Recipe) -> FolderReport:
    """Read every CSV below a folder, or one CSV, and cut windows as for training.

    Raises:
        DataError: the folder does not exist or has no CSV.
        SettingsError: the settings cannot work for any data.
        ModelError: the base model is unknown.
    """
    folder = find_csv_files(data_dir, recipe.reading)
    bars, errors = read_files(list(folder.files.values()), recipe.reading)
    unfit = {**folder.problems, **errors}
    reports = {name: TickerReport(name, None, None, None, error.problems, ()) for name, error in unfit.items()}
    reports |= examine_tickers(list(bars.values()), recipe)
    return FolderReport(tuple(reports[name] for name in sorted(reports)), folder.notes)


def doctor_table(report: FolderReport) -> Table:
    """Build a table, 80 columns wide: bars, span, interval, windows per split, verdict, with a row per ticker.

    More than `MANY` tickers get a row per verdict and interval, with the range of each number.
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 0, 0, 1))
    grouped = len(report.tickers) > MANY
    for header in ("tickers" if grouped else "ticker", *("bars", "first", "last", "every", *_COUNTS, "to train")):
        number = header in ("tickers", "bars", *_COUNTS)
        table.add_column(header, justify="right" if number else "left", no_wrap=header != "ticker", overflow="fold")
    groups: dict[tuple[str, str], list[TickerReport]] = {}
    for ticker in report.tickers:
        key = (ticker.verdict, ticker.interval or "") if grouped else (ticker.ticker, "")
        groups.setdefault(key, []).append(ticker)
    for tickers in groups.values():
        name = str(len(tickers)) if grouped else tickers[0].ticker
        table.add_row(*(escape(cell) for cell in (name, *_cells(tickers), tickers[0].verdict)))
    return table


def _cells(tickers: Sequence[TickerReport]) -> list[str]:
    """Return bars, first, last, interval and windows per split of tickers, numbers as ranges."""
    cells = ["", "", "", ""]
    bars = [ticker.bars for ticker in tickers if ticker.bars is not None]
    if bars:
        stamps = [ticker_bars.frame["timestamps"] for ticker_bars in bars]
        first, last = min(stamp.iloc[0] for stamp in stamps), max(stamp.iloc[-1] for stamp in stamps)
        length = _range([len(ticker_bars) for ticker_bars in bars])
        days = "%Y-%m-%d" if len(tickers) == 1 else "%Y-%m"
        cells = [length, first.strftime(days), last.strftime(days), tickers[0].interval or ""]
    counts = [list(ticker.windows.counts().values()) for ticker in tickers if ticker.windows]
    return cells + ([_range(list(numbers)) for numbers in zip(*counts, strict=True)] or [""] * len(_COUNTS))


def _range(numbers: Sequence[int]) -> str:
    lowest, highest = min(numbers), max(numbers)
    return str(lowest) if lowest == highest else f"{lowest}-{highest}"


def column_names_table() -> Table:
    """Build a table of the names of columns that are known, with a row per meaning, the better names first."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 0, 0, 1))
    table.add_column("meaning", no_wrap=True)
    table.add_column("names, without case, accents, brackets, dots, spaces and underscores", overflow="fold")
    for meaning, names in column_rows():
        table.add_row(escape(meaning), escape(names))
    return table


def examine_tickers(bars: Sequence[Bars], recipe: Recipe) -> dict[str, TickerReport]:
    """Cut the tickers' windows, and report by symbol whether the data is enough.

    Raises:
        SettingsError: the settings cannot work for any data.
        ModelError: the base model is unknown.
    """
    windows, problems = build_all_windows(bars, recipe)
    return {
        ticker_bars.ticker: _report(ticker_bars, windows.get(ticker_bars.ticker), problems.get(ticker_bars.ticker))
        for ticker_bars in bars
    }


def _report(bars: Bars, windows: WindowSet | None, error: DataError | None) -> TickerReport:
    schedule = find_bar_schedule(bars.frame["timestamps"].to_numpy()) if len(bars) > 1 else None
    interval = interval_name(schedule.interval) if schedule else None
    report = TickerReport(bars.ticker, bars, interval, windows, error.problems if error else (), ())
    if windows is None or schedule is None:
        return report
    return replace(report, doubts=_doubts(report, windows, schedule))


def _doubts(report: TickerReport, windows: WindowSet, schedule: BarSchedule) -> tuple[str, ...]:
    doubts = []
    if report.horizons < HORIZONS_PER_TICKER:
        doubts.append(
            f"training targets hold {report.horizons} horizons end to end, and {HORIZONS_PER_TICKER} are the least to "
            "learn from"
        )
    stamps = windows.bars.frame["timestamps"]
    training_days = (stamps.iloc[windows.selection_start - 1] - stamps.iloc[windows.lookback]).days
    if schedule.daily and training_days < _YEAR:
        doubts.append(f"training covers {training_days} days, less than a year: some months are never seen")
    return tuple(doubts)
