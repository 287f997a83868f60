"""Find the files below a data folder: CSVs, other files, and what is not read, such as links that lead out of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from kronos_pipeline.data.csv_content import open_regular
from kronos_pipeline.data.csv_file import printable
from kronos_pipeline.errors import DataError, Problem

MOST_FILES = 1_000_000
"""Files of the largest folder that is searched."""

_HIDDEN = ("__MACOSX", "__pycache__")
"""Folders that are not searched, like those whose names begin with a dot."""
_NO_TABLES = (".md",)
"""Suffixes of files that are not counted as files that might hold bars."""
_PEEKED = 4096
"""Bytes that are read to find out whether a file is a table of bars, or has a column of symbols."""
_PEEKED_LINES = 10
_TIME = re.compile(r"\d{4}([-/.]?)\d\d\1\d\d.{0,20}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}.{0,20}|\d{9,19}(\.0*)?")
_NUMBER = re.compile(r"[-+]?\d[\d.,']{0,30}[KMB]?")


@dataclass(frozen=True)
class FolderFiles:
    """The files below a data folder.

    Attributes:
        csvs: the CSVs, sorted.
        others: other files that may hold bars.
        hidden: folders that are not searched, as their names begin with a dot, relative to the data folder.
        outside: links to folders outside of the data folder, which are not followed, relative to the data folder.
        refused: the rule that a file with the name of a CSV breaks: a link that leads out, or no regular file.
    """

    csvs: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    outside: list[Path] = field(default_factory=list)
    refused: dict[Path, str] = field(default_factory=dict)


def find_files(data_dir: Path) -> FolderFiles:
    """Find the files below a folder, at any depth; links are followed within the folder.

    Raises:
        DataError: a folder cannot be read, or there are too many files.
    """
    files = FolderFiles()
    root = os.path.realpath(data_dir)
    visited: set[str] = set()
    number = 0
    for folder, below, names in os.walk(data_dir, followlinks=True, onerror=_refuse):
        # A link to a parent folder would loop for ever.
        if (real := os.path.realpath(folder)) in visited:
            below.clear()
            continue
        visited.add(real)
        searched = []
        for name in sorted(below):
            path = Path(folder, name)
            if name.startswith(".") or name in _HIDDEN:
                files.hidden.append(path.relative_to(data_dir))
            elif _leads_out(path, root):
                files.outside.append(path.relative_to(data_dir))
            else:
                searched.append(name)
        below[:] = searched
        number += len(names)
        if number > MOST_FILES:
            rule = f"more than {MOST_FILES:,} files here and below; choose a folder of CSVs with --data-dir"
            raise DataError(Problem(printable(data_dir), rule))
        for name in names:
            _add(files, Path(folder, name), root)
    files.csvs.sort()
    return files


def _add(files: FolderFiles, path: Path, root: str) -> None:
    """Add a file to the files below a folder, whose real path is `root`."""
    name = path.name.lower()
    if name.startswith("._"):
        return  # what macOS knows about a file, in a file of its own
    named_as_csv = name.endswith((".csv", ".tsv", ".csv.txt"))
    if named_as_csv and _leads_out(path, root):
        files.refused[path] = "a link that leads out of the data folder is not followed; put a copy of the file here"
    elif named_as_csv and not path.is_file():
        files.refused[path] = "no file that can be read, but a pipe, a device or a link to nothing; replace it"
    elif named_as_csv or (name.endswith(".txt") and not _leads_out(path, root) and _is_table(path)):
        files.csvs.append(path)
    elif not name.startswith(".") and not name.endswith(_NO_TABLES):
        files.others.append(path)


def _leads_out(path: Path, root: str) -> bool:
    """Return whether a path is a link to a place outside of a folder."""
    return path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root)


def _is_table(path: Path) -> bool:
    """Return whether the first lines of a file hold a bar: a time and four numbers."""
    return any(_is_bar(line) for line in first_lines(path))


def _is_bar(line: str) -> bool:
    cells = [cell.strip('" ') for cell in re.split(r"[,;\t| ]+", line)]
    times = sum(1 for cell in cells if _TIME.fullmatch(cell))
    numbers = sum(1 for cell in cells if _NUMBER.fullmatch(cell))
    return times > 0 and numbers >= 4


def first_lines(path: Path) -> list[str]:
    """Return the first lines of a file; none of a file that cannot be read."""
    try:
        with open_regular(path) as file:
            content = file.read(_PEEKED)
    except OSError:
        return []
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", errors="replace")
    else:
        text = content.decode("utf-8", errors="replace")
    return text.splitlines()[:_PEEKED_LINES]


def _refuse(error: OSError) -> None:
    folder = printable(Path(error.filename or "."))
    raise DataError(Problem(folder, f"this folder cannot be read ({error.strerror})")) from error
