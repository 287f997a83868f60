from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from holdouts import NANO, RecordingSampler
from registered_models import base_of
from small_trainings import simulated_bars, simulated_windows, small_recipe

from kronos_pipeline.artifacts import ArtifactLayout, read_parquet
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import FEATURES, Bars, make_bars
from kronos_pipeline.errors import DataError, SettingsError
from kronos_pipeline.evaluation.forecasting.batching import run_job
from kronos_pipeline.evaluation.forecasting.composition import PathModel
from kronos_pipeline.evaluation.forecasting.future import (
    COLUMNS,
    describe_sampled_model,
    forecast_ahead,
    forecast_composed_job,
    forecast_manifest,
    forecast_text_table,
    save_forecast,
)
from kronos_pipeline.evaluation.forecasting.holdout_table import predict
from kronos_pipeline.evaluation.forecasting.sampling import plain_sampling
from kronos_pipeline.evaluation.predictions import BOUNDS, LEVELS, VARIANTS, Variant
from kronos_pipeline.evaluation.rivals.volatility_rivals import forecast_rivals_ahead
from kronos_pipeline.model.loading import KronosModel

RECIPE = Recipe(model_name="kronos-nano", lookback=20, horizon=6, eval_samples=40)
PLAIN = plain_sampling(RECIPE)


class ShiftModel(float):
    """Stand-in for a model, for `RecordingSampler`."""

    source, context, weights_hash, device = NANO, NANO.context, "hash", "cpu"


def ahead(bars: Bars, recipe: Recipe = RECIPE, **options: Any) -> pd.DataFrame:
    options = {"sampler": RecordingSampler(), "sampling": plain_sampling(recipe), **options}
    return forecast_ahead(bars, ShiftModel(0.5), options.pop("sampling"), recipe, **options)  # type: ignore[arg-type]


def until(bars: Bars, count: int) -> Bars:
    return make_bars(bars.ticker, bars.frame.iloc[:count], source=bars.source, time_zone=bars.time_zone)


@pytest.fixture(scope="module")
def tiny(tiny_base: Path) -> tuple[KronosModel, Recipe]:
    recipe = small_recipe(tiny_base, eval_samples=25)
    return base_of(recipe), recipe


def test_a_forecast_of_the_bars_to_come_is_the_one_that_was_evaluated(tiny: tuple[KronosModel, Recipe]) -> None:
    """At a cutoff of the holdout with regular bar times, the forecast equals the evaluation's numbers."""
    model, recipe = tiny
    (windows,) = simulated_windows(recipe)
    widths = dict(zip(LEVELS, [(0.5, 0.6, 0.7, 0.8, 0.9), (1.1,) * 5, (2.0,) * 5], strict=True))
    sampling = replace(plain_sampling(recipe), temperature=1.3, widths=dict.fromkeys(VARIANTS, widths))
    evaluated = predict(windows, {"base": model}, {"base": sampling}, recipe).predictions
    origin = int(windows.of_split("holdout")["origin"].iloc[0])
    cutoff = windows.bars.frame["timestamps"].iloc[origin]
    expected = evaluated[(evaluated["model"] == "base") & (evaluated["cutoff"] == cutoff)].reset_index(drop=True)
    forecast = forecast_ahead(until(windows.bars, origin + 1), model, sampling, recipe)
    assert len(forecast) == recipe.horizon
    for column in ("unique_id", "cutoff", "ds", "step"):
        assert (forecast[column] == expected[column]).all()
    for column in ("mean", "median", *BOUNDS):
        np.testing.assert_allclose(forecast[column], expected[column], rtol=1e-6, err_msg=column)


def test_the_mean_candle_of_real_paths_is_a_candle(tiny: tuple[KronosModel, Recipe]) -> None:
    model, recipe = tiny
    forecast = forecast_ahead(simulated_bars(), model, plain_sampling(recipe), recipe)
    assert tuple(forecast.columns) == COLUMNS
    assert np.isfinite(forecast.drop(columns=["unique_id", "cutoff", "ds", "model"]).to_numpy(np.float64)).all()
    assert (forecast["low"] <= forecast[["open", "mean"]].min(axis=1)).all()
    assert (forecast["high"] >= forecast[["open", "mean"]].max(axis=1)).all()
    assert (forecast["volume"] >= 0).all()


def test_the_model_sees_the_newest_bars_and_the_times_that_are_due() -> None:
    bars, sampler = simulated_bars(), RecordingSampler()
    forecast = ahead(bars, RECIPE.model_copy(update={"seed": 5}), sampler=sampler)
    (call,) = sampler.calls
    np.testing.assert_array_equal(call["history"], bars.values[None, -20:])
    expected_times = pd.bdate_range(bars.frame["timestamps"].iloc[-1], periods=7)[1:]
    assert list(forecast["ds"]) == list(expected_times)
    np.testing.assert_array_equal(
        call["ahead"][0, :, 2:], np.stack([expected_times.weekday, expected_times.day, expected_times.month], axis=1)
    )
    past = pd.DatetimeIndex(bars.frame["timestamps"].iloc[-20:])
    np.testing.assert_array_equal(call["past"][0, :, 2:], np.stack([past.weekday, past.day, past.month], axis=1))
    assert (call["paths"], *call["temperature"], *call["top_p"]) == (40, 1.0, 1.0)
    assert list(forecast["step"]) == [1, 2, 3, 4, 5, 6]


