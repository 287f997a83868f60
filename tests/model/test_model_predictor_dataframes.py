"""DataFrames and times given to `KronosPredictor` are read as upstream reads them, or rejected with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from price_frames import CLOCK, assert_forecast, candles, sharp_predictor, sharp_tokenizer, times
from sktime.libs.kronos import KronosPredictor as Upstream

from kronos_pipeline import KronosPredictor
from kronos_pipeline.errors import KronosError

BARS, HORIZON = 24, 4
MODEL, TOKENIZER = sharp_predictor(), sharp_tokenizer()
OURS, THEIRS = KronosPredictor(MODEL, TOKENIZER), Upstream(MODEL, TOKENIZER)
PRICES = ["open", "high", "low", "close"]


def forecast(predictor: Any, df: Any, past: Any, ahead: Any, horizon: Any = HORIZON, **settings: Any) -> pd.DataFrame:
    torch.manual_seed(11)
    result: pd.DataFrame = predictor.predict(df, past, ahead, horizon, **{"verbose": False, **settings})
    return result


def shifted(df: pd.DataFrame) -> pd.DataFrame:
    return df.set_axis(pd.date_range("1999-01-01", periods=len(df), freq="D"))


FRAMES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "no volume": lambda df: df[PRICES],
    "no volume but an amount": lambda df: df.drop(columns="volume"),
    "no amount": lambda df: df.drop(columns="amount"),
    "other columns and another order": lambda df: df.assign(name="x", date=CLOCK)[[*df.columns[::-1], "name", "date"]],
    "another index": shifted,
    "whole numbers": lambda df: df.round().astype(int),
    "mixed types": lambda df: df.round(2).astype({"volume": int, "open": np.float32, "amount": object}),
    "objects": lambda df: df.astype(object),
    "texts": lambda df: df.round(3).astype(str).astype(object),
    "nullable": lambda df: df.convert_dtypes(),
    "arrow": lambda df: df.astype("double[pyarrow]"),
    "float32": lambda df: df.astype(np.float32),
    "rows of a larger one": lambda df: pd.concat([df, df]).iloc[: len(df)],
    "a view of other memory": lambda df: pd.DataFrame(np.ascontiguousarray(df.to_numpy()), columns=df.columns),
    "a price that never moves": lambda df: df.assign(close=5.0),
    "no trade at all": lambda df: df.assign(volume=0, amount=0),
    "large amounts": lambda df: df.assign(amount=df["amount"] * 1e11),
    "negative prices": lambda df: df.assign(close=-df["close"]),
    "an outlier": lambda df: df.assign(volume=df["volume"].where(df.index != 3, 1e9)),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", FRAMES.values(), ids=FRAMES)
def test_every_frame_that_upstream_takes_gives_its_forecast(change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    df, (past, ahead) = change(candles(BARS)), times(BARS, HORIZON)
    expected = forecast(THEIRS, df, past, ahead)
    result = forecast(OURS, df, past, ahead)
    numbers = df.reindex(columns=expected.columns).astype(float)
    assert_forecast(result, expected, numbers.fillna({"amount": numbers["volume"] * numbers["close"]}).fillna(0.0))


TIMES: dict[str, Callable[[pd.Series], Any]] = {
    "a named series": lambda clock: clock,
    "without a name": lambda clock: clock.rename(None),
    "another index": lambda clock: clock.set_axis(range(100, 100 + len(clock))),
    "a time zone": lambda clock: clock.dt.tz_localize("America/New_York"),
    "seconds": lambda clock: clock.astype("datetime64[s]"),
    "periods": lambda clock: clock.dt.to_period("min"),
}


@pytest.mark.parametrize("change", TIMES.values(), ids=TIMES)
def test_every_series_of_times_that_upstream_takes_gives_its_forecast(change: Callable[[pd.Series], Any]) -> None:
    df, stamps = candles(BARS), [change(part) for part in times(BARS, HORIZON)]
    assert_forecast(forecast(OURS, df, *stamps), forecast(THEIRS, df, *stamps), df)


MORE_TIMES: dict[str, Callable[[pd.Series], Any]] = {
    "index": lambda clock: pd.DatetimeIndex(clock, freq="45min"),
    "period index": lambda clock: pd.PeriodIndex(clock, freq="min"),
    "zoned index": lambda clock: pd.DatetimeIndex(clock.dt.tz_localize("Asia/Shanghai")),
    "array": lambda clock: clock.to_numpy(),
    "list of timestamps": list,
    "tuple of datetimes": lambda clock: tuple(clock.dt.to_pydatetime()),
    "list of texts": lambda clock: clock.astype(str).tolist(),
    "series of texts": lambda clock: clock.astype(str),
    "series of objects": lambda clock: clock.astype(object),
    "arrow": lambda clock: clock.astype("timestamp[ns][pyarrow]"),
}


@pytest.mark.parametrize("change", MORE_TIMES.values(), ids=MORE_TIMES)
@pytest.mark.filterwarnings("ignore:The behavior of DatetimeProperties.to_pydatetime")
def test_times_in_other_forms_give_the_same_numbers(change: Callable[[pd.Series], Any]) -> None:
    df, (past, ahead) = candles(BARS), times(BARS, HORIZON)
    expected = forecast(THEIRS, df, past, ahead)
    result = forecast(OURS, df, change(past), change(ahead))
    assert len(result.index) == HORIZON
    assert isinstance(result.index, pd.PeriodIndex | pd.DatetimeIndex)
    if isinstance(change(ahead), pd.Index):
        assert result.index is change(ahead) or result.index.equals(change(ahead))
        assert result.index.freq == change(ahead).freq
    assert_forecast(result.set_axis(expected.index), expected, df)


def test_dates_without_a_time_of_day_will_do() -> None:
    days = pd.Series(pd.date_range("2024-01-28", periods=BARS + HORIZON))
    df = candles(BARS)
    result = forecast(OURS, df, list(days.dt.date[:BARS]), list(days.dt.date[BARS:]))
    assert_forecast(result, forecast(THEIRS, df, days[:BARS], days[BARS:]), df)


def without(frame: pd.DataFrame, value: float | None, column: str) -> pd.DataFrame:
    values: Any = value
    return frame.assign(**{column: frame[column].where(frame.index != 2, values)})


PAST, AHEAD, DF = *times(BARS, HORIZON), candles(BARS)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no frame": ({"df": DF.to_numpy()}, "df must be a pandas DataFrame, not ndarray"),
    "none": ({"df": None}, "must be a pandas DataFrame"),
    "no close": ({"df": DF.drop(columns="close")}, "price columns close are missing among open, high"),
    "capitals": ({"df": DF.rename(columns=str.title)}, "open, high, low, close are missing.*names are lower case"),
    "nan price": ({"df": without(DF, np.nan, "high")}, "NaN values in high"),
    "nan volume": ({"df": without(DF, np.nan, "volume")}, "NaN values in volume"),
    "none in objects": ({"df": without(DF.astype(object), None, "low")}, "NaN values in low"),
    "too many times ahead": (
        {"y_timestamp": CLOCK[BARS : BARS + HORIZON + 1]},
        "has 5 times; give pred_len of them, 4",
    ),
    "too few times ahead": ({"y_timestamp": AHEAD[1:]}, "has 3 times; give pred_len of them, 4"),
    "too long a forecast": (
        {"pred_len": 40, "max_context": 30, "y_timestamp": CLOCK[BARS : BARS + 40]},
        "pred_len=40 exceeds max_context=30",
    ),
}
NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    "no bars": ({"df": DF[:0], "x_timestamp": PAST[:0]}, "df holds no bars"),
    "infinity": ({"df": without(DF, np.inf, "open")}, "infinity, or numbers too large for float32, in open"),
    "beyond float32": ({"df": DF.assign(amount=DF["amount"] * 1e30)}, "numbers too large for float32, in amount"),
    "text": (
        {"df": DF.astype(object).replace({"close": {DF["close"][3]: "n/a"}})},
        "no number: close of bar 3 is 'n/a'",
    ),
    "a column twice": ({"df": pd.concat([DF, DF[["close"]]], axis=1)}, "more than one column close; give each"),
    "columns of two levels": ({"df": pd.concat({name: DF[[name]] for name in DF}, axis=1)}, "columns have 2 levels"),
    "too few times": ({"x_timestamp": PAST[1:]}, "has 24 bars and 23 times in x_timestamp"),
    "too many times": ({"x_timestamp": CLOCK[: BARS + 1]}, "has 24 bars and 25 times in x_timestamp"),
    "a time is missing": ({"x_timestamp": PAST.where(PAST.index != 4)}, r"x_timestamp holds a time that is missing"),
    "a time to come is missing": (
        {"y_timestamp": AHEAD.where(AHEAD.index != BARS)},
        "y_timestamp holds a time that is",
    ),
    "numbers for times": ({"x_timestamp": pd.Series(range(BARS))}, "x_timestamp must be timestamps.*integer"),
    "one text for times": ({"y_timestamp": "2024-01-01"}, "y_timestamp must be timestamps"),
    "no text of times": ({"y_timestamp": ["tomorrow"] * HORIZON}, "y_timestamp must be timestamps"),
    "a frame for times": ({"x_timestamp": PAST.to_frame()}, "x_timestamp must be timestamps"),
    "durations": ({"x_timestamp": PAST - PAST[0]}, "x_timestamp must be timestamps.*timedelta"),
    "nothing for times": ({"x_timestamp": None}, "df has no times; give x_timestamp"),
    "no horizon": ({"pred_len": 0, "y_timestamp": AHEAD[:0]}, "pred_len must be 1 or more, not 0"),
    "a fractional horizon": ({"pred_len": 4.0}, "pred_len must be a whole number, not 4.0"),
    "no path": ({"sample_count": 0}, "sample_count must be 1 or more, not 0"),
    "a fractional top k": ({"top_k": 2.5}, "top_k must be a whole number, not 2.5"),
    "no temperature": ({"T": 0.0}, "T must be above 0, not 0.0; .*top_k=1"),
    "a temperature below": ({"T": -1}, "T must be above 0"),
    "nan temperature": ({"T": np.nan}, "T must be above 0"),
    "nan top p": ({"top_p": np.nan}, "top_p is no number"),
    "text for top p": ({"top_p": "most"}, "top_p must be a number, not 'most'"),
    "two sources of draws": ({"seed": 1, "generator": torch.Generator()}, "seed and generator are both given"),
    "a text for a seed": ({"seed": "x"}, "seed must be a whole number, not 'x'"),
    "a seed too large": ({"seed": 2**70}, "seed must be from 0 to"),
    "no generator": ({"generator": 3}, "generator must be a torch.Generator, not int"),
    "a list of adapters for one series": ({"adapter": ["AAPL"]}, "no adapter"),
    "no such adapter": ({"adapter": "AAPL"}, "no adapter 'AAPL'; the predictor was made with none"),
}


def call(kind: Any, changes: dict[str, Any], method: str = "predict") -> Any:
    arguments: dict[str, Any] = {"df": DF, "x_timestamp": PAST, "y_timestamp": AHEAD, "pred_len": HORIZON, **changes}
    context = {"max_context": arguments.pop("max_context", 512)}
    return getattr(kind(MODEL, TOKENIZER, **context), method)(**arguments, verbose=False)


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_where_upstream_raises_a_value_error_so_is_one_raised_here(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its text is upstream's affair
        call(Upstream, changes)
    for method in ("predict", "sample"):
        with pytest.raises(ValueError, match=message) as caught:
            call(KronosPredictor, changes, method)
        assert isinstance(caught.value, KronosError)


@pytest.mark.parametrize(("changes", "message"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_told_as_such(changes: dict[str, Any], message: str) -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=message) as caught:
        call(KronosPredictor, changes)
    assert isinstance(caught.value, KronosError)
    assert torch.equal(torch.get_rng_state(), before)


LISTS: dict[str, tuple[dict[str, Any], str]] = {
    "a frame": ({"df_list": DF}, "df_list must be a list or a tuple, not DataFrame"),
    "a series": ({"x_timestamp_list": PAST}, "x_timestamp_list must be a list or a tuple, not Series"),
    "unequal": ({"y_timestamp_list": [AHEAD] * 3}, "one length.*df_list has 2, .*y_timestamp_list has 3"),
    "no frame": ({"df_list": [DF, None]}, r"df_list\[1\] must be a pandas DataFrame"),
    "no close": ({"df_list": [DF, DF.drop(columns="close")]}, r"df_list\[1\]: price columns close are missing"),
    "nan": ({"df_list": [DF, without(DF, np.nan, "open")]}, r"df_list\[1\] contains NaN values in open"),
    "too few times": ({"x_timestamp_list": [PAST[1:], PAST]}, r"df_list\[0\] has 24 bars and 23 times"),
    "too few times ahead": ({"y_timestamp_list": [AHEAD, AHEAD[1:]]}, r"df_list\[1\]: y_timestamp has 3 times"),
}


@pytest.mark.parametrize(("changes", "message"), LISTS.values(), ids=LISTS)
def test_a_batch_that_upstream_refuses_is_refused_by_place(changes: dict[str, Any], message: str) -> None:
    arguments = {"df_list": [DF] * 2, "x_timestamp_list": [PAST] * 2, "y_timestamp_list": (AHEAD,) * 2, **changes}
    with pytest.raises(ValueError):  # noqa: PT011
        THEIRS.predict_batch(**arguments, pred_len=HORIZON, verbose=False)
    for method in (OURS.predict_batch, OURS.sample_batch):
        with pytest.raises(ValueError, match=message) as caught:
            method(**arguments, pred_len=HORIZON, verbose=False)
        assert isinstance(caught.value, KronosError)


def test_a_precision_that_is_none_is_told() -> None:
    with pytest.raises(ValueError, match="precision must be fp32 or bf16, not 'fp8'"):
        KronosPredictor(MODEL, TOKENIZER, precision="fp8")


@pytest.mark.parametrize("device", ["gpu", "cuda:97", "mps:", 3.5])
def test_a_device_that_is_none_here_is_told(device: Any) -> None:
    with pytest.raises(ValueError, match=f"device={device!r}"):
        KronosPredictor(MODEL, TOKENIZER, device)


def test_a_tokenizer_of_another_model_is_told() -> None:
    with pytest.raises(ValueError, match=r"tokens have \(4, 4\) bits, the tokenizer's \(6, 6\)"):
        KronosPredictor(sharp_predictor(bits=4), TOKENIZER)
