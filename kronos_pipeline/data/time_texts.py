"""Split the cells of a time column into dates, times of day and time zones, for all usual ways to write them.

Arrow's regular expressions split whole columns, in linear time for any text. An expression finds the three numbers of a
date; which of them is the day is decided later, by the whole column.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kronos_pipeline.data.bar_schedule import BoolArray, IntArray, StampArray

Order = Literal["YMD", "DMY", "MDY"]
"""Order of year, month and day."""

Zone: TypeAlias = "int | ZoneInfo | str"
"""Minutes east of UTC, a zone with daylight saving, or the rule that the text of the zone breaks."""

_YEARS = (1678, 2261)
"""First and last whole year of nanoseconds since 1970."""
_SAMPLE = 64
_LONGEST = 100
"""Characters of a time: longer than any."""
_SECOND = 1_000_000_000
_LETTER = r"[^\x00-@\[-`{-\x7f]"
"""A letter, or any character beyond ASCII; an expression with the letters of Unicode takes long to compile."""
_HYPHENS = "[‐‑‒–−]"
_BLANKS = r"[\s\x{00a0}\x{202f}\x{3000}]+"


@dataclass(frozen=True)
class _DateForm:
    """A way to write dates: an expression with the groups a, b and c, and the orders that a, b and c may have."""

    expression: str
    orders: tuple[Order, ...]
    named: str = ""
    """The group that is a month's name."""


_MONTH_NAME = rf"{_LETTER}{{3,}}\.?"
_YEAR = r"(?:1[6-9]|2[012])\d{2}"
_DATE_FORMS = {
    "year first": _DateForm(
        r"(?P<a>\d{4}) ?[-/._年 ] ?(?P<b>\d{1,2}) ?[-/._月 ] ?(?P<c>\d{1,2})(?: ?日|\.)?", ("YMD",)
    ),
    "digits": _DateForm(rf"(?P<a>{_YEAR})(?P<b>\d{{2}})(?P<c>\d{{2}})", ("YMD",)),
    "dots": _DateForm(r"(?P<a>\d{1,2})\. ?(?P<b>\d{1,2})\. ?(?P<c>\d{4})", ("DMY",)),
    "year last": _DateForm(r"(?P<a>\d{1,2})[-/. ](?P<b>\d{1,2})[-/. ](?P<c>\d{4})", ("DMY", "MDY")),
    "dots, short year": _DateForm(r"(?P<a>\d{1,2})\. ?(?P<b>\d{1,2})\. ?(?P<c>\d{2})", ("DMY", "YMD")),
    "short year": _DateForm(r"(?P<a>\d{1,2})[-/. ](?P<b>\d{1,2})[-/. ]'?(?P<c>\d{2})", ("DMY", "MDY", "YMD")),
    "day, month's name, year": _DateForm(
        r"(?P<a>\d{1,2})(?:st|nd|rd|th|er|º|°|\.)?[-/ ]*(?:de )?"
        rf"(?P<b>{_MONTH_NAME})[-/ ,]*(?:del? )?'?(?P<c>\d{{4}}|\d{{2}})",
        ("DMY",),
        "b",
    ),
    "month's name, day, year": _DateForm(
        rf"(?P<a>{_MONTH_NAME})[-/ ]*(?P<b>\d{{1,2}})(?:st|nd|rd|th)?(?:, ?|[-/ ])'?(?P<c>\d{{4}}|\d{{2}})",
        ("MDY",),
        "a",
    ),
    "year, month's name, day": _DateForm(
        rf"(?P<a>\d{{4}})[-/ ]*(?P<b>{_MONTH_NAME})[-/ ]*(?P<c>\d{{1,2}})", ("YMD",), "b"
    ),
    "year, month": _DateForm(r"(?P<a>\d{4})[-/.年](?P<b>\d{1,2})月?(?P<c>)", ("YMD",)),
    "month, year": _DateForm(r"(?P<c>)(?P<b>\d{1,2})[-/.](?P<a>\d{4})", ("YMD",)),
    "month's name, year": _DateForm(rf"(?P<c>)(?P<b>{_MONTH_NAME})[-/ ]*'?(?P<a>\d{{4}}|\d{{2}})", ("YMD",), "b"),
    "Minguo": _DateForm(r"(?P<a>1[0-4]\d) ?[-/.年] ?(?P<b>\d{1,2}) ?[-/.月] ?(?P<c>\d{1,2})(?: ?日)?", ("YMD",)),
    "digits of a month": _DateForm(r"(?P<a>(?:19|20)\d{2})(?P<b>0[1-9]|1[0-2])(?P<c>)", ("YMD",)),
}
"""Ways to write dates; of equally good ways, the first is taken."""
MINGUO = "Minguo"
"""The way to write dates with the years of Taiwan, which begin in 1912."""
MONTHS_ALONE = ("year, month", "month, year", "month's name, year", "digits of a month")
"""The ways to write a month without a day."""

