"""Simulate a year of nights through Dagster, and compute the track record again by hand from the ledger's files.

    python benchmarks/track_record_year.py                  # 252 nights of one ticker
    python benchmarks/track_record_year.py --nights 10      # a smoke test

A ticker gets a new daily bar each night. Before the first night an adapter is trained and made champion by a person.
Every night the assets `raw_bars`, `forecast` and `track_record` are materialised, with a clock that stands at 22:00
UTC of the newest bar's date. At the end, plain loops over the Parquet files of the ledger and the closes give the
numbers of `track_record/<T>.json` again.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow.parquet as pq

from kronos_pipeline.artifacts import ArtifactLayout, read_json
from kronos_pipeline.data.simulate import Dynamics, simulate_ticker
from kronos_pipeline.definitions import build
from kronos_pipeline.orchestration.automation.jobs import AutomationSettings
from kronos_pipeline.orchestration.resources import Clock, PipelineSettings, with_defaults
from kronos_pipeline.tracking.registry import Registry, registered_name
from kronos_pipeline.tracking.runs import Tracker

TICKER = "NIGHTLY"
TRAINED_BARS = 150
SETTINGS: dict[str, Any] = {
    "lookback": 16,
    "horizon": 5,
    "validation_days": 20,
    "selection_days": 20,
    "epochs": 1,
    "evaluations_per_epoch": 1,
    "eval_samples": 32,
    "device": "cpu",
}
LEVELS = {"lo_90": 0.05, "lo_80": 0.1, "lo_50": 0.25, "median": 0.5, "hi_50": 0.75, "hi_80": 0.9, "hi_90": 0.95}
NORMAL = {0.5: 0.0, 0.75: 0.6744897501960817, 0.9: 1.2815515655446004, 0.95: 1.6448536269514722}


class NightClock(Clock):
    """A clock that stands at a time."""

    time: str

    def now(self) -> datetime:
        """Return the time of the night."""
        return datetime.fromisoformat(self.time)


class Nights:
    """A code location of one simulated ticker, of which each night shows one bar more.

    Attributes:
        layout: the layout of the artifacts.
        frame: all bars.
    """

    def __init__(self, folder: Path, nights: int, base: str, **changes: Any) -> None:
        self.layout = ArtifactLayout(folder / "out")
        dynamics = Dynamics(walk=0.012, deviation=0.0, month_drift=0.0, day_drift=0.0)
        self.frame = simulate_ticker(7, TRAINED_BARS + nights, dynamics=dynamics).frame()
        self._csv = folder / "data" / f"{TICKER}.csv"
        self._csv.parent.mkdir(parents=True)
        self._show(TRAINED_BARS)
        folders = {"data_dir": str(self._csv.parent), "output_dir": str(self.layout.root), "model_name": base}
        settings = with_defaults(PipelineSettings, {**SETTINGS, **folders, **changes})
        definitions = build(settings, AutomationSettings())
        self._job = definitions.get_implicit_global_asset_job_def()
        self._instance = dg.DagsterInstance.ephemeral()

    def make_champion(self) -> None:
        """Train the ticker's adapter, and make it champion by a person's decision."""
        self._run(["raw_bars", "windows", "adapter", "holdout_metrics", "champion"], TRAINED_BARS)
        Registry(Tracker(None, self.layout.root)).promote(registered_name(TICKER), None, "It forecasts a simulation.")

    def night(self, number: int) -> None:
        """Show the bars of a night, from 0, and materialise the forecast and the track record."""
        bars = TRAINED_BARS + number
        self._show(bars)
        self._run(["raw_bars", "forecast", "track_record"], bars)

    def _show(self, bars: int) -> None:
        self.frame.iloc[:bars].to_csv(self._csv, index=False)

    def _run(self, assets: Sequence[str], bars: int) -> None:
        issued = self.frame["timestamps"].iloc[bars - 1].to_pydatetime().replace(tzinfo=UTC) + timedelta(hours=22)
        chosen = self._job.get_subset(asset_selection={dg.AssetKey(asset) for asset in assets})
        result = chosen.execute_in_process(
            partition_key=TICKER,
            instance=self._instance,
            resources={"clock": NightClock(time=issued.isoformat())},
            raise_on_error=False,
        )
        if not result.success:
            raise SystemExit(f"the run of {', '.join(assets)} with {bars} bars failed")


def by_hand(ledger: Path, frame: pd.DataFrame) -> dict[str, float]:
    """Compute a track record with loops, from the files of the ledger and the bars.

    Args:
        ledger: the folder of the ledger, of one ticker whose prices were never restated.
        frame: the ticker's bars.
    """
    closes = frame["close"].tolist()
    position = {stamp: index for index, stamp in enumerate(frame["timestamps"])}
    entries: dict[Any, list[dict[str, Any]]] = {}
    for path in sorted(ledger.glob("month=*/*.parquet"), key=lambda path: path.name):
        for row in pq.read_table(path).to_pylist():
            if not row["replay"]:
                entries.setdefault((pd.Timestamp(row["cutoff"]), row["issued"]), []).append(row)
    first: dict[Any, list[dict[str, Any]]] = {}
    for (cutoff, _), rows in sorted(entries.items()):
        first.setdefault(cutoff, rows)
    scored = [rows for rows in first.values() if pd.Timestamp(rows[-1]["ds"]) in position]
    sums = dict.fromkeys(("loss", "rival", "mean", "naive", "inside", "brier", "bars"), 0.0)
    outcomes = []
    for rows in scored:
        origin = position[pd.Timestamp(rows[0]["cutoff"])]
        last = closes[origin]
        assert math.isclose(rows[0]["last"], last)
        total = weight = 0.0
        for bar in range(1, origin + 1):
            total = 0.94 * total + math.log(closes[bar] / closes[bar - 1]) ** 2
            weight = 0.94 * weight + 1
        entry = dict.fromkeys(("loss", "rival", "mean", "naive"), 0.0)
        for row in rows:
            y = closes[position[pd.Timestamp(row["ds"])]]
            sigma = math.sqrt(total / weight * row["step"])
            for name, level in LEVELS.items():
                normal = NORMAL[level] if level >= 0.5 else -NORMAL[round(1 - level, 2)]
                entry["loss"] += _pinball(row[name], y, level) * 2 / 7 / last / len(rows)
                entry["rival"] += _pinball(last * math.exp(sigma * normal), y, level) * 2 / 7 / last / len(rows)
            entry["mean"] += abs(row["mean"] - y) / last / len(rows)
            entry["naive"] += abs(last - y) / last / len(rows)
            sums["inside"] += row["lo_80"] <= y <= row["hi_80"]
            sums["brier"] += (row["p_up"] - (0.5 if y == last else float(y > last))) ** 2
            sums["bars"] += 1
        for name, value in entry.items():
            sums[name] += value
        outcomes.append((entry["rival"] - entry["loss"]) / (entry["rival"] + entry["loss"]))
    return {
        "forecasts": len(scored),
        "mean_skill": 1 - sums["mean"] / sums["naive"],
        "crps_skill": 1 - sums["loss"] / sums["rival"],
        "coverage_80": 100 * sums["inside"] / sums["bars"],
        "brier": sums["brier"] / sums["bars"],
        "crps_evidence": _evidence(outcomes, len(scored[0])),
    }


def _pinball(quantile: float, y: float, level: float) -> float:
    return (y - quantile) * level if y >= quantile else (quantile - y) * (1 - level)


def _evidence(outcomes: Sequence[float], horizon: int) -> float:
    """Return the e-value of forecasts at every bar: stream k has each horizon-th forecast from the k-th on."""
    wealth = [1.0] * horizon
    for index, outcome in enumerate(outcomes):
        known = outcomes[: max(index - horizon + 1, 0)]
        mean = sum(known) / (len(known) + 1)
        variance = (0.25 + sum(d * d for d in known) - (len(known) + 1) * mean * mean) / (len(known) + 1)
        wealth[index % horizon] *= 1 + min(max(mean / (variance + mean * mean), 0.0), 0.75) * outcome
    return sum(wealth) / horizon


def recorded(layout: ArtifactLayout) -> dict[str, float]:
    """Return the same figures from `track_record/<T>.json`."""
    record = read_json(layout.track_record(TICKER))
    names = ("forecasts", "mean_skill", "crps_skill", "brier", "crps_evidence")
    return {**{name: record[name] for name in names}, "coverage_80": record["coverage"]["80"]}


def main() -> None:
    """Run the nights and print both records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=252)
    parser.add_argument("--base", default="kronos-nano")
    parser.add_argument("--folder", type=Path, help="where to keep the artifacts; by default a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        nights = Nights(arguments.folder or Path(temporary), arguments.nights, arguments.base)
        nights.make_champion()
        began = time.perf_counter()
        for number in range(arguments.nights + 1):
            nights.night(number)
        seconds = time.perf_counter() - began
        record, hand = recorded(nights.layout), by_hand(nights.layout.ledger, nights.frame)
        print(f"{arguments.nights} nights in {seconds:.0f} s, {seconds / (arguments.nights + 1):.2f} s a night")
        for name, value in hand.items():
            print(f"{name:<16} recorded {record[name]:.6f}   by hand {value:.6f}")
        assert all(math.isclose(record[name], value, rel_tol=1e-9) for name, value in hand.items())


if __name__ == "__main__":
    main()
