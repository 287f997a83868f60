"""Is a folder of CSVs fit for training, and is it enough? What `kronos doctor` tells.

Fit: the ticker's file has no problem and gives a window in each split. Enough is a rule of thumb: neighbouring windows
share almost all of their bars, so what counts is how often the training targets could be laid end to end. An adapter
wants `HORIZONS_PER_TICKER` such stretches of one ticker, a checkpoint `HORIZONS_IN_ALL` over all tickers; daily bars
should cover a year of training besides, or the model never sees some months, and times are an input of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bar_schedule import BarSchedule, find_bar_schedule
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.data.ingest import read_folder
from kronos_pipeline.data.windows import STRADDLING, WindowSet, build_all_windows
from kronos_pipeline.errors import DataError, Problem

HORIZONS_PER_TICKER = 20
HORIZONS_IN_ALL = 100
_YEAR = 360
"""Days; a year of trading days may begin and end with holidays."""


@dataclass(frozen=True)
class TickerReport:
    """What is known of one ticker, as far as its file could be read.

    Attributes:
        ticker: the symbol, or the file's name where it makes none.
        bars: the bars, or None where the file has problems.
        interval: the usual time from one bar to the next, such as "1 day"; None without bars.
        windows: the windows, or None where the ticker is not fit.
        problems: why the ticker is not fit; empty where it is.
        doubts: why a fit ticker's data are not enough, one sentence each; empty where they are.
    """

    ticker: str
    bars: Bars | None
    interval: str | None
    windows: WindowSet | None
    problems: tuple[Problem, ...]
    doubts: tuple[str, ...]

    @property
    def fit(self) -> bool:
        return not self.problems

    @property
    def enough(self) -> bool:
        return self.fit and not self.doubts

    @property
    def horizons(self) -> int:
        """How many stretches of `horizon` bars the training targets hold, end to end."""
        if self.windows is None:
            return 0
        rows, bars = self.windows.rows, len(self.windows.bars)
        train = (rows["split"] == "train").to_numpy()
        begun = np.bincount(rows["origin"].to_numpy()[train] + 1, minlength=bars + 1)
        ended = np.bincount(rows["end"].to_numpy()[train], minlength=bars + 1)
        return int((np.cumsum(begun - ended) > 0).sum()) // self.windows.horizon


@dataclass(frozen=True)
class FolderReport:
    """What is known of a folder: a report per ticker, by symbol."""

    tickers: tuple[TickerReport, ...]

    @property
    def fit(self) -> bool:
        """True where every ticker is fit."""
        return all(one.fit for one in self.tickers)

    @property
    def horizons(self) -> int:
        """Stretches of `horizon` bars in all tickers' training targets."""
        return sum(one.horizons for one in self.tickers)

    @property
    def enough_for_checkpoint(self) -> bool:
        return self.horizons >= HORIZONS_IN_ALL

    def lines(self) -> list[str]:
        """The verdict, then each ticker's problems, doubts and notes, one a line."""
        fit = sum(one.fit for one in self.tickers)
        enough = sum(one.enough for one in self.tickers)
        checkpoint = "enough" if self.enough_for_checkpoint else f"fewer than the {HORIZONS_IN_ALL} it should have"
        lines = [
            f"{fit} of {len(self.tickers)} tickers are fit for training, {enough} have enough for an adapter.",
            f"A checkpoint over all has {self.horizons} horizons of training targets end to end: {checkpoint}.",
        ]
        for one in self.tickers:
            lines += [f"problem: {line}" for line in str(DataError(one.problems)).splitlines()]
            lines += [f"{one.ticker}: not enough: {doubt}" for doubt in one.doubts]
            lines += [f"{one.ticker}: note: {note}" for note in (one.bars.notes if one.bars else ())]
            excluded = one.windows.excluded if one.windows else {}
            # Windows between two splits are left out of any data.
            lines += [f"{one.ticker}: left out: {n}, {why}" for why, n in excluded.items() if why != STRADDLING]
        return lines


def examine_folder(data_dir: Path, recipe: Recipe) -> FolderReport:
    """Read every CSV below a folder and cut windows as training would.

    Raises:
        DataError: there is no such folder, or no CSV in it.
        SettingsError: the settings cannot work for any data.
        ModelError: the base model is unknown.
    """
    good, bad = read_folder(data_dir)
    reports = {name: TickerReport(name, None, None, None, error.problems, ()) for name, error in bad.items()}
    reports |= examine_tickers(list(good.values()), recipe)
    return FolderReport(tuple(reports[name] for name in sorted(reports)))


def doctor_table(report: FolderReport) -> Table:
    """A row per ticker: its bars, their span and interval, its windows per split, and the verdict; 80 columns wide."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 0, 0, 1))
    for header in ("ticker", "bars", "first", "last", "every", "train", "sel.", "cutoffs", "verdict"):
        number = header in ("bars", "train", "sel.", "cutoffs")
        table.add_column(header, justify="right" if number else "left", no_wrap=header != "ticker", overflow="fold")
    for one in report.tickers:
        cells = ["", "", "", ""]
        if one.bars is not None:
            stamps = one.bars.frame["timestamps"]
            first, last = (f"{stamp:%Y-%m-%d}" for stamp in (stamps.iloc[0], stamps.iloc[-1]))
            cells = [f"{len(one.bars)}", first, last, one.interval or ""]
        counts = [str(count) for count in one.windows.counts().values()] if one.windows else ["", "", ""]
        verdict = "enough" if one.enough else "little" if one.fit else "not fit"
        table.add_row(*(escape(cell) for cell in (one.ticker, *cells, *counts, verdict)))
    return table


def examine_tickers(bars: Sequence[Bars], recipe: Recipe) -> dict[str, TickerReport]:
    """Cut the tickers' windows, and say of each, by symbol, whether they are enough.

    Raises:
        SettingsError: the settings cannot work for any data.
        ModelError: the base model is unknown.
    """
    windows, problems = build_all_windows(bars, recipe)
    return {one.ticker: _report(one, windows.get(one.ticker), problems.get(one.ticker)) for one in bars}


def _report(bars: Bars, windows: WindowSet | None, error: DataError | None) -> TickerReport:
    schedule = find_bar_schedule(bars.frame["timestamps"].to_numpy()) if len(bars) > 1 else None
    interval = _interval(schedule) if schedule else None
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
    trained = (stamps.iloc[windows.selection_start - 1] - stamps.iloc[windows.lookback]).days
    if schedule.daily and trained < _YEAR:
        doubts.append(f"training covers {trained} days, less than a year: some months are never seen")
    return tuple(doubts)


def _interval(schedule: BarSchedule) -> str:
    interval = pd.Timedelta(schedule.interval, "ns")
    for unit, name in ((pd.Timedelta(days=1), "day"), (pd.Timedelta(hours=1), "h"), (pd.Timedelta(minutes=1), "min")):
        if interval % unit == pd.Timedelta(0):
            return f"{interval // unit} {name}"
    return f"{interval.total_seconds():g} s"
