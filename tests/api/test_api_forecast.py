"""`kronos_pipeline.forecast`: frames as people have them, and a sentence for each frame that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kronos_pipeline import forecast
from kronos_pipeline.data.frames import read_frame
from kronos_pipeline.errors import DataError, ModelError, SettingsError

FILE = Path(__file__).resolve().parents[2] / "trainingdata" / "AAPL" / "AAPL.csv"


@pytest.fixture(scope="module")
def bars() -> pd.DataFrame:
    return pd.read_csv(FILE).tail(90).reset_index(drop=True)


def with_index(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.set_index(pd.DatetimeIndex(frame["timestamp"], name="Date")).drop(columns="timestamp")


@pytest.mark.parametrize(
    "shape",
    [
        lambda frame: frame.rename(columns=str.title),
        lambda frame: frame[::-1],
        with_index,
        lambda frame: with_index(frame).to_period("D"),
        lambda frame: with_index(frame).rename(columns=str.upper).assign(Ticker="AAPL"),
        lambda frame: frame.assign(timestamp=pd.to_datetime(frame["timestamp"])).set_index("timestamp"),
        lambda frame: pd.concat({"AAPL": with_index(frame)}, axis=1).swaplevel(axis=1),
        lambda frame: with_index(frame).assign(Date="last year"),
    ],
    ids=[
        "title case",
        "newest first",
        "index",
        "periods",
        "upper case",
        "named index",
        "two levels",
        "index and column",
    ],
)
def test_frames_of_any_shape_hold_the_same_bars(
    shape: Callable[[pd.DataFrame], pd.DataFrame], bars: pd.DataFrame
) -> None:
    assert read_frame(shape(bars), "df").content_hash == read_frame(bars, "df").content_hash


@pytest.mark.slow
def test_a_forecast_has_a_row_per_bar_with_mean_quantiles_and_probability(bars: pd.DataFrame) -> None:
    ahead = forecast(bars, horizon=4, model="kronos-nano", samples=8, seed=3)
    assert ahead["ds"].is_monotonic_increasing
    assert ahead["step"].tolist() == [1, 2, 3, 4]
    assert (ahead["ds"] > pd.Timestamp(bars["timestamp"].iloc[-1])).all()
    assert ahead["last"].eq(bars["close"].iloc[-1]).all()
    assert (ahead["lo_90"] <= ahead["median"]).all()
    assert (ahead["median"] <= ahead["hi_90"]).all()
    assert ahead["p_up"].between(0, 1).all()
    again = forecast(with_index(bars).rename(columns=str.title), horizon=4, model="kronos-nano", samples=8, seed=3)
    pd.testing.assert_frame_equal(again, ahead)
    other = forecast(bars, horizon=4, model="kronos-nano", samples=8, seed=4)
    assert not other["mean"].equals(ahead["mean"])
    holiday = forecast(bars, horizon=20, model="kronos-nano", samples=1, calendar="XNYS")
    assert pd.Timestamp("2024-11-28") not in set(holiday["ds"])  # Thanksgiving


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda frame: frame.assign(close=frame["close"].where(frame.index != 3)), "df, row 3: close: has no value"),
        (
            lambda frame: frame.astype({"open": object}).replace({"open": {frame["open"].iloc[5]: "n/a!"}}),
            "df, row 5: open: must be a number (found 'n/a!'); mend the frame, or drop them",
        ),
        (lambda frame: frame.assign(high=1.0), "df, row 0: high: is below the low, open or close of its bar"),
        (lambda frame: frame.drop(columns=["low", "close"]), "df: no column low, close among timestamp, open, high"),
        (lambda frame: frame.drop(columns="timestamp"), "df: no times: the index is none"),
        (lambda frame: frame.head(1), "df: a forecast needs 2 bars or more, and there is 1 bar"),
        (lambda frame: pd.concat([frame.assign(symbol="A"), frame.assign(symbol="B")]), "df: symbol names 2 tickers"),
        (
            lambda frame: pd.concat({"A": with_index(frame), "B": with_index(frame)}, axis=1),
            "choose one: df.xs('A', axis=1, level=0)",
        ),
        (lambda frame: "AAPL.csv", "df: a pandas DataFrame is needed, not str"),  # noqa: ARG005
    ],
)
def test_a_bad_frame_is_one_sentence_with_row_and_column(
    change: Callable[[pd.DataFrame], Any], sentence: str, bars: pd.DataFrame
) -> None:
    with pytest.raises(DataError) as raised:
        forecast(change(bars), model="kronos-nano")
    assert sentence in str(raised.value)
    assert "line" not in str(raised.value)
    assert "--" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        ({"horizon": 0}, SettingsError, "horizon=0: Input should be greater than or equal to 1"),
        ({"samples": "many"}, SettingsError, "samples='many': Input should be a valid integer"),
        ({"model": "kronos-nan"}, ModelError, "No model is called 'kronos-nan'"),
        ({"adapter": "nowhere"}, ModelError, "nowhere is no adapter or checkpoint of this project"),
    ],
)
def test_a_bad_argument_is_one_sentence(
    arguments: dict[str, Any], kind: type[Exception], sentence: str, bars: pd.DataFrame
) -> None:
    with pytest.raises(kind) as raised:
        forecast(bars, **arguments)
    assert sentence in str(raised.value)
