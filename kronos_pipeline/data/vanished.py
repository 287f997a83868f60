"""Tickers that vanished from a file of several tickers, as from an export that was cut off half-way.

A file tells by itself when a ticker's newest bars are gone, but not when the whole ticker is: the bars that were read
before tell, as they name their file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kronos_pipeline.artifacts import ArtifactLayout, read_manifest
from kronos_pipeline.data.bars import Bars, load_bars, save_bars
from kronos_pipeline.data.csv_files import CsvFolder
from kronos_pipeline.errors import ArtifactError, DataError, Problem, count
from kronos_pipeline.names import NAME

_ACCEPTED = "gone from {}"
"""Source of stored bars whose ticker was accepted as gone from its file."""


def find_vanished(folder: CsvFolder, layout: ArtifactLayout, *, accept_history: bool = False) -> CsvFolder:
    """Return a folder with the tickers that a file held when it was read before, and holds no longer.

    Args:
        folder: the CSVs of a data folder.
        layout: where the bars are that were read before.
        accept_history: take the files as they are: each vanished ticker becomes a note once, and its stored bars stay.
    """
    vanished: dict[str, DataError] = {}
    notes = []
    for path, bars in _vanished_bars(folder, layout.bars("X").parent):
        stamps = bars.frame["timestamps"]
        rule = (
            f"no row of the ticker {bars.ticker}, and {count(len(bars), 'bar')} ({stamps.iloc[0]:%Y-%m-%d} to "
            f"{stamps.iloc[-1]:%Y-%m-%d}) that were read before are gone"
        )
        problem = Problem(bars.source, f"{rule}; export the file again, or take it as it is with --accept-history")
        if accept_history:
            save_bars(path, replace(bars, source=_ACCEPTED.format(bars.source)))
            notes.append(f"--accept-history: {bars.source}: {rule}")
        else:
            vanished[bars.ticker] = DataError(problem, bars.ticker)
    return replace(folder, vanished=dict(sorted(vanished.items())), notes=(*folder.notes, *notes))


def _vanished_bars(folder: CsvFolder, stored: Path) -> Iterator[tuple[Path, Bars]]:
    """Yield the stored bars whose ticker the folder lacks although it has their file."""
    present = {*folder.files, *folder.problems}
    absent = [
        path for path in sorted(stored.glob("*.parquet")) if path.stem not in present and NAME.fullmatch(path.stem)
    ]
    if not absent:
        return
    sources = {path.resolve() for file in folder.files.values() for path in file.paths}
    for path in absent:
        try:
            if Path(str(read_manifest(path).get("source", ""))).resolve() in sources:
                yield path, load_bars(path)
        except ArtifactError:
            continue  # damaged bars are compared with nothing, as those of a ticker that is there
