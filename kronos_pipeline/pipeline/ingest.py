"""Read a folder of CSVs into bars and windows, and report on each ticker."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kronos_pipeline.errors import (
    ArtifactError,
    DataError,
    KronosError,
    cause_of,
    count,
    enumerate_some,
    group_messages,
)

if TYPE_CHECKING:
    from kronos_pipeline.artifacts import ArtifactLayout
    from kronos_pipeline.config import KronosTrainingConfig, Recipe
    from kronos_pipeline.data.windows import WindowSet

_WRITERS = 8
"""Number of files written at the same time."""
FEW = 3
"""Largest number of tickers that get a line each."""


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


def read_tickers(config: KronosTrainingConfig, layout: ArtifactLayout, verbose: bool = False) -> Tickers:
    """Read changed CSVs, cut windows, save bars and windows, and print what was read.

    Args:
        config: the settings.
        layout: the layout of the artifacts.
        verbose: print a line per ticker and note, however many; by default many tickers are summed up by cause.

    Raises:
        DataError: no ticker is fit.
        SettingsError: the settings cannot work for any data.
    """
    from kronos_pipeline.data.bar_cache import read_files_cached
    from kronos_pipeline.data.calendars import find_calendar
    from kronos_pipeline.data.csv_files import find_csv_files
    from kronos_pipeline.data.doctor import examine_tickers
    from kronos_pipeline.data.ingest import require_adjusted_closes
    from kronos_pipeline.data.vanished import find_vanished

    recipe = config.recipe
    if note := recipe.lookback_note:  # also raises for invalid settings before files are read
        print(note)
    found = find_csv_files(Path(config.data_dir), config.reading)
    folder = find_vanished(found, layout, accept_history=config.accept_history)
    for note in folder.notes:
        print(note)
    if note := note_on_other_data(layout, config.data_dir, folder.files):
        print(note)
    for ticker in folder.files if config.calendars else ():
        find_calendar(ticker, config.calendars)
    bars, errors, unchanged = read_files_cached(
        list(folder.files.values()), layout.bars, config.reading, accept_history=config.accept_history
    )
    require_adjusted_closes(bars.values(), config)
    if unchanged:
        print(f"{len(unchanged)} of {len(folder.files)} CSVs are as they were when they were last read")
    tickers, messages = (
        Tickers({}, dict(sorted({**folder.problems, **folder.vanished, **errors}.items()))),
        list[tuple[str, str]](),
    )
    for ticker, report in examine_tickers(list(bars.values()), recipe).items():
        if report.windows is None:
            tickers.skipped[ticker] = DataError(report.problems, ticker)
            continue
        tickers.windows[ticker] = report.windows
        messages += [(ticker, note) for note in bars[ticker].notes]
        messages += [(ticker, f"this is little data: {doubt}") for doubt in report.doubts]
    for line in _describe(tickers.windows, verbose):
        print(line)
    for line in [": ".join(message) for message in messages] if verbose else group_messages(messages):
        print(line)
    _save(layout, tickers.windows, unchanged, recipe)
    if not tickers.windows:
        raise DataError([problem for error in tickers.skipped.values() for problem in getattr(error, "problems", ())])
    report_all_skipped(tickers.skipped, verbose)
    return tickers


def note_on_other_data(layout: ArtifactLayout, data_dir: str, tickers: Collection[str]) -> str | None:
    """Return a note if the output folder has trained models, and none of them has read a ticker of the data folder."""
    from kronos_pipeline.artifacts import MANIFEST, read_json

    trained: set[str] = set()
    for folder in (layout.best_checkpoint, *layout.adapter("X").parent.glob("[!.]*")):
        with contextlib.suppress(ArtifactError):  # no manifest, or a damaged one, which its readers report
            data = read_json(folder / MANIFEST).get("data")
            trained |= data.keys() if isinstance(data, dict) else set()
        if not trained.isdisjoint(tickers):
            return None
    if not trained or not tickers:
        return None
    return (
        f"{layout.root} has models of {enumerate_some(sorted(trained), FEW)}, and {data_dir} has none of these "
        "tickers; give it an output folder of its own with --output-dir"
    )


def report_all_skipped(skipped: Mapping[str, KronosError], verbose: bool = False) -> None:
    """Print on stderr the reasons that tickers drop out; a cause of more than a few tickers gets one line."""
    causes: dict[str, list[str]] = {}
    for ticker, error in skipped.items():
        rules = [problem.rule for problem in error.problems] if isinstance(error, DataError) else [str(error)]
        causes.setdefault(cause_of(rules[0]), []).append(ticker)
    for tickers in causes.values():
        if verbose or len(tickers) <= FEW:
            for ticker in tickers:
                report_skipped(ticker, skipped[ticker])
            continue
        first = str(skipped[tickers[0]]).splitlines()[0]
        print(f"error: {first}; {len(tickers) - 1} more likewise (-v lists them)", file=sys.stderr)
        print(f"{enumerate_some(tickers, FEW)}: skipped", file=sys.stderr)


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


def _describe(windows: Mapping[str, WindowSet], verbose: bool) -> list[str]:
    """Return a line per ticker, or a line for all if they are many: bars, span, and windows by split."""
    from kronos_pipeline.data.windows import STRADDLING

    if len(windows) > FEW and not verbose:
        lengths = [len(window_set.bars) for window_set in windows.values()]
        bars = f"{min(lengths):,} to {max(lengths):,} bars" if min(lengths) < max(lengths) else f"{lengths[0]:,} bars"
        groups = {f"{count(len(windows), 'ticker')}: {bars} each": list(windows.values())}
    else:
        groups = {f"{ticker}: {len(window_set.bars):,} bars": [window_set] for ticker, window_set in windows.items()}
    lines = []
    for heading, members in groups.items():
        stamps = [member.bars.frame["timestamps"] for member in members]
        first, last = min(stamp.iloc[0] for stamp in stamps), max(stamp.iloc[-1] for stamp in stamps)
        counts, excluded = Counter[str](), Counter[str]()
        for member in members:
            counts.update(member.counts())
            excluded.update({reason: number for reason, number in member.excluded.items() if reason != STRADDLING})
        lines.append(
            f"{heading}, {first:%Y-%m-%d} to {last:%Y-%m-%d}; windows: "
            + ", ".join(f"{number:,} {split}" for split, number in counts.items())
            + "".join(f"; left out {number:,}: {reason}" for reason, number in excluded.items())
        )
    return lines
