"""From a folder of CSVs to bars and windows, and what is said of each ticker on the way."""

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
"""Files that are written at once."""


@dataclass(frozen=True)
class Tickers:
    """What a folder holds.

    Attributes:
        windows: of each ticker that is fit.
        skipped: those that drop out on the way, and why; later steps add theirs.
    """

    windows: dict[str, WindowSet]
    skipped: dict[str, KronosError]

    def skip(self, ticker: str, why: KronosError) -> None:
        """Note, and tell, that a ticker drops out."""
        self.skipped[ticker] = why
        report_skipped(ticker, why)

    def reasons(self) -> list[dict[str, str]]:
        """{"symbol", "reason"} of each ticker that dropped out."""
        return [{"symbol": ticker, "reason": str(error)} for ticker, error in self.skipped.items()]


def read_tickers(config: KronosTrainingConfig, layout: ArtifactLayout) -> Tickers:
    """Read the CSVs that have changed and cut windows, keep both, and say what each ticker has.

    Raises:
        DataError: no ticker is fit.
        SettingsError: the settings cannot work for any data.
    """
    from kronos_pipeline.data.bar_cache import read_files_cached
    from kronos_pipeline.data.calendars import find_calendar
    from kronos_pipeline.data.csv_files import find_csv_files
    from kronos_pipeline.data.doctor import examine_tickers

    recipe = config.recipe
    recipe.used_lookback  # noqa: B018  (settings that cannot work are told before files are read)
    folder = find_csv_files(Path(config.data_dir))
    for ticker in folder.files if config.calendars else ():
        find_calendar(ticker, config.calendars)
    bars, bad, unchanged = read_files_cached(list(folder.files.values()), layout.bars)
    if unchanged:
        print(f"{len(unchanged)} of {len(folder.files)} CSVs are as they were when they were last read")
    tickers = Tickers({}, dict(sorted({**folder.problems, **bad}.items())))
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
        raise DataError([problem for why in tickers.skipped.values() for problem in getattr(why, "problems", ())])
    for ticker, why in tickers.skipped.items():
        report_skipped(ticker, why)
    return tickers


def report_skipped(ticker: str, error: KronosError) -> None:
    """Say on stderr why a ticker drops out."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    print(f"{ticker}: skipped", file=sys.stderr)


def _save(layout: ArtifactLayout, windows: Mapping[str, WindowSet], unchanged: Collection[str], recipe: Recipe) -> None:
    """Write bars and windows, but not bars that are there. What waits for the disk waits at the same time."""
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
