"""Settings of the reading of CSVs: names of columns, adjusted prices, invalid rows, first dates, forming bars."""

from __future__ import annotations

from datetime import date, datetime

from pydantic import AliasChoices, ConfigDict, field_validator

from kronos_pipeline.names import NAME, PlainTexts
from kronos_pipeline.roles import Role, setting

COLUMN_MEANINGS = ("time", "date", "open", "high", "low", "close", "adj_close", "volume", "amount", "symbol")
"""The meanings that `--columns` gives to columns of a CSV."""


class ReadingSettings(PlainTexts):
    """Settings that shape the bars read from a CSV."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    columns: list[str] = setting(
        [],
        Role.BARS,
        description="columns of the CSVs by meaning, if their names do not tell: close=Price,volume=Turnover "
        f"(meanings: {', '.join(COLUMN_MEANINGS)}) [environment: KRONOS_COLUMNS]",
    )
    adjusted: bool = setting(
        False, Role.BARS, description="scale open, high, low and close by the column Adj Close over Close"
    )
    drop_bad_rows: str = setting(
        "0",
        Role.BARS,
        pattern=r"^(\d+|\d+(\.\d+)?%)$",
        description="largest number, or share such as 1%, of invalid rows of a ticker to leave out",
    )
    from_date: list[str] = setting(
        [],
        Role.BARS,
        validation_alias=AliasChoices("from_date", "from"),
        description="first date to read: 2001-01-01 for all tickers, AAPL=2001-01-01 for one (comma-separated)",
    )
    keep_forming: bool = setting(
        False, Role.BARS, description="keep a last bar that is still forming, instead of leaving it out"
    )

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, pairs: list[str]) -> list[str]:
        for pair in pairs:
            meaning, _, name = pair.partition("=")
            if meaning.strip().casefold() not in COLUMN_MEANINGS or not name.strip():
                raise ValueError(f"{pair!r} is not meaning=name, with a meaning of {', '.join(COLUMN_MEANINGS)}")
        return pairs

    @field_validator("from_date")
    @classmethod
    def _check_from_date(cls, dates: list[str]) -> list[str]:
        for text in dates:
            symbol, equals, day = text.rpartition("=")
            try:
                if equals and not NAME.fullmatch(symbol.strip()):
                    raise ValueError
                datetime.strptime(day.strip(), "%Y-%m-%d")
            except ValueError:
                raise ValueError(f"{text!r} is no date; write 2001-01-01, or AAPL=2001-01-01") from None
        return dates

    @property
    def reading(self) -> ReadingSettings:
        """The settings that shape the bars, without any others."""
        return ReadingSettings.model_validate(self.model_dump(include=set(ReadingSettings.model_fields)))

    @property
    def column_names(self) -> dict[str, str]:
        """The user's names of columns, by meaning."""
        pairs = (pair.partition("=") for pair in self.columns)
        return {meaning.strip().casefold(): name.strip() for meaning, _, name in pairs}

    def droppable_rows(self, rows: int) -> int:
        """Return the largest number of invalid rows to leave out of a ticker's `rows` rows."""
        if self.drop_bad_rows.endswith("%"):
            return int(rows * float(self.drop_bad_rows[:-1]) / 100)
        return int(self.drop_bad_rows)

    def first_date(self, ticker: str) -> date | None:
        """Return the first date to read of a ticker; a date for the ticker overrides the date for all."""
        dates: dict[str, date] = {}
        for text in self.from_date:
            symbol, _, day = text.rpartition("=")
            dates[symbol.strip().upper()] = date.fromisoformat(day.strip())
        return dates.get(ticker.upper(), dates.get(""))
