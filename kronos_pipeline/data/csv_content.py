"""Read the bytes of a CSV: of a regular file only, within limits, and not while another program writes it."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.errors import DataError, Problem

MOST_BYTES = 1 << 30
"""Bytes of the largest file that is read."""
MOST_LINES = 10_000_000
"""Lines of the longest file that is read."""
LONGEST_LINE = 1 << 18
"""Bytes of the longest line that is read."""
READINGS = 3
"""Number of readings of a file that changes meanwhile."""
PAUSE = 0.3
"""Seconds between two readings of a file that changes."""


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; opening a named pipe does not wait for a writer.

    Raises:
        OSError: the file cannot be opened, or is no regular file.
    """
    without_waiting = getattr(os, "O_NONBLOCK", 0)  # Windows has no such flag, and no such files
    with os.fdopen(os.open(path, os.O_RDONLY | without_waiting | getattr(os, "O_BINARY", 0)), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, and no file", str(path))
        yield stream


def read_content(file: CsvFile) -> bytes:
    """Read the bytes of a file; a file that changes meanwhile is read again.

    Raises:
        DataError: the file cannot be read, is larger than a limit, or changes during each reading.
    """
    try:
        for reading in range(READINGS):
            if reading:
                time.sleep(PAUSE)
            with open_regular(file.path) as stream:
                before = os.fstat(stream.fileno())
                if before.st_size > MOST_BYTES:
                    rule = f"the file has {before.st_size:,} bytes, and {MOST_BYTES:,} is the limit"
                    raise _error(file, f"{rule}; split it by period, such as SYMBOL-2023.csv and SYMBOL-2024.csv")
                content = stream.read(before.st_size + 1)
            if len(content) == before.st_size and _state(before) == _state(file.path.stat()):
                _check_lines(file, content)
                return content
    except OSError as error:
        raise _error(file, f"the file cannot be read ({error.strerror})") from error
    rule = f"the file changed during each of {READINGS} readings, as another program writes it"
    raise _error(file, f"{rule}; read it when it is complete")


def _state(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes if a file is written or replaced."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _check_lines(file: CsvFile, content: bytes) -> None:
    """Check the lengths of a file in lines and of its lines in bytes, before it is split into many objects.

    Raises:
        DataError: the file has too many lines, or a line is too long.
    """
    lines = max(content.count(b"\n"), content.count(b"\r"))
    if lines > MOST_LINES:
        rule = f"the file has {lines:,} lines, and {MOST_LINES:,} is the limit"
        raise _error(file, f"{rule}; split it by period, such as SYMBOL-2023.csv and SYMBOL-2024.csv")
    start = 0
    while len(content) - start > LONGEST_LINE:
        window = start, start + LONGEST_LINE + 1
        end = max(content.rfind(b"\n", *window), content.rfind(b"\r", *window))
        if end < 0:
            line = len(content[:start].splitlines()) + 1
            raise _error(file, f"the line has more than {LONGEST_LINE:,} bytes; write one bar into each line", line)
        start = end + 1


def _error(file: CsvFile, rule: str, line: int | None = None) -> DataError:
    return DataError(Problem(file.name, rule, line), file.ticker)