def test_a_lookback_beyond_the_bars_or_the_context_is_cut() -> None:
    bars, sampler = simulated_bars(), RecordingSampler()
    ahead(until(bars, 7), sampler=sampler)
    ahead(simulated_bars(bars=700), RECIPE.model_copy(update={"lookback": 512}), sampler=sampler)
    assert [call["history"].shape[1] for call in sampler.calls] == [7, 512 - 6 - 1]


def test_intervals_are_stretched_around_the_median() -> None:
    plain = ahead(simulated_bars())
    wide = ahead(
        simulated_bars(), sampling=replace(PLAIN, widths=dict.fromkeys(VARIANTS, dict.fromkeys(LEVELS, (2.0,) * 6)))
    )
    for level in LEVELS:
        for side in ("lo", "hi"):
            ratios = (wide[f"{side}_{level}"] - wide["median"]) / (plain[f"{side}_{level}"] - plain["median"])
            np.testing.assert_allclose(ratios, 2)
    pd.testing.assert_series_equal(plain["mean"], wide["mean"])


def test_a_calendar_that_is_set_gives_the_times() -> None:
    frame = simulated_bars().frame.assign(timestamps=pd.bdate_range(end="2024-12-23", periods=130))
    frame = frame[~frame["timestamps"].isin(pd.to_datetime(["2024-07-04", "2024-09-02", "2024-11-28"]))]
    bars = make_bars("AAPL", frame, source="AAPL.csv")
    days = [f"{stamp:%m-%d}" for stamp in ahead(bars, RECIPE.model_copy(update={"calendars": ["XNYS"]}))["ds"]]
    assert days == ["12-24", "12-26", "12-27", "12-30", "12-31", "01-02"]
    with pytest.raises(SettingsError, match="no exchange calendar"):
        ahead(bars, RECIPE.model_copy(update={"calendars": ["MSFT=NONE"]}))


def test_naive_repeats_the_last_close_with_the_intervals_of_a_random_walk() -> None:
    bars = simulated_bars()
    forecast = forecast_ahead(bars, None, PLAIN, RECIPE)
    close = bars.values[:, FEATURES.index("close")]
    for column in ("last", "mean", "open", "high", "low"):
        np.testing.assert_allclose(forecast[column], close[-1], rtol=1e-12)
    np.testing.assert_allclose(forecast["p_up"], 0.5, atol=0.1)
    assert (forecast["volume"] == bars.values[-1, FEATURES.index("volume")]).all()
    assert set(forecast["model"]) == {"naive"}
    deviation = np.sqrt(forecast_rivals_ahead(bars, RECIPE, models=()).variance[0])
    for level, z in ((50, 0.674), (80, 1.282), (90, 1.645)):
        expected = close[-1] * np.exp(z * deviation * np.sqrt(np.arange(1, 7)))
        np.testing.assert_allclose(forecast[f"hi_{level}"], expected, rtol=0.03)
    assert (forecast["lo_90"] < forecast["lo_50"]).all()


def test_the_same_bars_give_the_same_forecast() -> None:
    bars = simulated_bars()
    pd.testing.assert_frame_equal(forecast_ahead(bars, None, PLAIN, RECIPE), forecast_ahead(bars, None, PLAIN, RECIPE))


def composed(bars: Bars, centre: PathModel | None, shape: PathModel | str) -> pd.DataFrame:
    table, _ = run_job(forecast_composed_job(bars, centre, shape, RECIPE, label="composed"), RecordingSampler())
    return table


def part(shift: float, variant: Variant = "sampled") -> PathModel:
    model: Any = ShiftModel(shift)
    return PathModel(model, replace(PLAIN, variants={"distribution": variant}), RECIPE)


def test_a_composed_forecast_has_the_centre_of_one_model_and_the_shape_of_another() -> None:
    bars = simulated_bars()
    close = bars.values[-1, FEATURES.index("close")]
    centre, shape = part(0.5), part(-2.0)
    own, other = composed(bars, centre, centre), composed(bars, shape, shape)
    both = composed(bars, centre, shape)
    np.testing.assert_allclose(both["mean"], own["mean"])
    np.testing.assert_allclose(both["open"], own["open"])
    factor = own["mean"] / other["mean"]
    for column in ("median", *BOUNDS):
        np.testing.assert_allclose(both[column], factor * other[column])
    around_last = composed(bars, None, shape)
    np.testing.assert_allclose(around_last["mean"], close)
    np.testing.assert_allclose(around_last["hi_90"], close / other["mean"] * other["hi_90"])
    np.testing.assert_allclose(around_last["high"], close / other["mean"] * other["high"])
    rival = composed(bars, centre, "garch")
    np.testing.assert_allclose(rival["mean"], own["mean"])
    assert (rival["lo_90"] < rival["mean"]).all()
    assert (rival["hi_90"] > rival["mean"]).all()


