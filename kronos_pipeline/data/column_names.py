"""The names of columns by meaning, as programs and sites write them in many languages.

Names are compared without case, accents, brackets, dots, spaces and underscores: `<CLOSE>`, `1. close` and `Close*` are
`close`. `COLUMN_NAMES` is the only list of names.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

COLUMN_NAMES: dict[str, tuple[str, ...]] = {
    "time": (
        "open time, start time, time start, begin, begins at, time period start, period start, window start, "
        "candle begin time, MTS",
        "time open",
        "timestamps, timestamp, date time, time, ts, t, unix, unix time, unix timestamp, epoch, bar time, "
        "trade time, GMT time, UTC time, local time, date time utc, Zeit, Uhrzeit, Datum Zeit, heure, "
        "date heure, hora, fecha hora, data hora, ora, tijd, czas, godzina, время, дата время, "
        "时间, 日期时间, 交易时间, 時間, 時刻, 日時, 시간, 시각, 일시",
    ),
    "date": (
        "date, dates, day, trade date, trading date, trading day, price date, quote date, exchange date, "
        "date utc, date gmt, Datum, Handelstag, Börsentag, Tag, jour, fecha, data, data pregão, giorno, dag, "
        "tarih, дата, день, 日期, 交易日期, 交易日, 日付, 日付け, 年月日, 取引日, 날짜, 일자, 거래일, 거래일자",
    ),
    "open": (
        "open, o, open price, opening price, opening, price open, px open, Eröffnung, Eroeffnung, Eröffn., "
        "Eröffnungskurs, Erster, Anfangskurs, ouverture, ouv., cours d'ouverture, premier, apertura, "
        "precio de apertura, prezzo di apertura, abertura, preço de abertura, openingskoers, openen, otwarcie, "
        "mid o, mid open, open prc, "
        "açılış, открытие, откр., цена открытия, 开盘, 开盘价, 今开, 開盤, 開盤價, 始値, 시가",
    ),
    "high": (
        "high, h, high price, highest, highest price, day high, price high, px high, max, Hoch, Höchst, "
        "Hoechst, Höchstkurs, Hoechstkurs, Tageshoch, haut, plus haut, máximo, máxima, "
        "precio máximo, massimo, preço máximo, hoogste, hoog, hoogste koers, najwyższy, yüksek, "
        "mid h, mid high, high 1, askhi, максимум, макс., максимальная цена, 最高, 高, 最高价, 最高價, 高値, 고가",
    ),
    "low": (
        "low, l, low price, lowest, lowest price, day low, price low, px low, min, Tief, Tiefst, Tiefstkurs, "
        "Tagestief, bas, plus bas, mínimo, mínima, precio mínimo, preço mínimo, laagste, "
        "laag, laagste koers, najniższy, düşük, "
        "mid l, mid low, low 1, bidlo, минимум, мин., минимальная цена, 最低, 低, 最低价, 最低價, "
        "安値, 저가",
    ),
    "close": (
        "close, c, close price, closing price, closing, price close, close close price adjusted for splits, clot, "
        "Schluss, Schlusskurs, "
        "clôture, cours de clôture, cierre, precio de cierre, chiusura, prezzo di chiusura, fechamento, "
        "preço de fechamento, slotkoers, slot, sluiting, zamknięcie, kapanış, mid c, mid close, закрытие, закр., "
        "цена закрытия, 收盘, 收盘价, 收盤, 收盤價, 終値, 종가",
        "price, Kurs, Preis, cours, prix, precio, prezzo, preço, koers, цена, 价格, 가격, Zuletzt, Letzter, "
        "trdprc 1, prc, dernier, último, laatste, ostatnio, şimdi, последняя, last, last price, latest, px last, ltp, "
        "最新价, 現在値, 현재가",
        "close/last",
        "settle, settlement, settlement price, 结算价",
    ),
    "adj_close": (
        "adj close, adjusted close, close adj, adjusted, adj close price, adjusted closing price, "
        "adj close adjusted close price adjusted for splits and dividend and/or capital gain distributions, "
        "bereinigter Schlusskurs, clôture ajustée, cierre ajustado, chiusura rettificata, fechamento ajustado, "
        "скорректированное закрытие, 調整後終値, 終値調整, 조정종가, 수정종가, 終値調整値",
    ),
    "volume": (
        "volume, vol, v, volumes, real volume, share volume, shares traded, trade volume, trading volume, "
        "total volume, traded volume, base volume, volume base, base asset volume, volume from, px volume, "
        "number of shares, no of shares, volume traded, tottrdqty, contracts, number of contracts, acvol 1, acvol uns, "
        "Gehandelte Stück, 成交股數, total traded quantity, traded quantity, quantity, qty, Stück, Stücke, Stueck, "
        "Stuecke, Umsatz Stück, volumi, quantité, cantidad, quantidade, wolumen, wol., hacim, hac., объем, "
        "成交量, 交易量, 总成交量, 总手, 出来高, 売買高, 거래량",
        # A German site writes Stuecke for the units and Volumen for the money.
        "Volumen",
        "tick volume, tickvol, ticks, тиковый объем",
    ),
    "amount": (
        "amount, quote volume, volume quote, quote asset volume, volume to, dollar volume, notional, "
        "tottrdval, traded value, trade value, total traded value, total turnover, money, "
        "成交额, 成交金额, 金额, 成交額, 成交金額, 売買代金, 거래대금",
        "value",
    ),
    "symbol": (
        "symbol, ticker, symbols, tickers, ts code, sym, tic, act symbol, stock symbol, unique id",
        "code, stock code, instrument, secid, security, pair, тикер, "
        "股票代码, 证券代码, 代码, 合约代码, コード, 銘柄コード, 종목코드",
        "name, stock, stock name, 股票名称, 名称, 銘柄名, 종목명",
    ),
}
"""Names by meaning, as programs write them: the names in one text are equally good, and better than those in a
later text. `time` is for times of day and full times, `date` for dates."""

TIME_MEANINGS = ("time", "date")

_BY_NAME: dict[str, tuple[str, int]] = {}
_MONEY = {
    *("usd", "usdt", "usdc", "busd", "tusd", "fdusd", "dai", "eur", "gbp", "jpy", "chf", "aud", "cad", "krw", "cny"),
    *("rmb", "inr", "brl", "try", "rub", "currency", "quote"),
}
"""Units of a volume that make it an amount of money."""
_NO_UNITS = {"ma", "sma", "ema", "avg", "average", "change", "chg", "pct", "delta", "osc", "weighted", "ratio", "rank"}
"""Words after `Volume` in the names of indicators."""
_LONGEST = 100
"""Characters of the longest name that is looked at."""
_NUMBERED = re.compile(r"^\s*\d+[a-z]?\.\s*")
_UNIT = re.compile(r"[\s_]*(?:\([^()]*\)|\[[^\[\]]*\])\s*\**\s*$")
_VOLUME_UNIT = re.compile(r"^\s*vol(?:ume)?[\s_]*[\s_(\[]([a-z0-9]{2,10})[)\]]?\s*$", re.IGNORECASE)
_NEVER = re.compile(r"^\s*(?:close|end)[\s_]*time|^\s*time[\s_]*(?:close|end|high|low)\b", re.IGNORECASE)


def normal_name(name: str) -> str:
    """Return a column's name without case, accents, brackets, dots, spaces and underscores."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKD", name.casefold()))


