"""Decide what the times of a ticker's bars mean: the dates of daily bars, a forming last bar, two bar sizes."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from kronos_pipeline.data.bar_schedule import StampArray, find_bar_schedule


@dataclass(frozen=True)
class BarTimes:
    """The arranged times of a ticker's bars.

    Attributes:
        times: datetime64[ns], `(bars,)`, in the file's local time; daily and slower bars have the exchange's date and
            hour and minute 0.
        forming: index of a last bar that is still forming and is to be left out, or None.
        problems: (bar, rule) of each bar that makes the file invalid.
        notes: (bar, note) of each decision; the bar is None for a decision about all bars.
        temporary: True if a later reading may give other bars or notes.
    """

    times: StampArray
    forming: int | None = None
    problems: tuple[tuple[int, str], ...] = ()
    notes: tuple[tuple[int | None, str], ...] = ()
    temporary: bool = False


def arrange_bars(times: StampArray, zone: str | None, now: pd.Timestamp, *, keep_forming: bool = False) -> BarTimes:
    """Arrange the times of a ticker's bars.

    Args:
        times: datetime64[ns], `(bars,)`, sorted, without NaT and without repeats, in the file's local time.
        zone: the time zone that the file states, as in `ParsedTimes`, or None.
        now: the time of reading, with a zone.
        keep_forming: keep a last bar that is still forming, with a note.
    """
    if len(times) < 3:
        return BarTimes(times)
    reason, temporary = _forming(times, zone, now)
    if reason is None:
        return BarTimes(times)
    last = len(times) - 1
    decision = "kept" if keep_forming else "left out"
    note = f"the last bar, {pd.Timestamp(times[last])}, is still forming and is {decision}: {reason}"
    return BarTimes(times, None if keep_forming else last, notes=((last, note),), temporary=temporary)


def _forming(times: StampArray, zone: str | None, now: pd.Timestamp) -> tuple[str | None, bool]:
    """Return why the last bar is forming, or None, and whether the reason depends on `now`."""
    schedule = find_bar_schedule(times)
    phases = times.astype("int64") % schedule.interval
    if not schedule.daily and (phases[:-1] == phases[0]).all() and phases[-1] != phases[0]:
        return "it is off the grid of the others", False
    if zone is not None:
        # Take the eastern of the winter and summer offsets: a bar unfinished by it is unfinished by the other too.
        last = pd.Timestamp(times[-1]).tz_localize(zone.split("/")[-1])
        ends = (last + pd.Timedelta(schedule.interval, "ns")).tz_convert("UTC")
        if ends > now:
            return f"its time is up at {ends:%Y-%m-%d %H:%M} UTC, later than now", True
    return None, False