def test_the_variant_that_was_chosen_for_the_distribution_forecasts() -> None:
    bars = simulated_bars()
    close = bars.values[-1, FEATURES.index("close")]
    sampled, recentred, rescaled = (
        forecast_ahead(bars, part(0.5).model, part(0.5, variant).sampling, RECIPE, sampler=RecordingSampler())
        for variant in VARIANTS
    )
    assert (sampled["mean"] != close).any()
    for table in (recentred, rescaled):
        np.testing.assert_allclose(table["mean"], close)
    np.testing.assert_allclose(recentred["hi_80"], close / sampled["mean"] * sampled["hi_80"])
    assert not np.allclose(rescaled["hi_80"], recentred["hi_80"])


def test_one_bar_or_closes_that_never_moved_give_no_forecast_but_a_reason() -> None:
    bars = simulated_bars()
    with pytest.raises(DataError, match="two bars or more, and there are 1"):
        ahead(until(bars, 1))
    flat = make_bars("AAPL", bars.frame.assign(**dict.fromkeys(FEATURES[:4], 7.0)), source="AAPL.csv")
    with pytest.raises(DataError, match="the last 20 closes are all 7"):
        ahead(flat)
    assert (forecast_ahead(flat, None, PLAIN, RECIPE)["hi_90"] == 7).all()


@pytest.mark.slow
@pytest.mark.pictures
def test_a_saved_forecast_is_a_table_with_what_made_it_and_a_picture(tmp_path: Path) -> None:
    bars, layout = simulated_bars("EURUSD=X"), ArtifactLayout(tmp_path)
    forecast = ahead(bars, label="kronos-EURUSD=X version 3")
    model: Any = ShiftModel(0.5)
    sampled = {"shape": describe_sampled_model(PathModel(model, PLAIN, RECIPE))}
    manifest = forecast_manifest(bars, forecast, sampled, RECIPE, "it is the champion", ["embedded demo model"])
    table, picture = save_forecast(layout, bars, forecast, manifest)
    assert (table, picture) == (
        tmp_path / "forecasts" / "EURUSD=X.parquet",
        tmp_path / "plots" / "EURUSD=X" / "forecast.png",
    )
    stored, stored_manifest = read_parquet(table)
    pd.testing.assert_frame_equal(stored, forecast, check_dtype=False)
    assert stored_manifest["model"] == "kronos-EURUSD=X version 3"
    assert stored_manifest["reason"] == "it is the champion"
    assert stored_manifest["data"] == bars.content_hash
    assert stored_manifest["cutoff"] == bars.frame["timestamps"].iloc[-1].isoformat()
    assert stored_manifest["sampled"]["shape"]["weights_hash"] == "hash"
    unmarked = {**manifest, "notes": []}
    marked = picture.read_bytes()
    assert marked.startswith(b"\x89PNG")
    assert save_forecast(layout, bars, forecast, unmarked)[1].read_bytes() != marked
    assert forecast_manifest(bars, forecast, None, RECIPE, "no champion")["sampled"] is None


def test_a_forecast_as_people_read_it() -> None:
    bars = simulated_bars()
    forecast = forecast_ahead(bars, None, PLAIN, RECIPE.model_copy(update={"horizon": 2}))
    text_table = forecast_text_table(forecast, ["By naive.", "embedded demo model"])
    last = bars.frame["timestamps"].iloc[-1]
    assert text_table.title == f"AAPL: close (price) of the next 2 bars after {last:%Y-%m-%d}"
    assert [header.replace("\n", " ") for header in text_table.headers] == [
        *("Bar", "mean", "lo 90 %", "lo 80 %", "lo 50 %", "median", "hi 50 %", "hi 80 %", "hi 90 %", "P(up)")
    ]
    assert text_table.rows[0][0] == f"{forecast['ds'][0]:%Y-%m-%d}"
    prices = [[float(cell.replace(",", "")) for cell in row[2:-1]] for row in text_table.rows]
    assert all(row == sorted(row) for row in prices)
    assert text_table.rows[0][-1] == f"{forecast['p_up'][0]:.0%}"
    assert prices[0][0] == pytest.approx(forecast["lo_90"][0], rel=1e-4)
    assert text_table.notes == ["By naive.", "embedded demo model"]
    hourly = bars.frame.assign(timestamps=pd.date_range("2024-01-01", periods=len(bars), freq="h"))
    hours = forecast_ahead(make_bars("AAPL", hourly, source="AAPL.csv"), None, PLAIN, RECIPE)
    assert forecast_text_table(hours).rows[0][0] == "2024-01-06 10:00"