_CLOCK = (
    r"(?P<noon>上午|下午|오전|오후)? ?"
    r"(?:(?P<hour>\d{1,2}) ?[:h時时点] ?(?P<minute>\d{2})"
    r"(?: ?[:.m分] ?(?P<second>\d{2})(?:[.,:](?P<fraction>\d{1,9})\d*)?)?[s秒分]?"
    r"|(?P<hour2>\d{2})(?P<minute2>\d{2})(?:(?P<second2>\d{2})(?:[.,](?P<fraction2>\d{1,9})|(?P<fraction3>\d{3}))?)?"
    r"|(?P<hour3>\d{1,2}))"
    r" ?(?P<half>[AaPp](?:[Mm]\b|\. ?[Mm]\.?))?"
)
_ZONE = r"(?P<zone>(?:[A-Za-z+\-\[(].*)?)"
_REST = rf"^[T ,;_]*(?:at |à |um )?(?:{_CLOCK})? ?{_ZONE}$"
_TIME_OF_DAY = rf"^(?:0 days )?{_CLOCK} ?{_ZONE}$"
_WEEKDAY = (
    "(?:周|週|星期)?[月火水木金土日一二三四五六월화수목금토일](?:曜日?|요일)?"
    "|Mon|Tue|Wed|Thu|Fri|Sat|Sun|Mo|Di|Mi|Do|Fr|Sa|So"
)  # fmt: skip
_REORDERED = (
    (r"^(\d{1,2}:\d{2}(?::\d{2})?),? (\D*\d.*\d{2}.*)$", r"\2 \1"),
    (rf"^(.*\d)\.?,? ?[(（\[](?:{_WEEKDAY})[)）\]](.*)$", r"\1\2"),
    (r"^(\d{1,2}\p{L}{3}\d{4}):(\d{1,2}:.*)$", r"\1 \2"),
    (r"^(\d{8}|\d{4}[-/.]\d{2}[-/.]\d{2})-(\d{2}:\d{2}:\d{2}.*)$", r"\1 \2"),
    (r"^(\d{4}-\d{2}-\d{2})[_ ](\d{2})-(\d{2})$", r"\1 \2:\3"),
    (r"^(\d{4}-\d{2}-\d{2})[_ ](\d{2})-(\d{2})-(\d{2})$", r"\1 \2:\3:\4"),
    (r"^(.*:\d{2}) Uhr$", r"\1"),
    (r"^(\p{L}+ \p{L}+ \d{1,2}) (\d{1,2}:\d{2}:\d{2})( [A-Za-z]{2,5})? (\d{4})$", r"\1 \4 \2\3"),
)
"""Texts with the time of day before the date or within it, after a dash or a colon, or with a weekday in brackets, and
their usual order."""

_MONTHS = (
    "january januar janner janvier enero gennaio janeiro januari января январь styczen stycznia",
    "february februar feber fevrier febrero febbraio fevereiro februari февраля февраль luty lutego",
    "march marz mrz mars marzo marco maart mrt марта март marzec marca",
    "april avril abril aprile апреля апрель kwiecien kwietnia",
    "may mai mayo maggio maio mei maj мая май maja",
    "june juni juin junio giugno junho июня июнь czerwiec czerwca",
    "july juli juillet julio luglio julho июля июль lipiec lipca",
    "august aout agosto augustus augusti августа август sierpien sierpnia",
    "september septembre septiembre setiembre settembre setembro сентября сентябрь wrzesien wrzesnia",
    "october oktober octobre octubre ottobre outubro октября октябрь pazdziernik pazdziernika",
    "november novembre noviembre novembro ноября ноябрь listopad listopada",
    "december dezember decembre diciembre dicembre dezembro декабря декабрь grudzien grudnia",
)
"""Names of the months; their first three or more letters are abbreviations."""

