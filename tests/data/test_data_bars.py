"""Bars as an artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from market_files import daily_frame, read_frame

from kronos_pipeline.artifacts import read_parquet, write_parquet
from kronos_pipeline.data.bars import FEATURES, load_bars, save_bars
from kronos_pipeline.errors import ArtifactError


def test_saved_bars_come_back_as_they_were(tmp_path: Path) -> None:
    times = pd.date_range("2024-01-02", periods=50, tz="America/New_York").strftime("%Y-%m-%d %H:%M:%S%z")
    bars = read_frame(tmp_path, daily_frame(50).assign(Date=times, Extra=1))
    save_bars(tmp_path / "ACME.parquet", bars)

    loaded = load_bars(tmp_path / "ACME.parquet")

    pd.testing.assert_frame_equal(loaded.frame, bars.frame)
    for name in ("ticker", "content_hash", "source", "time_zone", "notes"):
        assert getattr(loaded, name) == getattr(bars, name)
    assert loaded.notes == ("columns that are ignored: Extra",)


def test_a_frame_is_times_and_features_in_their_order_and_types(tmp_path: Path) -> None:
    frame = read_frame(tmp_path, daily_frame(50)).frame

    assert list(frame.columns) == ["timestamps", *FEATURES]
    assert frame["timestamps"].dtype == np.dtype("datetime64[ns]")
    assert (frame[list(FEATURES)].dtypes == np.float64).all()
    assert isinstance(frame.index, pd.RangeIndex)


def test_the_hash_is_of_the_content_and_not_of_how_the_file_is_written(tmp_path: Path) -> None:
    frame = daily_frame(50)
    bars = read_frame(tmp_path, frame)
    shuffled = frame[["Close", "Volume", "Date", "Low", "High", "Open"]].rename(columns=str.upper)
    changed = frame.copy()
    changed.loc[20:20, "Volume"] += 1

    assert read_frame(tmp_path / "other", shuffled).content_hash == bars.content_hash
    assert read_frame(tmp_path / "other", frame.assign(Volume=frame["Volume"] * 1.0)).content_hash == bars.content_hash
    assert read_frame(tmp_path, changed).content_hash != bars.content_hash
    assert read_frame(tmp_path, frame.assign(Date=frame["Date"] + pd.Timedelta("1D"))).content_hash != bars.content_hash


def test_bars_that_are_not_those_that_were_written_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ACME.parquet"
    save_bars(path, read_frame(tmp_path, daily_frame(50)))
    frame, manifest = read_parquet(path)
    write_parquet(path, frame.assign(close=frame["close"] * 2), manifest)

    with pytest.raises(ArtifactError, match=r"ACME.parquet is damaged"):
        load_bars(path)


def test_a_parquet_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ACME.parquet"
    write_parquet(path, pd.DataFrame({"a": [1]}), {"ticker": "ACME"})
    with pytest.raises(ArtifactError, match="holds no bars"):
        load_bars(path)
