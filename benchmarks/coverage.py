"""Measure the coverage of intervals on simulated tickers: by top-p, before and after recalibration, by volatility.

    python benchmarks/coverage.py --tickers 60                 # the figures in docs/sampling.md
    python benchmarks/coverage.py --tickers 40 --horizon 30
    python benchmarks/coverage.py --tickers 0 --stocks         # four real stocks
    python benchmarks/coverage.py --tickers 2 --quick          # a smoke test

Half of the tickers are random walks with slowly changing volatility, half follow a GARCH(1,1) with Student's t. The
base model forecasts each ticker from 24 cutoffs, 5 bars each, with top-p 0.9 and 1.0; the widths are fitted on the
newer half of a selection block of 60 bars. Simulated tickers are independent, so the binomial band of a share is that
of all forecasts that share no bar. The stocks (AAPL, GOOG, IBM and MSFT of bokeh-sampledata, to 2013) have 100 cutoffs
each, and forecasts of several stocks over the same days count once.

Terciles are those of each ticker's EWMA variance at its cutoffs. A star marks a share outside its band. Intervals of
means over tickers are Student's t, 95 percent. CRPS is divided by the mean absolute change from one close to the next
before the holdout.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from garch import garch_bars
from scipy import stats

from kronos_pipeline.artifacts import write_json
from kronos_pipeline.base_models import find_base_model
from kronos_pipeline.config import Recipe
from kronos_pipeline.data.bars import FEATURES, Bars, make_bars
from kronos_pipeline.data.simulate import Dynamics, simulate_ticker
from kronos_pipeline.data.windows import build_windows
from kronos_pipeline.evaluation.forecasting.holdout_table import predict
from kronos_pipeline.evaluation.forecasting.tuning import fit_sampling
from kronos_pipeline.evaluation.predictions import BASE, LEVELS, VOLATILITY_RIVALS, models_of
from kronos_pipeline.evaluation.reports.text_table import UNDEFINED, TextTable
from kronos_pipeline.evaluation.scoring.calibration import TERCILES, calibrations
from kronos_pipeline.model.devices import pick_device
from kronos_pipeline.model.loading import KronosModel, load_base

TOP_PS = (0.9, 1.0)
CUTOFFS, BARS_BEFORE = 24, 420
STOCKS, STOCK_CUTOFFS = "real stocks", 100
SETTINGS: dict[str, Any] = {
    "model_name": "kronos-nano",
    "device": "cpu",
}
QUICK: dict[str, Any] = {"eval_samples": 4}
FIRST_SEED = 20_000
RANDOM_WALK = Dynamics(walk=0.012, deviation=0.0, month_drift=0.0, day_drift=0.0)


def walk_bars(ticker: str, seed: int, count: int) -> Bars:
    """Simulate a random walk with slowly changing volatility."""
    return make_bars(ticker, simulate_ticker(seed, count, dynamics=RANDOM_WALK).frame(), source=f"simulated, {seed}")


def stock_bars() -> Iterator[Bars]:
    """Yield the daily bars of four stocks, as traded; FB has too few."""
    from bokeh_sampledata import stocks

    for ticker in ("AAPL", "GOOG", "IBM", "MSFT"):
        frame = pd.DataFrame(getattr(stocks, ticker)).rename(columns={"date": "timestamps"})
        frame["timestamps"] = pd.to_datetime(frame["timestamps"])
        frame["amount"] = frame["volume"] * frame[["open", "high", "low", "close"]].mean(axis=1)
        yield make_bars(ticker, frame[["timestamps", *FEATURES]], source="bokeh-sampledata")


KINDS: dict[str, Callable[[str, int, int], Bars]] = {"random walk": walk_bars, "GARCH(1,1)-t": garch_bars}


def main() -> None:
    """Run the experiment and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickers", type=int, default=20, help="simulated tickers, half of each kind")
    parser.add_argument("--horizon", type=int, default=5, help="bars per forecast")
    parser.add_argument("--selection-bars", type=int, default=60, help="as in kronos train")
    parser.add_argument("--stocks", action="store_true", help="four real stocks too")
    parser.add_argument("--quick", action="store_true", help="few paths and cutoffs")
    parser.add_argument("--output", type=Path, help="file for the figures, JSON")
    options = parser.parse_args()

    spans = {
        "horizon": options.horizon,
        "validation_bars": (4 if options.quick else CUTOFFS) * options.horizon,
        "selection_bars": options.selection_bars,
    }
    recipe = Recipe.model_validate(SETTINGS | spans | (QUICK if options.quick else {}))
    base = load_base(find_base_model(recipe.model_name, recipe.tokenizer_name), pick_device(recipe.device))
    tables: dict[str, list[pd.DataFrame]] = {kind: [] for kind in (*KINDS, STOCKS)}
    for number in range(options.tickers):
        kind, started = list(KINDS)[number % len(KINDS)], time.monotonic()
        bars = KINDS[kind](f"T{number}", FIRST_SEED + number, BARS_BEFORE + spans["validation_bars"])
        tables[kind].append(forecast(bars, recipe, base))
        print(f"{number + 1} of {options.tickers} tickers, {time.monotonic() - started:.0f} s", flush=True)
    if options.stocks:
        longer = recipe.model_copy(update={"validation_bars": STOCK_CUTOFFS * options.horizon})
        tables[STOCKS] = [forecast(bars, longer, base) for bars in stock_bars()]
    rows = [row for kind, parts in tables.items() if parts for row in coverage_rows(kind, pd.concat(parts))]
    print(as_table(rows).markdown())
    if options.output is not None:
        write_json(options.output, {"settings": recipe.model_dump(mode="json"), "rows": rows})


