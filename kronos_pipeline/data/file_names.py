"""Read the symbol, the interval and the period in a CSV's name.

A name that is a valid symbol is the symbol, unless it ends with a period such as `-2023-11`. In any other name, words
that exporters add (`Historical Data`, `1D`, `(1)`, an exchange) are left out, and one word must remain.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from kronos_pipeline.names import NAME

_DATE = r"(?:19|20)\d\d(?:[-_.]?Q[1-4]|[-_.]?(?:0[1-9]|1[0-2])(?:[-_.]?(?:0[1-9]|[12]\d|3[01])(?:\d{4}(?:\d\d)?)?)?)?"
_DAY = r"(?:0[1-9]|[12]\d|3[01])[-_.](?:0[1-9]|[12]\d|3[01])[-_.](?:19|20)\d\d"
_PERIOD = rf"(?:{_DATE}(?:(?:[-_ ]|[-_ ]to[-_ ]){_DATE})?|{_DAY}(?:(?:[-_ ]|[-_ ]to[-_ ]){_DAY})?)"
"""A year, quarter, month, day or minute, or a range of two."""
_INTERVAL = (
    r"\d{1,3}(?:s|sec|m|min|mins|minutes?|h|hr|hours?|d|days?|w|wk|weeks?|mo|mon|months?)|[mh]\d{1,2}|[dw]1|mn1?"
    r"|(?:minute|hour|dai|week|month)(?:ly)?|minutes|day|intraday"
)
_ENDS_WITH_PERIOD = re.compile(rf"(?P<rest>.+?)[-_. ](?P<found>{_PERIOD})$", re.IGNORECASE)
_ENDS_WITH_INTERVAL = re.compile(rf"(?P<rest>.+)[-_. ](?P<found>{_INTERVAL})$", re.IGNORECASE)
_IS_PERIOD = re.compile(_PERIOD, re.IGNORECASE)
_IS_INTERVAL = re.compile(_INTERVAL, re.IGNORECASE)
_COPY = re.compile(
    r"(?:\s*\(\d{1,3}\)|(?:\s+-)?\s+(?:copy|kopie|copie|copia)(?:\s+\d{1,3})?)+$"
    r"|^(?:copy of|kopie von|copie de|copia de)\s+",
    re.IGNORECASE,
)
"""The mark that a browser or a file manager adds to the name of a second download or a copy."""
_TRADING_VIEW = re.compile(r"(?:(?P<exchange>[A-Z0-9]+)_)?(?P<symbol>[^,\s]+), (?P<interval>\d{0,3}[SDWM]?)(?:_\w{5})?")
"""`EXCHANGE_SYMBOL, INTERVAL_HASH`, as TradingView names its exports."""
_EPOCH = 10
"""Digits of a time in seconds since 1970."""
_PAIR = re.compile(r"[A-Z]{3,4}_[A-Z]{3,4}", re.IGNORECASE)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_EXPORTERS_WORDS = _words(
    "adj adjusted ascii bars candle candles candlestick candlesticks chart charts csv dat data download downloaded eod "
    "export historical-data historicaldata historische daten históricos datos dados données historiques dati storici "
    "exported finance hist historic historical history investing investing.com kline klines market ohlc ohlcv price "
    "prices quote quotes stock stocks stooq table time series tradingview yahoo"
)
_EXCHANGES = _words(
    "amex arca asx bats binance bitfinex bitmex bitstamp bse bybit cboe cme coinbase comex deribit euronext forexcom "
    "fx fxcm gemini hkex kraken krx kucoin lse nasdaq nse nymex nyse oanda okx otc sse szse tse tsx xetr"
)


@dataclass(frozen=True)
class FileName:
    """The name of a CSV.

    Attributes:
        stem: the name without its suffix and without the mark of a copy.
        candidates: the words that may be the symbol, upper-case.
        interval: the interval of the bars that was left out of the symbol, as written, such as 1h; None without one.
        period: the period of the bars in the name, such as 2023-11; None without one.
        series: the name without the period; files of one ticker's periods have the same.
        literal: True if the symbol is the whole name.
    """

    stem: str
    candidates: tuple[str, ...]
    interval: str | None = None
    period: str | None = None
    series: str = ""
    literal: bool = False

    @property
    def symbol(self) -> str | None:
        """The symbol, or None unless there is exactly one valid candidate."""
        valid = len(self.candidates) == 1 and NAME.fullmatch(self.candidates[0])
        return self.candidates[0] if valid else None

    @cached_property
    def split(self) -> tuple[str, str | None]:
        """The symbol without an interval at its end, and the interval in lower case; a month stays `1M`."""
        symbol, interval = self.candidates[0], self.interval
        if interval is None and (match := _ENDS_WITH_INTERVAL.fullmatch(self.stem)):
            symbol, interval = match["rest"].upper(), match["found"]
        if interval is None or re.fullmatch(r"\d*M", interval):
            return symbol, interval
        return symbol, interval.lower()


def read_file_name(stem: str) -> FileName:
    """Read a file's name, given without its suffix."""
    clean = _COPY.sub("", stem).strip()
    # Check before upper-casing, which turns some other letters into ASCII, such as a sharp s into SS.
    if not NAME.fullmatch(clean):
        return _read_words(clean)
    rest, interval, period = _split_end(clean)
    if "_" in clean and all(_is_no_symbol(part) for part in clean.split("_")):
        return FileName(clean, ())
    if period is None:
        if _IS_PERIOD.fullmatch(clean) and not clean.isdecimal():
            return FileName(clean, (), None, clean)
        # A copy of zzu_daily is no ticker zzu_daily beside zzu.
        return FileName(clean, (clean.upper(),), literal=True) if clean == stem else _read_words(clean)
    series = f"{rest} {interval}".casefold()
    return FileName(clean, (_without_edges(rest)[0].upper(),), interval, period, series)


