"""What the asset checks find, and what a blocking one keeps from being made."""

from __future__ import annotations

import dataclasses
import json

import dagster as dg
import pytest
from locations import Location, checks, failed_steps

from kronos_pipeline.data.bars import load_bars, make_bars, save_bars
from kronos_pipeline.data.windows import load_windows, save_windows
from kronos_pipeline.orchestration.checks import (
    bars_are_sound,
    beats_naive_and_base,
    ticker_check,
    windows_do_not_leak,
)


@pytest.fixture
def ingested(location: Location) -> Location:
    location.write("AAPL", "MSFT")
    assert location.run("ingest", "AAPL", "MSFT").success
    return location


def test_bars_of_another_ticker_are_not_sound(ingested: Location) -> None:
    layout = ingested.layout
    assert bars_are_sound(layout, "AAPL")[0]
    save_bars(layout.bars("AAPL"), load_bars(layout.bars("MSFT")))
    assert bars_are_sound(layout, "AAPL") == (False, f"{layout.bars('AAPL')} holds the bars of MSFT")


def test_bars_out_of_order_are_not_sound(ingested: Location) -> None:
    path = ingested.layout.bars("AAPL")
    save_bars(path, make_bars("AAPL", load_bars(path).frame[::-1], source="AAPL.csv"))
    assert "not ordered by time" in bars_are_sound(ingested.layout, "AAPL")[1]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"end": 1}, "targets outside the bars"),
        ({"mean_close": 0.5}, "not that of its lookback bars"),
    ],
)
def test_windows_that_look_ahead_are_found(ingested: Location, change: dict[str, float], found: str) -> None:
    layout = ingested.layout
    recipe = ingested.settings.recipe("lora")
    windows = load_windows(layout.windows("AAPL"), load_bars(layout.bars("AAPL")))
    assert windows_do_not_leak(layout, "AAPL")[0]
    rows = windows.rows.copy()
    last_train = rows.index[rows["split"] == "train"][-1]
    for column, by in change.items():
        rows.loc[last_train, column] += type(rows[column].iloc[0])(by) * (1 if column != "end" else 5)
    save_windows(layout.windows("AAPL"), dataclasses.replace(windows, rows=rows), recipe)
    passed, text = windows_do_not_leak(layout, "AAPL")
    assert not passed
    assert found in text


def test_the_verdict_names_the_rival_that_was_not_beaten(ingested: Location) -> None:
    path = ingested.layout.ticker_metrics("AAPL")
    path.parent.mkdir()
    entry = {
        "beats_naive": True,
        "beats_base": False,
        "bars": 30,
        "models": {name: {"mae": mae} for name, mae in (("naive", 3.0), ("base", 1.0), ("adapter", 2.0))},
    }
    path.write_text(json.dumps({"model": "adapter", "per_symbol": [entry]}))
    expected = "The adapter does not beat base. MAE on 30 holdout bars: naive 3, base 1, adapter 2"
    assert beats_naive_and_base(ingested.layout, "AAPL") == (False, expected)
    path.write_text(json.dumps({"model": "adapter", "per_symbol": [{**entry, "beats_base": True}]}))
    assert beats_naive_and_base(ingested.layout, "AAPL")[0]


@pytest.mark.parametrize("blocking", [True, False])
def test_a_blocking_check_keeps_what_is_downstream_from_being_made(location: Location, blocking: bool) -> None:
    tickers = dg.StaticPartitionsDefinition(["AAPL", "MSFT"])

    @dg.asset(partitions_def=tickers, backfill_policy=dg.BackfillPolicy.single_run())
    def stored() -> None: ...

    @dg.asset(partitions_def=tickers, backfill_policy=dg.BackfillPolicy.single_run(), deps=[stored])
    def trained() -> None: ...

    def only_msft(layout: object, ticker: str) -> tuple[bool, str]:  # noqa: ARG001
        """Whether it is MSFT."""
        return ticker == "MSFT", f"this is {ticker}"

    definitions = dg.Definitions(
        assets=[stored, trained],
        asset_checks=[ticker_check("stored", "only_msft", only_msft, tickers, blocking=blocking)],
        resources={"pipeline": location.settings},
    )
    result = definitions.get_implicit_global_asset_job_def().execute_in_process(
        instance=location.instance,
        tags={"dagster/asset_partition_range_start": "AAPL", "dagster/asset_partition_range_end": "MSFT"},
        raise_on_error=False,
    )
    assert checks(result)["stored", "only_msft"] == {"AAPL": False, "MSFT": True}
    assert bool(failed_steps(result)) == blocking
    assert location.made("trained") == (set() if blocking else {"AAPL", "MSFT"})
