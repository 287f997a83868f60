"""Choose the order of day, month and year in which a column writes its dates, by the whole column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kronos_pipeline.data.bar_schedule import IntArray, StampArray
from kronos_pipeline.data.time_texts import Order

_ORDER_NAMES: dict[Order, str] = {"YMD": "year first", "DMY": "day first", "MDY": "month first"}


@dataclass(frozen=True)
class _Reading:
    """A possible reading of a column of dates: its distinct dates in file order."""

    order: Order
    dates: IntArray
    intraday: bool

    @property
    def steps(self) -> IntArray:
        return np.abs(np.diff(self.dates))

    @property
    def step(self) -> float:
        return float(np.median(self.steps)) if len(self.dates) > 1 else 0.0

    @property
    def reversals(self) -> int:
        signs = np.sign(np.diff(self.dates))
        return int((signs != (1 if signs.sum() >= 0 else -1)).sum())

    @property
    def sorted(self) -> bool:
        return self.reversals == 0

    @property
    def nearly_sorted(self) -> bool:
        steps = len(self.dates) - 1
        return self.reversals <= (max(2, steps // 50) if steps >= 20 else 0)

    @property
    def covers(self) -> bool:
        """False for dates no bars have: mostly missing, a year apart, or months apart with several bars on each."""
        if len(self.dates) < 2:
            return True
        span = float(self.dates.max() - self.dates.min())
        return self.step < 300 and not (self.intraday and self.step >= 20) and span <= 4 * self.step * len(self.steps)

    @property
    def weekends(self) -> int:
        return int(((self.dates + 3) % 7 >= 5).sum())

    @property
    def trades_on_weekdays(self) -> bool:
        """True for daily dates with weekends left out, or weekly dates."""
        if len(self.dates) < 5 or self.weekends:
            return False
        spans_weekend = bool((((self.dates + 3) // 7)[1:] != ((self.dates + 3) // 7)[:-1]).any())
        return spans_weekend and (self.step == 1 or bool((self.steps == 7).all()))

    @property
    def regular(self) -> bool:
        return bool((np.abs(self.steps - self.step) <= 0.15 * self.step).all())


def choose_order(dates: dict[Order, StampArray], *, preferred: bool) -> tuple[Order, str | None, str | None]:
    """Choose the order of day, month and year by the whole column.

    Args:
        dates: the dates in each possible order, datetime64[D], `(rows,)`.
        preferred: take the first order, which is the usual one, if the column allows it.

    Returns:
        The order, the note on the decision, and the rule that is broken if several orders fit.
    """
    valid = {order: int((~np.isnat(days)).sum()) for order, days in dates.items()}
    possible = [order for order in dates if valid[order] == max(valid.values())]
    distinct = [order for order in possible[1:] if not np.array_equal(dates[order], dates[possible[0]], equal_nan=True)]
    if not distinct:
        decided = len(dates) > 1 and len(possible) == 1 and not preferred
        if decided and _is_mixed(possible[0], dates):
            rule = "dates are month first in some lines and day first in others; export them again as 2024-01-31"
            return possible[0], None, rule
        note = f"dates are read {_ORDER_NAMES[possible[0]]}, as other orders give months above 12"
        return possible[0], note if decided else None, None
    readings = [_reading(order, dates[order]) for order in (possible[0], *distinct)]
    reason = ""
    disorder = "would be out of order"
    tests = (
        ("nearly_sorted", disorder),
        ("sorted", disorder),
        ("covers", "would leave most of their time without a bar"),
    )
    for test, consequence in tests:
        passing = [reading for reading in readings if getattr(reading, test)]
        if preferred and passing and passing[0].order == possible[0]:
            passing = passing[:1]
        if 0 < len(passing) < len(readings):
            readings, reason = passing, consequence
    on_weekdays = [reading for reading in readings if reading.trades_on_weekdays]
    if (
        len(readings) > 1
        and len(on_weekdays) == 1
        and not any(other.regular for other in readings if other not in on_weekdays)
    ):
        readings, reason = on_weekdays, "would fall on weekends or leave holes"
    chosen = readings[0].order
    if len(readings) == 1:
        note = f"dates are read {_ORDER_NAMES[chosen]}, as they {reason} otherwise"
        return chosen, None if preferred else note, None
    names = " or ".join(_ORDER_NAMES[order] for order in sorted((other.order for other in readings), reverse=True))
    spans = " and ".join(f"{_date(other.dates[0])} to {_date(other.dates[-1])}" for other in readings)
    rule = f"{names}? The dates of the file fit both, {spans}; write dates as 2024-01-31"
    return chosen, None, rule


def _is_mixed(order: Order, dates: Mapping[Order, StampArray]) -> bool:
    """Return whether dates are in order only if days up to 12 and days above 12 are written in two orders."""
    other: Order = "DMY" if order == "MDY" else "MDY"
    if other not in dates or _reading(order, dates[order]).nearly_sorted:
        return False
    return _reading(order, np.where(np.isnat(dates[other]), dates[order], dates[other])).sorted


def _date(day: int) -> str:
    return str(np.datetime64(int(day), "D"))


def _reading(order: Order, dates: StampArray) -> _Reading:
    days = dates[~np.isnat(dates)].astype(np.int64)
    first = np.concatenate([[True], days[1:] != days[:-1]]) if len(days) else np.zeros(0, np.bool_)
    return _Reading(order, days[first], 2 * int(first.sum()) <= len(days))
