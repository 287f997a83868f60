"""Windows: where they lie, what they leave out and count, and what they say of too few bars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pandera
import pytest
from market_files import daily_frame, read_frame

from kronos_pipeline.config import Recipe
from kronos_pipeline.data import windows as windows_module
from kronos_pipeline.data.bars import FEATURES, Bars, make_bars
from kronos_pipeline.data.normalisation import denormalise, lookback_statistics, normalise, rolling_statistics
from kronos_pipeline.data.windows import (
    WindowSet,
    build_all_windows,
    build_windows,
    load_windows,
    row_statistics,
    save_windows,
)
from kronos_pipeline.errors import ArtifactError, DataError, SettingsError

PRICES = ["Open", "High", "Low", "Close"]
RECIPE = Recipe(lookback=20, horizon=5, validation_days=15, selection_days=30)


def bars_of(frame: pd.DataFrame, ticker: str = "ACME") -> Bars:
    frame = frame.rename(columns={"Date": "timestamps"}).rename(columns=str.lower)
    return make_bars(ticker, frame.assign(amount=frame["volume"] * frame["close"]), source=f"{ticker}.csv")


def with_settings(**settings: object) -> Recipe:
    return Recipe.model_validate({**RECIPE.model_dump(), **settings})


def targets_of(windows: WindowSet, split: str) -> list[int]:
    rows = windows.of_split(split)
    return [bar for origin, end in zip(rows["origin"], rows["end"], strict=True) for bar in range(origin + 1, end)]


def test_each_split_has_the_windows_that_its_bars_give() -> None:
    windows = build_windows(bars_of(daily_frame(200)), RECIPE)

    assert (windows.selection_start, windows.holdout_start) == (155, 185)
    train, selection, holdout = (windows.of_split(split) for split in ("train", "selection", "holdout"))
    assert list(train["start"]) == list(range(155 - 26 + 1))
    assert list(selection["start"]) == list(range(155 - 20, 185 - 26 + 1))
    assert holdout[["start", "origin", "end"]].to_numpy().tolist() == [
        [165, 184, 190],
        [170, 189, 195],
        [175, 194, 200],
    ]
    for rows, span in ((train, 26), (selection, 26), (holdout, 25)):
        assert (rows["end"] - rows["start"] == span).all()
        assert (rows["origin"] - rows["start"] == 19).all()
    assert windows.counts() == {"train": 130, "selection": 25, "holdout": 3}
    assert windows.excluded == {"targets in two splits": 10}


def test_a_windows_lookback_may_reach_back_but_its_targets_lie_in_its_split() -> None:
    windows = build_windows(bars_of(daily_frame(200)), RECIPE)

    assert max(targets_of(windows, "train")) == 154
    assert set(targets_of(windows, "selection")) == set(range(155, 185))
    assert targets_of(windows, "holdout") == list(range(185, 200))
    assert windows.of_split("selection")["start"].min() < 155


def test_the_last_roll_is_cut_at_the_last_bar() -> None:
    windows = build_windows(bars_of(daily_frame(200)), with_settings(validation_days=13))
    assert (windows.of_split("holdout")["end"] - windows.of_split("holdout")["origin"] - 1).tolist() == [5, 5, 3]


def test_a_stride_thins_training_from_its_newest_window_back_and_selection_not() -> None:
    windows = build_windows(bars_of(daily_frame(200)), with_settings(stride=7))

    train = windows.of_split("train")
    assert train["end"].iloc[-1] == 155
    assert set(np.diff(train["start"])) == {7}
    assert windows.counts()["selection"] == 25


def test_days_are_the_files_own_dates_however_many_bars_each_has() -> None:
    frame = daily_frame(600, freq="h")
    windows = build_windows(bars_of(frame), with_settings(validation_days=2, selection_days=3))

    days = frame["Date"].dt.date
    assert days[windows.holdout_start :].nunique() == 2
    assert days[windows.selection_start : windows.holdout_start].nunique() == 3
    assert days[windows.holdout_start - 1] != days[windows.holdout_start]


def test_bars_count_in_place_of_days_where_they_are_set() -> None:
    windows = build_windows(bars_of(daily_frame(600, freq="h")), with_settings(validation_bars=17, selection_bars=29))

    assert (windows.selection_start, windows.holdout_start) == (600 - 17 - 29, 600 - 17)


def test_the_newest_cutoffs_are_kept_and_the_others_counted() -> None:
    windows = build_windows(bars_of(daily_frame(200)), with_settings(max_cutoffs=2))

    assert windows.of_split("holdout")["origin"].tolist() == [189, 194]
    assert windows.excluded["cutoffs above --max-cutoffs"] == 1


def test_statistics_are_those_of_the_lookback_bars() -> None:
    bars = bars_of(daily_frame(200))
    windows = build_windows(bars, RECIPE)

    mean, std = row_statistics(windows.rows)

    for row, start in enumerate(windows.rows["start"]):
        expected = lookback_statistics(bars.values[start : start + windows.lookback])
        np.testing.assert_allclose(mean[row], expected[0], rtol=1e-13)
        np.testing.assert_allclose(std[row], expected[1], rtol=1e-11)


def test_a_lookback_and_horizon_above_the_context_lose_their_oldest_bars_in_statistics_too() -> None:
    bars = bars_of(daily_frame(1000))
    windows = build_windows(bars, Recipe(lookback=512, horizon=30))

    assert windows.lookback == 512 - 31
    first = windows.rows.iloc[0]
    assert first["origin"] - first["start"] + 1 == 481
    assert first["mean_close"] == pytest.approx(bars.frame["close"][first["start"] : first["origin"] + 1].mean())


def test_a_lookback_above_the_context_is_refused() -> None:
    with pytest.raises(SettingsError, match="--lookback 513 is above the context"):
        build_windows(bars_of(daily_frame(1000)), Recipe(lookback=513))


def test_normalising_is_undone_by_denormalising_and_clips_at_five() -> None:
    values = bars_of(daily_frame(60)).values.reshape(3, 20, 6)
    mean, std = lookback_statistics(values)

    normalised = normalise(values, mean, std)

    assert normalised.dtype == np.float32
    assert mean.shape == std.shape == (3, 6)
    np.testing.assert_allclose(normalised.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(denormalise(normalised, mean, std), values, rtol=1e-5)
    outlier = np.full((1, 6), 1e9)
    assert (normalise(outlier, mean[0], std[0]) == 5).all()
    assert (normalise(-outlier, mean[0], std[0]) == -5).all()


def test_stamps_are_minute_hour_weekday_day_and_month() -> None:
    frame = daily_frame(200).assign(Date=pd.date_range("2023-12-31 23:55", periods=200, freq="5min"))
    windows = build_windows(bars_of(frame), with_settings(validation_bars=15, selection_bars=30))

    assert windows.stamps.dtype == np.uint8
    assert windows.stamps[:2].tolist() == [[55, 23, 6, 31, 12], [0, 0, 0, 1, 1]]


def test_windows_across_a_long_hole_are_left_out_and_counted() -> None:
    frame = daily_frame(700, freq="D").drop(index=range(300, 311)).reset_index(drop=True)

    with_gap = build_windows(bars_of(frame), with_settings(max_gap=11))
    split = build_windows(bars_of(frame), with_settings(max_gap=10))

    left_out = with_gap.counts()["train"] - split.counts()["train"]
    assert left_out == split.excluded["hole longer than --max-gap"] == 25
    assert "hole longer than --max-gap" not in with_gap.excluded
    assert not ((split.rows["start"] < 300) & (split.rows["end"] > 300)).any()


def test_cutoffs_across_a_long_hole_are_left_out_and_counted() -> None:
    frame = daily_frame(400, freq="D").drop(index=range(390, 395)).reset_index(drop=True)

    windows = build_windows(bars_of(frame), with_settings(max_gap=4))

    assert windows.holdout_start == 380
    # Five bars after the hole are the third roll's targets; the second roll ends at it.
    assert windows.of_split("holdout")["end"].tolist() == [385, 390]
    assert windows.excluded["cutoffs with a hole longer than --max-gap"] == 1


def test_windows_over_a_jump_like_a_split_are_left_out_and_counted() -> None:
    frame = daily_frame(700)
    frame.loc[300:, PRICES] /= 10

    with_jumps = build_windows(bars_of(frame), with_settings(keep_jumps=True))
    windows = build_windows(bars_of(frame), RECIPE)

    span = RECIPE.lookback + RECIPE.horizon + 1
    left_out = windows.excluded["jump like an unadjusted split"]
    assert left_out == with_jumps.counts()["train"] - windows.counts()["train"] == span - 1
    assert not ((windows.rows["start"] < 300) & (windows.rows["end"] > 300)).any()
    assert "jump like an unadjusted split" not in with_jumps.excluded


def test_cutoffs_over_a_jump_are_left_out_and_counted() -> None:
    frame = daily_frame(400)
    frame.loc[398:, PRICES] *= 100

    windows = build_windows(bars_of(frame), RECIPE)

    with_jumps = build_windows(bars_of(frame), with_settings(keep_jumps=True))
    assert windows.excluded["cutoffs over a jump like an unadjusted split"] == 1
    assert windows.of_split("holdout")["end"].tolist() == with_jumps.of_split("holdout")["end"].tolist()[:-1]


def test_no_training_window_depends_on_the_moves_of_the_holdout() -> None:
    frame = daily_frame(400)
    frame.loc[200:, PRICES] /= 2
    wild = frame.copy()
    wild.loc[385:, PRICES] *= np.where(np.arange(15) % 2, 1.3, 1.0)[:, None]

    assert build_windows(bars_of(frame), RECIPE).training_hash == build_windows(bars_of(wild), RECIPE).training_hash


def test_a_ticker_of_jumps_alone_is_refused_with_the_way_out() -> None:
    frame = daily_frame(400)
    frame.loc[::10, PRICES] *= 100

    with pytest.raises(DataError, match=r"a jump like an unadjusted split.*--keep-jumps"):
        build_windows(bars_of(frame), RECIPE)


def test_weekends_and_nights_and_half_holidays_are_no_holes() -> None:
    dates = pd.date_range("2024-01-01", periods=40, freq="B")
    times = [date + pd.Timedelta(minutes=570 + 5 * bar) for date in dates for bar in range(78 if date.day != 3 else 40)]
    frame = daily_frame(len(times)).assign(Date=times)

    windows = build_windows(bars_of(frame), with_settings(max_gap=1, validation_days=2, selection_days=3))

    assert windows.excluded == {"targets in two splits": 10}


def test_a_flat_lookback_is_left_out_and_counted() -> None:
    frame = daily_frame(300)
    frame.loc[100:129, PRICES] = frame["Close"].iloc[99] + 0.1

    windows = build_windows(bars_of(frame), RECIPE)

    assert windows.excluded["flat lookback"] == 30 - 20 + 1
    assert (windows.rows["std_close"] > 0).all()
    assert not windows.rows["start"].isin(range(100, 111)).any()


def test_a_constant_series_is_refused_as_what_it_is() -> None:
    frame = daily_frame(300).assign(Open=7, High=7, Low=7, Close=7)
    with pytest.raises(DataError, match=r"ACME.csv: the close is 7 in all 300 bars: a constant series has nothing"):
        build_windows(bars_of(frame), RECIPE)


def test_a_split_whose_lookbacks_are_all_flat_is_refused() -> None:
    frame = daily_frame(300)
    frame.loc[:260, ["Open", "High", "Low", "Close"]] = 7
    with pytest.raises(DataError, match="no train window is left: the close does not move in the lookback of any"):
        build_windows(bars_of(frame), RECIPE)


def test_a_split_without_a_window_that_holes_leave_is_refused() -> None:
    frame = daily_frame(400, freq="D")
    frame = frame[(np.arange(400) % 20 < 12) | (np.arange(400) < 200)].reset_index(drop=True)
    with pytest.raises(DataError, match=r"no selection window is left: of .* cross a hole of more than --max-gap 3"):
        build_windows(bars_of(frame), with_settings(max_gap=3))


@pytest.mark.parametrize("bars", [1, 10, 70])
def test_too_few_bars_are_refused_with_how_many_there_are_and_are_needed_and_why(bars: int) -> None:
    with pytest.raises(DataError) as caught:
        build_windows(bars_of(daily_frame(bars)), RECIPE)

    message = str(caught.value)
    assert f"ACME.csv: {bars} bars, and 71 are needed: 26 for one training window" in message
    assert "(lookback 20 + --horizon 5 + 1), 30 for --selection-days 30, 15 for --validation-days 15" in message


def test_as_many_bars_as_are_needed_are_enough() -> None:
    assert build_windows(bars_of(daily_frame(71)), RECIPE).counts() == {"train": 1, "selection": 25, "holdout": 3}


def test_a_selection_block_below_one_horizon_is_refused_by_its_setting() -> None:
    with pytest.raises(
        DataError, match=r"--selection-bars 5 holds 5 bars, and a selection window needs 6 \(--horizon 5"
    ):
        build_windows(bars_of(daily_frame(300)), with_settings(selection_bars=5))


def test_intraday_days_that_ask_for_too_much_are_refused_with_an_estimate() -> None:
    with pytest.raises(DataError, match=r"480 bars, and about 1106 are needed: .* 720 for --selection-days 30"):
        build_windows(bars_of(daily_frame(480, freq="h")), RECIPE)


def test_rows_grow_with_bars_and_not_with_the_lookback() -> None:
    bars = bars_of(daily_frame(2500))
    short, long = (
        build_windows(bars, with_settings(lookback=lookback)).rows.memory_usage().sum() for lookback in (20, 400)
    )

    assert long < short
    assert short < 2.5 * bars.frame.memory_usage().sum()


def test_saved_windows_come_back_as_they_were(tmp_path: Path) -> None:
    bars = bars_of(daily_frame(300))
    windows = build_windows(bars, with_settings(max_cutoffs=1))
    save_windows(tmp_path / "ACME.parquet", windows, RECIPE)

    loaded = load_windows(tmp_path / "ACME.parquet", bars)

    pd.testing.assert_frame_equal(loaded.rows, windows.rows)
    np.testing.assert_array_equal(loaded.stamps, windows.stamps)
    for name in ("lookback", "horizon", "excluded", "selection_start", "holdout_start", "training_hash", "ticker"):
        assert getattr(loaded, name) == getattr(windows, name)


def test_windows_of_other_bars_are_refused(tmp_path: Path) -> None:
    save_windows(tmp_path / "ACME.parquet", build_windows(bars_of(daily_frame(300)), RECIPE), RECIPE)

    with pytest.raises(ArtifactError, match="was cut from other bars than these of ACME; materialise it again"):
        load_windows(tmp_path / "ACME.parquet", bars_of(daily_frame(301)))


def test_a_file_that_holds_no_windows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ACME.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ArtifactError, match=r"ACME.parquet"):
        load_windows(tmp_path / "ACME.parquet", bars_of(daily_frame(300)))


def test_the_training_hash_knows_the_bars_before_the_holdout_and_no_later_one() -> None:
    frame = daily_frame(200)
    windows = build_windows(bars_of(frame), RECIPE)
    later, earlier = frame.copy(), frame.copy()
    later.loc[185:, PRICES] *= 1.3
    earlier.loc[50:50, "Volume"] += 1

    assert build_windows(bars_of(later), RECIPE).training_hash == windows.training_hash
    assert build_windows(bars_of(earlier), RECIPE).training_hash != windows.training_hash
    assert build_windows(bars_of(frame), with_settings(stride=2)).training_hash != windows.training_hash
    assert build_windows(bars_of(frame, "OTHER"), RECIPE).training_hash != windows.training_hash


def test_windows_come_from_a_csv_as_from_a_frame(tmp_path: Path) -> None:
    windows = build_windows(read_frame(tmp_path, daily_frame(200)), RECIPE)
    assert windows.ticker == "ACME"
    assert list(windows.bars.frame.columns) == ["timestamps", *FEATURES]


@pytest.mark.slow
def test_many_tickers_have_the_windows_that_each_has_alone_and_the_unfit_ones_are_named(tmp_path: Path) -> None:
    fit = [read_frame(tmp_path, daily_frame(100 + number, seed=number), f"T{number:03}") for number in range(60)]
    short = read_frame(tmp_path, daily_frame(20), "SHORT")

    windows, unfit = build_all_windows([*fit[:50], short, *fit[50:]], RECIPE)

    assert list(windows) == [bars.ticker for bars in fit]
    for bars in (fit[0], fit[-1]):
        expected = build_windows(bars, RECIPE)
        pd.testing.assert_frame_equal(windows[bars.ticker].rows, expected.rows)
        assert windows[bars.ticker].training_hash == expected.training_hash
    assert list(unfit) == ["SHORT"]
    assert "20 bars, and" in str(unfit["SHORT"])


def test_rows_that_break_the_rules_are_refused_among_those_of_many_tickers(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = rolling_statistics
    monkeypatch.setattr(
        windows_module, "rolling_statistics", lambda values, length: (np.nan * values, statistics(values, length)[1])
    )
    with pytest.raises(pandera.errors.SchemaError, match="finite_statistics"):
        build_all_windows([bars_of(daily_frame(200))], RECIPE)
