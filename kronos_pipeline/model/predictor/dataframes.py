"""Conversion between DataFrames and normalised arrays, compatible with upstream's `KronosPredictor`.

The arithmetic is upstream's, in float32 and on arrays of the same memory layout, so that sums are rounded alike. Mean
and standard deviation cover all bars given, also the bars that exceed the model's context.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kronos_pipeline.data.bars import FEATURES, PRICES
from kronos_pipeline.data.calendars import next_times
from kronos_pipeline.data.columns import header_meanings
from kronos_pipeline.data.normalisation import EPSILON
from kronos_pipeline.errors import KronosError, enumerate_some

TIME_FIELDS = ("minute", "hour", "weekday", "day", "month")
_VOLUME, _AMOUNT = FEATURES[4:]
_READABLE = ("datetime", "datetime64", "date", "string")


class InputError(KronosError, ValueError):
    """Error in a DataFrame, timestamps or an argument of a forecast; a ValueError too, as upstream raises."""


@dataclass(frozen=True)
class Series:
    """A series in the form that the decoder reads.

    Attributes:
        bars: normalised and clipped, (bars, 6), float32.
        past: minute, hour, weekday, day and month of the bars, (bars, 5).
        ahead: the same of the horizon, (horizon, 5).
        mean: mean of the bars, (6,), float32.
        std: standard deviation of the bars, (6,), float32.
        index: times of the horizon, as given.
    """

    bars: NDArray[np.float32]
    past: NDArray[np.uint8]
    ahead: NDArray[np.uint8]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    index: pd.Index


def as_integer(name: str, value: Any) -> int:
    """Return an argument as an integer; numpy's integers are accepted.

    Raises:
        InputError: the argument is no whole number.
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise InputError(f"{name} must be a whole number, not {value!r}.") from error


def as_number(name: str, value: Any) -> float:
    """Return an argument as a float.

    Raises:
        InputError: the argument is no number.
    """
    if isinstance(value, str):
        raise InputError(f"{name} must be a number, not {value!r}.")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be a number, not {value!r}.") from error


def complete_times(df: Any, x_timestamp: Any, y_timestamp: Any, horizon: int) -> tuple[Any, Any]:
    """Return the times of a frame's bars and of the horizon, those that are not given by the frame and its schedule.

    Raises:
        InputError: the frame has no times.
    """
    if x_timestamp is None:
        if not isinstance(df, pd.DataFrame):
            raise InputError(f"df must be a pandas DataFrame, not {type(df).__name__}.")
        meanings = header_meanings([str(column) for column in df.columns], {})
        times_of = [position for position, meaning in enumerate(meanings) if meaning and meaning[0] in ("time", "date")]
        if isinstance(df.index, pd.DatetimeIndex | pd.PeriodIndex):
            x_timestamp = df.index
        elif len(times_of) == 1:
            x_timestamp = df.iloc[:, times_of[0]]
        else:
            raise InputError("df has no times; give x_timestamp, a DatetimeIndex or a column timestamps.")
    if y_timestamp is None:
        times = _times(x_timestamp, "df: x_timestamp")
        stamps = times.to_timestamp() if isinstance(times, pd.PeriodIndex) else pd.DatetimeIndex(times)
        if len(stamps) < 2 or not stamps.is_monotonic_increasing:
            raise InputError("give y_timestamp, or 2 bars or more, oldest first, which tell the times to forecast.")
        local = stamps.tz_localize(None).to_numpy("datetime64[ns]")
        y_timestamp = next_times(local.astype(np.int64), horizon)
    return x_timestamp, y_timestamp


def read_series(df: Any, x_timestamp: Any, y_timestamp: Any, horizon: int, clip: float, name: str = "df") -> Series:
    """Check and normalise one series.

    Args:
        df: bars, oldest first, with columns open, high, low and close. Without a volume, volume and amount are 0;
            without an amount, it is the volume times the mean price.
        x_timestamp: times of the bars: a Series, an index, an array or a list.
        y_timestamp: times of the horizon.
        horizon: number of bars to forecast.
        clip: the largest size of a normalised value.
        name: name of the series in errors, "df" by default.

    Raises:
        InputError: something is missing, of the wrong length, or no finite number or time.
    """
    values = _values(df, name)
    if not len(values):
        raise InputError(f"{name} holds no bars; give the history to forecast from.")
    past, ahead = _times(x_timestamp, f"{name}: x_timestamp"), _times(y_timestamp, f"{name}: y_timestamp")
    if len(past) != len(values):
        raise InputError(f"{name} has {len(values)} bars and {len(past)} times in x_timestamp; give one for each bar.")
    if len(ahead) != horizon:
        raise InputError(f"{name}: y_timestamp has {len(ahead)} times; give pred_len of them, {horizon}.")
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = np.mean(values, axis=0), np.std(values, axis=0)
    if too_large := [str(column) for column, size in zip(FEATURES, std, strict=True) if not np.isfinite(size)]:
        raise InputError(
            f"{name}: infinity, or numbers too large for float32, in {enumerate_some(too_large)}; rescale them."
        )
    bars = np.clip((values - mean) / (std + EPSILON), -clip, clip)
    return Series(bars, _stamps(past), _stamps(ahead), mean, std, ahead)