_ABBREVIATIONS: dict[str, Zone] = {
    **dict.fromkeys(("Z", "UTC", "GMT", "UT", "WET", "ZULU"), 0),
    **dict.fromkeys(("WEST", "BST", "CET", "MEZ"), 60),
    **dict.fromkeys(("CEST", "MESZ", "EET", "SAST"), 120),
    **dict.fromkeys(("EEST", "MSK", "TRT"), 180),
    **dict.fromkeys(("HKT", "SGT", "AWST"), 480),
    **dict.fromkeys(("JST", "KST"), 540),
    **{"AEST": 600, "AEDT": 660, "NZST": 720, "NZDT": 780, "BRT": -180},
    **{"EDT": -240, "EST": -300, "CDT": -300, "MST": -420, "MDT": -360, "PST": -480, "PDT": -420},
    "CST": "CST is UTC-06:00 in Chicago and UTC+08:00 in Shanghai; write the offset",
    "IST": "IST is UTC+05:30 in India and UTC+02:00 in Israel; write the offset",
}
_REGIONS = {"ET": "America/New_York", "CT": "America/Chicago", "MT": "America/Denver", "PT": "America/Los_Angeles"}
_OFFSET = re.compile(r"(?:UTC|GMT)?\s*([+-])(\d{1,2})(?::?(\d{2}))?")


@dataclass(frozen=True)
class TimeTexts:
    """The cells of a time column as numbers.

    Attributes:
        form: the way in which the dates are written.
        dates: datetime64[D], `(rows,)`, by each possible order of day, month and year; NaT for an unreadable cell.
        clock: nanoseconds since midnight, `(rows,)`; 0 for a cell without a time of day.
        clocked: True for a cell with a time of day, `(rows,)`.
        zone_of: index of a cell's zone in `zones`, or -1 for a cell without a zone, `(rows,)`.
        zones: the zones of the column.
    """

    form: str
    dates: dict[Order, StampArray]
    clock: IntArray
    clocked: BoolArray
    zone_of: IntArray
    zones: tuple[Zone, ...]


def clean_texts(texts: pa.StringArray) -> pa.StringArray:
    """Make every run of blanks a single space, and put the time of day after the date."""
    if pc.any(pc.match_substring_regex(texts, r"  |[\t\x{00a0}\x{202f}\x{3000}]")).as_py():
        texts = pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, _BLANKS, " "))
    sampled = sample(texts).to_pylist()
    if pc.any(pc.match_substring_regex(texts, _HYPHENS)).as_py():
        texts = pc.replace_substring_regex(texts, _HYPHENS, "-")
    for expression, order in _REORDERED:
        if any(_python_expression(expression).search(text[:_LONGEST]) for text in sampled):
            texts = pc.replace_substring_regex(texts, expression, order)
    return texts


def sample(texts: pa.StringArray) -> pa.StringArray:
    """Return up to 64 cells from all over a column."""
    return texts.take(np.unique(np.linspace(0, max(len(texts) - 1, 0), _SAMPLE).astype(int))) if len(texts) else texts


def split_times(texts: pa.StringArray) -> TimeTexts | None:
    """Split the cells of a column of dates; None if no known way to write dates fits any cell of a sample."""
    texts = clean_texts(texts)
    sampled = sample(texts)
    matches = {name: _count_matches(name, sampled.to_pylist()) for name in _DATE_FORMS}
    likely = [name for name, number in matches.items() if number and 2 * number >= max(matches.values())]
    if not likely:
        return None
    name = likely[0] if len(likely) == 1 else max(likely, key=lambda name: _readable(_split(name, sampled)))
    distinct, index = _encode(texts)
    split = _split(name, distinct)
    if index is None:
        return split
    dates = {order: days[index] for order, days in split.dates.items()}
    return TimeTexts(name, dates, split.clock[index], split.clocked[index], split.zone_of[index], split.zones)


def split_clock(texts: pa.StringArray) -> tuple[IntArray, BoolArray, IntArray, tuple[Zone, ...]]:
    """Split the cells of a column of times of day.

    Supported: 09:30, 9:30:00.5 AM, 093000, 0930, 930, with a zone or without, and 0.3958 as a fraction of a day.

    Returns:
        Nanoseconds since midnight, whether a cell is readable, and `zone_of` and `zones` as in `TimeTexts`.
    """
    texts = pc.replace_substring_regex(clean_texts(texts), r"^(\d+)\.0+$", r"\1")
    distinct, index = _encode(texts)
    digits = pc.match_substring_regex(distinct, r"^\d{1,6}$")
    if pc.any(digits).as_py():
        # Spreadsheets and pandas drop leading zeros.
        longest = pc.max(pc.utf8_length(pc.filter(distinct, digits))).as_py()
        padded = pc.utf8_lpad(distinct, 4 if longest <= 4 else 6, "0")
        distinct = pc.if_else(digits, padded, distinct)
    fields = pc.extract_regex(distinct, _TIME_OF_DAY)
    clock, valid = _clock(fields)
    valid &= pc.is_valid(fields).to_numpy(zero_copy_only=False)
    fractions = pc.match_substring_regex(distinct, r"^0?\.\d+$").to_numpy(zero_copy_only=False)
    if fractions.any():
        days = pc.cast(distinct.filter(pa.array(fractions)), pa.float64()).to_numpy()
        clock[fractions] = np.rint(days * 86_400_000).astype(np.int64) * 1_000_000
        valid |= fractions
    zone_of, zones = _zones(fields)
    if index is not None:
        clock, valid, zone_of = clock[index], valid[index], zone_of[index]
    return clock, valid, zone_of, zones


