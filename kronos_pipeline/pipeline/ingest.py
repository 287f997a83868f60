"""Read a folder of CSVs into bars and windows, and report on each ticker."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kronos_pipeline.errors import DataError, KronosError

if TYPE_CHECKING:
    from kronos_pipeline.artifacts import ArtifactLayout
    from kronos_pipeline.config import KronosTrainingConfig, Recipe
    from kronos_pipeline.data.bars import Bars
    from kronos_pipeline.data.windows import WindowSet

_WRITERS = 8
"""Number of files written at the same time."""


@dataclass(frozen=True)
class Tickers:
    """The tickers of a run.

    Attributes:
        windows: the window set of each fit ticker.
        skipped: the error of each ticker that dropped out; later steps add theirs.
    """

    windows: dict[str, WindowSet]
    skipped: dict[str, KronosError]

    def skip(self, ticker: str, error: KronosError) -> None:
        """Record and report that a ticker drops out."""
        self.skipped[ticker] = error
        report_skipped(ticker, error)

    def reasons(self) -> list[dict[str, str]]:
        """Return {"symbol", "reason"} of each ticker that dropped out."""
        return [{"symbol": ticker, "reason": str(error)} for ticker, error in self.skipped.items()]


def read_tickers(config: KronosTrainingConfig, layout: ArtifactLayout) -> Tickers:
    """Read changed CSVs, cut windows, save bars and windows, and print a summary of each ticker.

    Raises:
        DataError: no ticker is fit.
        SettingsError: the settings cannot work for any data.
    """
    from kronos_pipeline.data.bar_cache import read_files_cached
    from kronos_pipeline.data.calendars import find_calendar
    from kronos_pipeline.data.csv_files import find_csv_files
    from kronos_pipeline.data.doctor import examine_tickers
    from kronos_pipeline.data.ingest import require_adjusted_closes

    recipe = config.recipe
    if note := recipe.lookback_note:  # also raises for invalid settings before files are read
        print(note)
    folder = find_csv_files(Path(config.data_dir), config.reading)
    for note in folder.notes:
        print(note)
    for ticker in folder.files if config.calendars else ():
        find_calendar(ticker, config.calendars)
    bars, errors, unchanged = read_files_cached(list(folder.files.values()), layout.bars, config.reading)
    require_adjusted_closes(bars.values(), config)
    if unchanged:
        print(f"{len(unchanged)} of {len(folder.files)} CSVs are as they were when they were last read")
    tickers = Tickers({}, dict(sorted({**folder.problems, **errors}.items())))
    for ticker, report in examine_tickers(list(bars.values()), recipe).items():
        if report.windows is None:
            tickers.skipped[ticker] = DataError(report.problems, ticker)
            continue
        tickers.windows[ticker] = report.windows
        _describe(bars[ticker], report.windows)
        for doubt in report.doubts:
            print(f"{ticker}: this is little data: {doubt}")
    _save(layout, tickers.windows, unchanged, recipe)
    if not tickers.windows:
        raise DataError([problem for error in tickers.skipped.values() for problem in getattr(error, "problems", ())])
    for ticker, error in tickers.skipped.items():
        report_skipped(ticker, error)
    return tickers


def report_skipped(ticker: str, error: KronosError) -> None:
    """Print on stderr the reason that a ticker drops out."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    print(f"{ticker}: skipped", file=sys.stderr)


def _save(layout: ArtifactLayout, windows: Mapping[str, WindowSet], unchanged: Collection[str], recipe: Recipe) -> None:
    """Write windows, and bars unless they are unchanged; threads overlap the waits for the disk."""
    from kronos_pipeline.data.bars import save_bars
    from kronos_pipeline.data.windows import save_windows

    def save(ticker: str) -> None:
        if ticker not in unchanged:
            save_bars(layout.bars(ticker), windows[ticker].bars)
        save_windows(layout.windows(ticker), windows[ticker], recipe)

    with ThreadPoolExecutor(_WRITERS) as writers:
        list(writers.map(save, windows))


def _describe(bars: Bars, windows: WindowSet) -> None:
    counts = windows.counts()
    stamps = bars.frame["timestamps"]
    print(
        f"{bars.ticker}: {len(bars):,} bars, {stamps.iloc[0]:%Y-%m-%d} to {stamps.iloc[-1]:%Y-%m-%d}; windows: "
        + ", ".join(f"{count:,} {split}" for split, count in counts.items())
        + "".join(f"; left out {count:,}: {reason}" for reason, count in windows.excluded.items())
    )
    for note in bars.notes:
        print(f"{bars.ticker}: {note}")
