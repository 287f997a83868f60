"""The times of a column of a CSV before the zone of the file is decided."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from kronos_pipeline.data.bar_schedule import BoolArray, IntArray

NAT = np.iinfo(np.int64).min
"""Nanoseconds of a cell without a time."""
MINUTE = 60_000_000_000
DAY = 1440 * MINUTE
"""Nanoseconds."""
NO_TIME = "no time that can be read; write it as 2024-01-31 or 2024-01-31 15:30"


@dataclass
class TimeColumn:
    """The times of a column before its zones are decided.

    Attributes:
        name: the file's name of the column.
        local: nanoseconds since 1970 in local time, `(rows,)`; the least integer for an invalid cell.
        offsets: minutes east of UTC, `(rows,)`; None without a zone.
        clocked: True if any cell has a time of day other than midnight.
        problems: the rule that an invalid cell breaks, by row.
        notes: decisions about the whole column.
        row_notes: decisions that begin at a row.
        readings: the possible values of `local`, if the cells leave several and `local` is invalid.
    """

    name: str
    local: IntArray
    offsets: IntArray | None = None
    clocked: bool = False
    problems: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    row_notes: list[tuple[int, str]] = field(default_factory=list)
    readings: list[IntArray] = field(default_factory=list)

    @property
    def readable(self) -> BoolArray:
        """Which cells hold a time, `(rows,)`."""
        return self.local != NAT

    @property
    def usable(self) -> bool:
        """True if more than half of the cells hold a time."""
        return 2 * int(self.readable.sum()) > len(self.local)

    @property
    def dates(self) -> IntArray:
        """Days since 1970 in local time, `(rows,)`."""
        return self.local // DAY

    @property
    def instants(self) -> IntArray:
        """Nanoseconds since 1970 in UTC; local times without a zone are taken for UTC."""
        return self.local if self.offsets is None else self.local - self.offsets * MINUTE


def share(flags: pa.BooleanArray | BoolArray) -> float:
    """Return the share of true flags, `(rows,)`; 0 without any flag."""
    values = np.asarray(flags)
    return float(values.mean()) if len(values) else 0.0