def _count_matches(name: str, texts: list[str]) -> int:
    """Count the texts that a way to write dates fits; Python compiles an expression once and Arrow at each call."""
    return sum(_python_expression(_expression(name)).search(text[:_LONGEST]) is not None for text in texts)


@cache
def _python_expression(expression: str) -> re.Pattern[str]:
    ascii_digits = expression.replace(r"\d", "[0-9]").replace(r"\p{L}", r"[^\W\d_]")
    return re.compile(ascii_digits)


def _readable(split: TimeTexts) -> int:
    return max(int((~np.isnat(days)).sum()) for days in split.dates.values())


def _encode(texts: pa.StringArray) -> tuple[pa.StringArray, IntArray | None]:
    """Return the distinct cells and the index of each cell, or the cells and None where few of them repeat."""
    beginning = texts.slice(0, 1000)
    if len(texts) < 1000 or pc.count_distinct(beginning).as_py() > len(beginning) / 2:
        return texts, None
    encoded = pc.dictionary_encode(texts)
    return encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)


def _begins_with_word(texts: pa.StringArray) -> bool:
    return pc.any(pc.match_substring_regex(texts, f"^{_LETTER}{{2}}")).as_py()


def _split(name: str, texts: pa.StringArray) -> TimeTexts:
    form = _DATE_FORMS[name]
    fields = pc.extract_regex(texts, _expression(name, _begins_with_word(texts)))
    matched = pc.is_valid(fields).to_numpy(zero_copy_only=False)
    numbers = [
        _month_numbers(fields.field(group)) if group == form.named else _numbers(fields.field(group), 1)
        for group in "abc"
    ]
    short = pc.equal(pc.utf8_length(fields.field("c")), 2).fill_null(False).to_numpy(zero_copy_only=False)
    # With two digits for the year, 24-Jan-31 may be year first too.
    orders: tuple[Order, ...] = ("DMY", "YMD") if name.startswith("day, ") and short.any() else form.orders
    details = pc.extract_regex(fields.field("rest"), _REST)
    clock, valid = _clock(details)
    valid &= matched & pc.is_valid(details).to_numpy(zero_copy_only=False)
    dates = {order: np.where(valid, _dates(numbers, order), np.datetime64("NaT")) for order in orders}
    clocked = pc.not_equal(pc.binary_join_element_wise(*(details.field(hour) for hour in _HOURS), ""), "")
    zone_of, zones = _zones(details)
    return TimeTexts(name, dates, clock, clocked.fill_null(False).to_numpy(zero_copy_only=False), zone_of, zones)


@cache
def _expression(name: str, begins_with_word: bool = True) -> str:
    """Return the expression of whole cells: a weekday if any begins with a word, the date, and the rest of the cell."""
    separator = "" if name == "digits" else r"(?:[T ,;_]|[Z+]|\-\d\d:?\d\d$)"
    rest = rf"(?P<rest>(?:{separator}.*)?)"
    weekday = rf"(?:{_LETTER}{{2,}}\.?,? )?" if begins_with_word else ""
    return f"^{weekday}{_DATE_FORMS[name].expression}{rest}$"


_HOURS = ("hour", "hour2", "hour3")


def _numbers(texts: pa.StringArray, default: int) -> IntArray:
    """Return digits as numbers, and `default` for an empty cell."""
    filled = pc.if_else(pc.equal(texts, ""), str(default), texts).fill_null(str(default))
    return pc.cast(filled, pa.int64()).to_numpy(zero_copy_only=False)


def _month_numbers(names: pa.StringArray) -> IntArray:
    encoded = pc.dictionary_encode(names.fill_null(""))
    months = np.array([_month(name) for name in encoded.dictionary.to_pylist()], np.int64)
    return months[encoded.indices.to_numpy()] if len(months) else np.zeros(len(names), np.int64)


