"""Trading sessions that ended within a time, by the exchange calendar of each ticker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import pandas as pd

from kronos_pipeline.data.calendars import find_calendar

_MARGIN = pd.Timedelta(days=10)
"""Sessions that are opened on both sides of the time: no exchange closes for longer."""


def tickers_without_session(
    tickers: Iterable[str], calendars: Sequence[str], start: datetime, end: datetime
) -> dict[str, str]:
    """Return the tickers whose exchange ended no session in a time, with the name of its calendar.

    A ticker without a calendar, or a time that its calendar does not cover, counts as a session.

    Args:
        tickers: the symbols.
        calendars: calendars by ticker, see `find_calendar`.
        start: the start of the time, excluded, with a zone.
        end: its end, included, with a zone.

    Raises:
        SettingsError: a calendar is unknown, or given twice.
    """
    if not calendars:
        return {}
    ended: dict[str, bool] = {}
    without = {}
    for ticker in tickers:
        name = find_calendar(ticker, calendars)
        if name is None:
            continue
        if name not in ended:
            ended[name] = _session_ended(name, pd.Timestamp(start), pd.Timestamp(end))
        if not ended[name]:
            without[ticker] = name
    return without


def _session_ended(name: str, start: pd.Timestamp, end: pd.Timestamp) -> bool:
    """Return whether a session of the calendar ended after `start`, up to `end`."""
    import exchange_calendars  # takes a second

    known = exchange_calendars.get_calendar(name)
    first, last = (pd.Timestamp(edge.tz_convert("UTC").date()) for edge in (start - _MARGIN, end + _MARGIN))
    first, last = max(first, known.bound_min() or first), min(last, known.bound_max() or last)
    if last < pd.Timestamp(end.tz_convert("UTC").date()) or first > last - _MARGIN:
        return True
    closes = exchange_calendars.get_calendar(name, start=first, end=last).closes
    return bool(((closes > start) & (closes <= end)).any())
