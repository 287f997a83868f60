"""The CSV of a ticker: its files, and the name of the ticker in them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from kronos_pipeline.errors import escaped_text


@dataclass(frozen=True)
class CsvFile:
    """One ticker's CSV.

    Attributes:
        ticker: the symbol, upper-case.
        path: the file.
        further: further files with other bars of the same ticker, such as those of later months.
        symbol: the cell of the symbol column in the rows of this ticker, in a file of several tickers; else None.
        notes: decisions about the symbol and the files.
    """

    ticker: str
    path: Path
    further: tuple[Path, ...] = ()
    symbol: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files of the ticker, oldest first."""
        return (self.path, *self.further)

    def part(self, path: Path) -> CsvFile:
        """Return one of the files alone."""
        return replace(self, path=path, further=(), notes=())

    @property
    def name(self) -> str:
        """The file's path for messages, printable for any bytes in its name."""
        return printable(self.path)


def printable(path: Path) -> str:
    """Return a path as printable text in one line, for any bytes in its name."""
    return escaped_text(os.fsencode(path).decode("utf-8", errors="backslashreplace"))
