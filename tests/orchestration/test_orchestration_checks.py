"""Findings of the asset checks, and the assets that a blocking check stops."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import dagster as dg
import numpy as np
import pytest
from code_locations import Location, checks, failed_steps, ticker_range
from made_predictions import predictions_of_losses

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.data.bars import load_bars, make_bars, save_bars
from kronos_pipeline.data.windows import load_windows, save_windows
from kronos_pipeline.evaluation.scoring.report import save_ticker_evaluation
from kronos_pipeline.orchestration.checks import Outcome, bars_are_sound, ticker_check, windows_do_not_leak
from kronos_pipeline.orchestration.verdict_checks import better_on

pytestmark = pytest.mark.slow


@pytest.fixture
def ingested(location: Location) -> Location:
    location.write("AAPL", "MSFT")
    assert location.run("ingest", "AAPL", "MSFT").success
    return location


def test_bars_of_another_ticker_are_not_sound(ingested: Location) -> None:
    layout = ingested.layout
    assert bars_are_sound(layout, "AAPL").passed
    save_bars(layout.bars("AAPL"), load_bars(layout.bars("MSFT")))
    assert bars_are_sound(layout, "AAPL") == Outcome(False, f"{layout.bars('AAPL')} holds the bars of MSFT")


def test_bars_out_of_order_are_not_sound(ingested: Location) -> None:
    path = ingested.layout.bars("AAPL")
    save_bars(path, make_bars("AAPL", load_bars(path).frame[::-1], source="AAPL.csv"))
    assert "not ordered by time" in bars_are_sound(ingested.layout, "AAPL").text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"end": 1}, "targets outside the bars"),
        ({"mean_close": 0.5}, "does not match its lookback bars"),
    ],
)
def test_windows_that_look_ahead_are_found(ingested: Location, change: dict[str, float], message: str) -> None:
    layout = ingested.layout
    recipe = ingested.settings.recipe("lora")
    windows = load_windows(layout.windows("AAPL"), load_bars(layout.bars("AAPL")))
    assert windows_do_not_leak(layout, "AAPL").passed
    rows = windows.rows.copy()
    last_train = rows.index[rows["split"] == "train"][-1]
    for column, offset in change.items():
        rows.loc[last_train, column] += type(rows[column].iloc[0])(offset) * (1 if column != "end" else 5)
    save_windows(layout.windows("AAPL"), dataclasses.replace(windows, rows=rows), recipe)
    outcome = windows_do_not_leak(layout, "AAPL")
    assert outcome.passed is False
    assert message in outcome.text


def report_of(layout: ArtifactLayout, losses: dict[str, np.ndarray], tickers_tested: int = 1, **manifest: Any) -> None:
    """Store metrics of AAPL with a given scaled error by model and cutoff."""
    base = {"label": "a base", "name": "a base", "demo": False}
    predictions = predictions_of_losses(losses)
    save_ticker_evaluation(layout, predictions, "adapter", {"base_model": base, **manifest}, tickers_tested)


def check_of_mean(layout: ArtifactLayout) -> Outcome:
    return better_on("mean", "holdout_metrics")(layout, "AAPL")


def test_a_check_passes_if_the_model_is_better_than_every_rival_and_gives_the_figures(location: Location) -> None:
    noise = np.random.default_rng(0).uniform(0.9, 1.1, (3, 20))
    report_of(location.layout, {"naive": 2 * noise[0], "base": 3 * noise[1], "adapter": noise[2]})
    better = check_of_mean(location.layout)
    assert better.passed
    assert re.match(r"Skill against naive \+\d\d\.\d %, better \(adjusted p < 0.001, 20 cutoffs\); ", better.text)


def test_the_hardest_rival_comes_first_with_rounded_figures(location: Location) -> None:
    noise = np.random.default_rng(0).uniform(0.9, 1.1, (3, 20))
    report_of(location.layout, {"naive": 2 * noise[0], "base": noise[1], "adapter": noise[2]})
    outcome = check_of_mean(location.layout)
    assert outcome.passed is False
    assert re.match(r"Skill against base [+-]\d\.\d %, no better \(", outcome.text)
    figures = outcome.metadata
    assert (figures["hardest rival"], figures["cutoffs"]) == ("base", 20)
    assert figures["skill (%)"] == round(figures["skill (%)"], 1)
    assert figures["adjusted p"] == round(figures["adjusted p"], 4)
    assert "| naive | better |" in figures["rivals"].md_str


def test_too_little_evidence_neither_passes_nor_fails_and_names_the_way_to_more(location: Location) -> None:
    report_of(location.layout, {"naive": np.full(7, 2.0), "base": np.full(7, 2.0), "adapter": np.full(7, 1.0)})
    outcome = check_of_mean(location.layout)
    assert outcome.passed is None
    assert "7 cutoffs, and a verdict needs 8. For more, materialize `backtest`" in outcome.text


def test_a_check_is_corrected_for_all_tickers_and_says_what_may_have_been_seen(location: Location) -> None:
    noise = np.random.default_rng(1).uniform(0.5, 1.5, (2, 10))
    losses = {"naive": 1.4 * noise[0], "base": 1.4 * noise[0], "adapter": noise[1]}
    report_of(location.layout, losses)
    single = check_of_mean(location.layout)
    report_of(location.layout, losses, 1000, contamination={"AAPL": "may have been seen in pre-training"})
    among_many = check_of_mean(location.layout)
    assert (single.passed, among_many.passed) == (True, False)
    assert "may have been seen in pre-training" in among_many.text


def test_a_checks_description_says_what_the_verdict_rests_on(location: Location) -> None:
    location.write("AAPL")
    graph = location.definitions.resolve_asset_graph()
    for asset in ("holdout_metrics", "backtest"):
        for target in ("mean", "distribution", "volatility"):
            spec = graph.get_check_spec(dg.AssetCheckKey(dg.AssetKey(asset), f"better_{target}"))
            assert target in (spec.description or "")
            assert "Diebold-Mariano" in (spec.description or "")
            # The UI shows no reason with a skipped check, but its description.
            assert (spec.description or "").startswith(
                "Skipped: fewer than 8 cutoffs are too little evidence; for more, "
            )


@pytest.mark.parametrize("blocking", [True, False])
def test_a_blocking_check_keeps_what_is_downstream_from_being_made(location: Location, blocking: bool) -> None:
    tickers = dg.StaticPartitionsDefinition(["AAPL", "MSFT"])

    @dg.asset(partitions_def=tickers, backfill_policy=dg.BackfillPolicy.single_run())
    def stored() -> None: ...

    @dg.asset(partitions_def=tickers, backfill_policy=dg.BackfillPolicy.single_run(), deps=[stored])
    def trained() -> None: ...

    def only_msft(layout: object, ticker: str) -> Outcome:  # noqa: ARG001
        """Pass MSFT alone."""
        return Outcome(ticker == "MSFT", f"this is {ticker}")

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
    assert location.materialised("trained") == (set() if blocking else {"AAPL", "MSFT"})


def test_a_check_that_does_not_apply_is_skipped_for_that_ticker_alone(location: Location) -> None:
    location.write("AAPL", "MSFT")
    tickers = dg.StaticPartitionsDefinition(["AAPL", "MSFT"])

    @dg.asset(partitions_def=tickers, backfill_policy=dg.BackfillPolicy.single_run())
    def stored() -> None: ...

    def enough(layout: object, ticker: str) -> Outcome:  # noqa: ARG001
        """Apply to MSFT alone."""
        return Outcome(True if ticker == "MSFT" else None, "too little evidence", {"cutoffs": 8})

    definitions = dg.Definitions(
        assets=[stored],
        asset_checks=[ticker_check("stored", "enough", enough, tickers, blocking=False)],
        resources={"pipeline": location.settings},
    )
    result = definitions.get_implicit_global_asset_job_def().execute_in_process(
        instance=location.instance, tags=ticker_range(["AAPL", "MSFT"])
    )
    assert checks(result)["stored", "enough"] == {"MSFT": True}
    key = dg.AssetCheckKey(dg.AssetKey("stored"), "enough")
    state = location.instance.event_log_storage.get_asset_check_state([(key, tickers)])[key]
    shown = {status.value: set(subset.subset_value.get_partition_keys()) for status, subset in state.subsets.items()}
    assert (shown["SKIPPED"], shown["SUCCEEDED"], shown["FAILED"]) == ({"AAPL"}, {"MSFT"}, set())