def is_period(stem: str) -> bool:
    """Return whether a file's name is a period alone, such as 2023-11-05 or 20231105."""
    return _IS_PERIOD.fullmatch(stem) is not None


def _is_no_symbol(part: str) -> bool:
    """Return whether a part of a name is a word of exporters or a time in ms, as in HistoricalData_1700000000000."""
    return part.casefold() in _EXPORTERS_WORDS or (part.isdecimal() and len(part) >= _EPOCH)


def _split_end(name: str) -> tuple[str, str | None, str | None]:
    """Split a name that ends with a period, before or after an interval, into the rest, the interval and the period."""
    interval = None
    remainder = name
    if (match := _ENDS_WITH_INTERVAL.fullmatch(remainder)) and _ENDS_WITH_PERIOD.fullmatch(match["rest"]):
        remainder, interval = match["rest"], match["found"]
    match = _ENDS_WITH_PERIOD.fullmatch(remainder)
    if not match:
        return name, None, None
    remainder, period = match["rest"], match["found"]
    if interval is None and (before := _ENDS_WITH_INTERVAL.fullmatch(remainder)):
        remainder, interval = before["rest"], before["found"]
    return remainder, interval, period


def _read_words(name: str) -> FileName:
    """Read a name of several words, of which one may be the symbol."""
    if (view := _TRADING_VIEW.fullmatch(name)) and view["interval"]:
        return FileName(name, tuple(_candidates(view["symbol"])), view["interval"])
    rest, interval, period = _split_end(name)
    words: list[str] = []
    for word in re.split(r"[\s,;()\[\]{}]+", rest):
        text = word.strip("-_").lstrip("$#")
        if not text:
            continue
        if words and interval is None and _IS_INTERVAL.fullmatch(text):
            interval = text
        elif words and period is None and _IS_PERIOD.fullmatch(text):
            period = text
        elif text.casefold() not in _EXPORTERS_WORDS:
            text, inner = _without_edges(text)
            interval = interval or inner
            words.append(text)
    if len(words) > 1:
        words = [word for word in words if word.casefold() not in _EXCHANGES] or words
    candidates = [candidate for word in words for candidate in _candidates(word)]
    return FileName(name, tuple(candidates), interval, period, f"{' '.join(words)} {interval}".casefold())


def _without_edges(text: str) -> tuple[str, str | None]:
    """Leave out exporters' words, exchanges and intervals at the edges of words joined by `_`; return the interval."""
    parts, interval = text.split("_"), None
    while len(parts) > 1 and (parts[0].casefold() in _EXPORTERS_WORDS | _EXCHANGES or not parts[0]):
        parts.pop(0)
    while len(parts) > 1:
        if interval is None and _IS_INTERVAL.fullmatch(parts[-1]):
            interval = parts[-1]
        elif parts[-1] and parts[-1].casefold() not in _EXPORTERS_WORDS:
            break
        parts.pop()
    return "_".join(parts), interval


def _candidates(word: str) -> list[str]:
    """Return the parts of a word that may be the symbol, upper-case: the word alone, or each part between `_`."""
    if "_" not in word or _PAIR.fullmatch(word):
        return [word.upper() if word.isascii() else word]
    return [part.upper() if part.isascii() else part for part in word.split("_") if part]