@cache
def _month(name: str) -> int:
    """Return the number of a month by its name or an abbreviation of three letters or more; 0 for other words."""
    plain = "".join(mark for mark in unicodedata.normalize("NFKD", name) if not unicodedata.combining(mark))
    word = plain.casefold().strip(".")
    if len(word) < 3:
        return 0
    numbers = [
        number for number, names in enumerate(_MONTHS, 1) if any(full.startswith(word) for full in names.split())
    ]
    return numbers[0] if len(numbers) == 1 else 0


def _dates(numbers: list[IntArray], order: Order) -> StampArray:
    year, month, day = (numbers[order.index(part)] for part in "YMD")
    # Two digits are a year of this century up to next year, and of the last century beyond.
    this_year = int(np.datetime64("today", "Y").astype(int)) + 1970
    year = np.where((year >= 100) & (year < 150), year + 1911, year)
    year = np.where(year < 100, year + 1900 + 100 * (year <= this_year + 1 - 2000), year)
    valid = (year >= _YEARS[0]) & (year <= _YEARS[1]) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    months = np.where(valid, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    dates = months.astype("datetime64[D]") + np.where(valid, day - 1, 0)
    valid &= dates.astype("datetime64[M]") == months
    return np.where(valid, dates, np.datetime64("NaT"))


def _clock(fields: pa.StructArray) -> tuple[IntArray, BoolArray]:
    """Return nanoseconds since midnight, and whether they are a time of day."""

    def part(name: str) -> pa.StringArray:
        return pc.coalesce(*(pc.if_else(pc.equal(group, ""), None, group) for group in _groups(fields, name)), "")

    hour, minute, second = (_numbers(part(name), 0) for name in ("hour", "minute", "second"))
    fraction = _numbers(pc.utf8_rpad(part("fraction"), 9, "0"), 0)
    half = pc.utf8_lower(pc.utf8_slice_codeunits(fields.field("half"), 0, 1)).fill_null("")
    noon = fields.field("noon").fill_null("")
    after = pc.or_(pc.equal(half, "p"), pc.is_in(noon, pa.array(["下午", "오후"]))).to_numpy(zero_copy_only=False)
    before = pc.or_(pc.equal(half, "a"), pc.is_in(noon, pa.array(["上午", "오전"]))).to_numpy(zero_copy_only=False)
    valid = (hour < 24) & (minute < 60) & (second < 60) & ~(before & (hour > 12))
    hour = np.where(after & (hour < 12), hour + 12, np.where(before & (hour == 12), 0, hour))
    return ((hour * 60 + minute) * 60 + second) * _SECOND + fraction, valid


def _groups(fields: pa.StructArray, name: str) -> list[pa.StringArray]:
    known = {fields.type.field(number).name for number in range(fields.type.num_fields)}
    return [fields.field(f"{name}{suffix}") for suffix in ("", "2", "3") if f"{name}{suffix}" in known]


def _zones(fields: pa.StructArray) -> tuple[IntArray, tuple[Zone, ...]]:
    encoded = pc.dictionary_encode(pc.utf8_trim_whitespace(fields.field("zone").fill_null("")))
    texts = encoded.dictionary.to_pylist()
    central = any(text == "CDT" for text in texts)
    # CDT in the same column makes CST the winter time of Chicago.
    zones = tuple(-360 if central and text == "CST" else _zone(text) if text else 0 for text in texts)
    numbers = np.array([-1 if not text else number for number, text in enumerate(texts)], np.int64)
    return (numbers[encoded.indices.to_numpy()] if len(numbers) else np.zeros(0, np.int64)), zones


@cache
def _zone(text: str) -> Zone:
    """Return the zone that a text such as -05:00, GMT+0100 (CET), EST or America/New_York names."""
    plain = re.sub(r"\s*\(.*\)$", "", text)
    plain = re.sub(r"^([+-]\d{2}:?\d{2}) [A-Z]{2,5}$", r"\1", plain)  # an offset and its name, as Go writes them
    if match := re.fullmatch(r"(.*\d)\[[\w/+-]+\]", plain):  # an offset followed by its region
        plain = match[1]
    plain = plain.strip("[]() ")
    if plain.upper() in _ABBREVIATIONS:
        return _ABBREVIATIONS[plain.upper()]
    if match := _OFFSET.fullmatch(plain.upper()):
        minutes = int(match[2]) * 60 + int(match[3] or 0)
        if minutes <= 14 * 60:
            return -minutes if match[1] == "-" else minutes
    name = _REGIONS.get(plain.upper(), plain)
    try:
        if re.fullmatch(r"[A-Za-z]+(?:/[A-Za-z0-9_+-]+)+", name):
            return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        pass
    return f"has a time zone that is not known, {text!r}; write an offset such as +01:00"