def forecast(bars: Bars, recipe: Recipe, base: KronosModel) -> pd.DataFrame:
    """Forecast a ticker's holdout with each top-p; a column `top_p` tells them apart, NaN of the rivals."""
    windows = build_windows(bars, recipe)
    parts = []
    for top_p in TOP_PS:
        own = recipe.model_copy(update={"top_p": top_p})
        predictions = predict(windows, {BASE: base}, {BASE: fit_sampling(windows, base, own)}, own).predictions
        parts.append(predictions[predictions["model"].str.startswith(BASE)].assign(top_p=top_p))
    rivals = predictions[predictions["model"].isin(VOLATILITY_RIVALS)]
    return pd.concat([rivals.assign(top_p=np.nan), *parts], ignore_index=True)


def coverage_rows(kind: str, predictions: pd.DataFrame) -> list[dict[str, str]]:
    """Return a row per model, top-p and kind of interval, see `figures`."""
    of_rivals = predictions[predictions["top_p"].isna()]
    rows = described(kind, of_rivals, models_of(of_rivals), "", "as sampled")
    for top_p in TOP_PS:
        table = pd.concat([of_rivals, predictions[predictions["top_p"] == top_p]], ignore_index=True)
        models = [model for model in models_of(table) if model.startswith(BASE)]
        rows += described(kind, as_sampled(table), models, f"{top_p}", "as sampled")
        rows += described(kind, table, models, f"{top_p}", "recalibrated")
    return rows


def described(
    kind: str, predictions: pd.DataFrame, models: Sequence[str], top_p: str, intervals: str
) -> list[dict[str, str]]:
    """Return a row per model."""
    return [
        {"tickers": kind, "model": model, "top-p": top_p, "intervals": intervals}
        | figures(predictions[predictions["model"] == model], entry)
        for model, entry in calibrations(predictions, models, independent=kind != STOCKS).items()
    ]


def as_sampled(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the intervals before recalibration in place of the recalibrated intervals."""
    raw = {f"{side}_{level}": predictions[f"raw_{side}_{level}"] for level in LEVELS for side in ("lo", "hi")}
    return predictions.assign(**raw)


def figures(rows: pd.DataFrame, entry: dict[str, Any]) -> dict[str, str]:
    """Return the coverage of each level in percent, that of 80 percent by tercile, its bands, and the scaled CRPS."""
    shares = entry["coverage"]
    of_80 = shares["80"]
    inside = rows["y"].between(rows["lo_80"], rows["hi_80"])
    crps = (rows["crps"] / rows["scale"]).groupby(rows["unique_id"]).mean().to_numpy(np.float64)
    terciles = [of_80["by_volatility"][name] for name in TERCILES]
    return {
        "50 %": marked(shares["50"]["overall"]),
        "80 %": marked(of_80["overall"]),
        "80 %, over tickers": interval(100 * inside.groupby(rows["unique_id"]).mean().to_numpy(np.float64), 0),
        "90 %": marked(shares["90"]["overall"]),
        "80 %: low, middle, high volatility": ", ".join(marked(share) for share in terciles),
        "band of 80 %, of a tercile": f"{band(of_80['overall'])}, {band(terciles[0])}",
        "CRPS": f"{crps.mean():.3f} ({interval(crps, 3)})",
    }


def as_table(rows: Sequence[Mapping[str, str]]) -> TextTable:
    """Build the table of all rows."""
    return TextTable("", list(rows[0]), [list(row.values()) for row in rows])


def band(share: Mapping[str, Any]) -> str:
    """Format a band in percent."""
    return UNDEFINED if share["low"] is None else f"{share['low']:.0f} to {share['high']:.0f}"


def marked(share: Mapping[str, Any]) -> str:
    """Format a share in percent, with a star if it lies outside its band."""
    return UNDEFINED if share["percent"] is None else f"{share['percent']:.0f}{'' if share['holds'] else '*'}"


def interval(values: np.ndarray, decimals: int) -> str:
    """Format Student's t interval of the mean over tickers, 95 percent."""
    width = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else 0.0
    return f"{values.mean() - width:.{decimals}f} to {values.mean() + width:.{decimals}f}"


if __name__ == "__main__":
    main()