@lru_cache(4096)
def meaning_of(name: str) -> tuple[str, int] | None:
    """Return the meaning of a column's name and its rank, 0 for the best names; None for an unknown name."""
    if len(name) > _LONGEST or "%" in name or _NEVER.search(name):
        return None
    for text in (name, _NUMBERED.sub("", name)):
        if meaning := _BY_NAME.get(normal_name(text)):
            return meaning
    if unit := volume_unit(name):
        return ("amount" if unit in _MONEY else "volume"), 1
    # The unit of a price in brackets, such as Close (USD).
    return _BY_NAME.get(normal_name(_UNIT.sub("", _NUMBERED.sub("", name))))


def is_plain_name(meaning: str, name: str) -> bool:
    """Return whether a column's name is a spelling of its meaning itself, such as `<CLOSE>` or `1. close`."""
    return normal_name(_NUMBERED.sub("", name)) == normal_name(meaning)


def volume_unit(name: str) -> str | None:
    """Return the unit of a name such as `Volume USD` or `Volume_(BTC)`, in small letters, or None."""
    match = _VOLUME_UNIT.match(name)
    return match[1].casefold() if match and match[1].casefold() not in _NO_UNITS else None


def column_rows() -> list[tuple[str, str]]:
    """Return a row per meaning for a table: the meaning, and its names with the better names first."""
    return [(meaning, "; then ".join(ranks)) for meaning, ranks in COLUMN_NAMES.items()]


_BY_NAME |= {
    normal_name(name): (meaning, rank)
    for meaning, ranks in COLUMN_NAMES.items()
    for rank, names in enumerate(ranks)
    for name in names.split(", ")
}
