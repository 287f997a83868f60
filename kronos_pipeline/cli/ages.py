"""Ages of bars, trainings and promotions in words."""

from __future__ import annotations

from datetime import UTC, datetime

_OLD_DAYS = 7
"""Age of a last bar from which a forecast says where it starts: more than a long weekend."""


def age_of(time: str | datetime, now: datetime) -> str:
    """Return the age of a time in one unit: "3 h", "5 days", "2 years".

    Args:
        time: a time, or its ISO 8601 form; without a zone, it counts as UTC.
        now: the current time, with a zone.
    """
    seconds = (now - _moment(time)).total_seconds()
    for limit, unit, name in ((5400, 60, "min"), (129_600, 3600, "h"), (5_184_000, 86_400, "days")):
        if seconds < limit:
            return f"{max(seconds, 0) / unit:.0f} {name}"
    return f"{seconds / 2_629_800:.0f} months" if seconds < 47_336_400 else f"{seconds / 31_557_600:.0f} years"


def is_old(last_bar: datetime, now: datetime) -> bool:
    """Return whether a ticker's last bar is so old that a forecast from it is not of today."""
    return (now - _moment(last_bar)).days > _OLD_DAYS


def _moment(time: str | datetime) -> datetime:
    moment = datetime.fromisoformat(time) if isinstance(time, str) else time
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