def read_batch(dfs: Any, x_timestamps: Any, y_timestamps: Any, horizon: int, clip: float) -> list[Series]:
    """Check and normalise several series, given as lists or tuples; see `read_series`."""
    lists = {"df_list": dfs, "x_timestamp_list": x_timestamps, "y_timestamp_list": y_timestamps}
    for name, values in lists.items():
        if not isinstance(values, list | tuple):
            raise InputError(f"{name} must be a list or a tuple, not {type(values).__name__}.")
    if len(set(map(len, lists.values()))) > 1:
        lengths = ", ".join(f"{name} has {len(values)}" for name, values in lists.items())
        raise InputError(f"The lists must be of one length, an entry for each series: {lengths}.")
    entries = enumerate(zip(dfs, x_timestamps, y_timestamps, strict=True))
    return [read_series(*entry, horizon, clip, f"df_list[{index}]") for index, entry in entries]


def to_units(normalised: NDArray[np.float32], series: Series) -> NDArray[np.float32]:
    """Convert normalised bars of the horizon, (..., horizon, 6), to the units of their series."""
    return normalised * (series.std + EPSILON) + series.mean


def to_dataframe(values: NDArray[np.float32], series: Series) -> pd.DataFrame:
    """Convert the bars of the horizon, (horizon, 6), to a DataFrame indexed by time."""
    return pd.DataFrame(values, columns=list(FEATURES), index=series.index)


def paths_to_dataframe(values: NDArray[np.float32], series: Series) -> pd.DataFrame:
    """Convert the bars of each path, (paths, horizon, 6), to a DataFrame indexed by path and time."""
    index = pd.MultiIndex.from_product([range(len(values)), series.index], names=["path", series.index.name])
    return pd.DataFrame(values.reshape(-1, len(FEATURES)), columns=list(FEATURES), index=index)


def _values(df: Any, name: str) -> NDArray[np.float32]:
    """Extract the six features, (bars, 6)."""
    if not isinstance(df, pd.DataFrame):
        raise InputError(f"{name} must be a pandas DataFrame, not {type(df).__name__}.")
    if missing := [price for price in PRICES if price not in df.columns]:
        columns = enumerate_some([str(column) for column in df.columns]) or "none"
        raise InputError(
            f"{name}: price columns {enumerate_some(missing)} are missing among {columns}; names are lower case."
        )
    features = df[[column for column in FEATURES if column in df.columns]].copy()
    if features.columns.nlevels > 1:
        raise InputError(f"{name}: the columns have {features.columns.nlevels} levels; give them one.")
    if (duplicated := features.columns[features.columns.duplicated()]).size:
        raise InputError(f"{name}: there is more than one column {enumerate_some(duplicated)}; give each once.")
    features = _numbers(features, name)
    try:
        if _VOLUME not in features:
            features[_VOLUME] = features[_AMOUNT] = 0.0
        elif _AMOUNT not in features:
            features[_AMOUNT] = features[_VOLUME] * features[list(PRICES)].mean(axis=1)
        return features[list(FEATURES)].to_numpy().astype(np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} holds something that is no number: {error}.") from error


def _numbers(features: pd.DataFrame, name: str) -> pd.DataFrame:
    """Parse numbers that are stored as text, as upstream's arithmetic does, and check that no value is missing."""
    for column in features.columns[features.dtypes.map(pd.api.types.is_object_dtype) | (features.dtypes == "string")]:
        read = pd.to_numeric(features[column], errors="coerce")
        if (unread := (read.isna() & features[column].notna()).to_numpy()).any():
            row = int(unread.argmax())
            raise InputError(
                f"{name} holds something that is no number: {column} of bar {row} is {features[column].iloc[row]!r}."
            )
        features[column] = read
    if (missing := features.columns[features.isna().any()]).size:
        raise InputError(f"{name} contains NaN values in {enumerate_some(missing)}; fill or drop those bars.")
    return features


def _times(stamps: Any, name: str) -> pd.Index:
    """Convert times to an index of datetimes or periods; such an index is returned unchanged."""
    try:
        index = pd.Index(stamps.infer_objects() if isinstance(stamps, pd.Series) else stamps)
        if not isinstance(index, pd.DatetimeIndex | pd.PeriodIndex):
            if (kind := pd.api.types.infer_dtype(index)) not in _READABLE:
                raise TypeError(f"{kind} values are no times")
            index = pd.DatetimeIndex(index)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} must be timestamps, as a Series or a DatetimeIndex ({error}).") from error
    if index.hasnans:
        raise InputError(f"{name} holds a time that is missing (NaT).")
    return index


def _stamps(times: Any) -> NDArray[np.uint8]:
    """Return minute, hour, weekday, day and month, (bars, 5)."""
    return np.stack([np.asarray(getattr(times, field)) for field in TIME_FIELDS], axis=1).astype(np.uint8)
