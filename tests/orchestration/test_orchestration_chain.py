"""Real materialisations of the asset graph: one ticker, several in a run, bad tickers among good ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg
import pandas as pd
import pytest
from code_locations import TINY, Location, checks, failed_steps

from kronos_pipeline.artifacts import MANIFEST, read_json, read_manifest
from kronos_pipeline.data.bars import load_bars

pytestmark = pytest.mark.slow

PER_TICKER = ("raw_bars", "windows", "adapter", "holdout_metrics")


@dataclass
class Chain:
    """Return a location after a run of one ticker, then a run of three good tickers and a bad ticker between them."""

    location: Location
    single: dg.ExecuteInProcessResult
    several: dg.ExecuteInProcessResult
    adapter_before: str


@pytest.fixture(scope="module")
def chain(new_location: Callable[[], Location]) -> Chain:
    location = new_location()
    location.write("BRK-B", "BRK.B", "^GSPC")
    location.write_bad("BRK.A")
    single = location.run("retrain_adapter", "BRK-B")
    adapter = str(location.layout.adapter("BRK-B").resolve())
    several = location.run("retrain_adapter", "BRK-B", "^GSPC")
    return Chain(location, single, several, adapter)


def test_one_ticker_goes_from_csv_to_holdout_metrics_in_one_run(chain: Chain) -> None:
    assert chain.single.success, failed_steps(chain.single)
    assert {event.partition for event in chain.single.get_asset_materialization_events()} == {"BRK-B", None}
    assert set(checks(chain.single)) >= {("raw_bars", "sound"), ("windows", "no_leak")}
    assert all(tickers == {"BRK-B": True} for tickers in checks(chain.single).values())


def test_with_little_evidence_no_verdict_is_a_failed_check_even_in_a_run_that_fails_for_another_ticker(
    chain: Chain,
) -> None:
    assert ("holdout_metrics", "better_mean") not in checks(chain.single)  # skipped
    verdicts = [found for found in chain.several.get_asset_check_evaluations() if found.check_name == "better_mean"]
    assert len(verdicts) == 3
    for found in verdicts:
        assert found.passed
        assert str(found.description).startswith("Does not apply. Too little evidence: ")


@pytest.mark.parametrize("job", ["retrain_adapter", "retrain_checkpoint"])
def test_a_training_that_does_not_help_is_a_warning(new_location: Callable[[], Location], job: str) -> None:
    location = new_location()
    location.write("AAPL")
    result = location.run(job, "AAPL", settings={"learning_rate": 1e-30})
    assert result.success, failed_steps(result)
    warnings = [entry.user_message for entry in location.instance.all_logs(result.run_id) if entry.level == 30]
    assert any("no better than the untouched model on the selection block" in text for text in warnings)


def test_good_tickers_of_a_run_are_trained_beside_a_bad_one_and_the_run_fails_by_its_name(chain: Chain) -> None:
    good = {"BRK-B", "BRK.B", "^GSPC"}
    assert not chain.several.success
    assert set(failed_steps(chain.several)) == {"raw_bars_complete"}
    for asset in PER_TICKER:
        assert chain.location.materialised(asset) == good
    assert {path.name for path in chain.location.layout.adapter("BRK-B").parent.glob("[!.]*")} == good
    assert "BRK.A.csv:2: close" in failed_steps(chain.several)["raw_bars_complete"]


def test_a_failure_shows_file_line_column_rule_and_value_of_every_problem(chain: Chain) -> None:
    event = next(event for event in chain.several.all_events if event.is_step_failure)
    failure = event.step_failure_data.user_failure_data
    assert failure is not None
    table = failure.metadata["problems"]
    assert isinstance(table, dg.TableMetadataValue)
    rows = pd.DataFrame([record.data for record in table.records]).set_index("line")
    assert [rows.loc[2, column] for column in ("ticker", "column", "value")] == ["BRK.A", "close", "text"]
    assert rows.loc[3, "column"] == "high"
    assert rows["file"].str.endswith("BRK.A.csv").all()
    assert rows["rule"].str.len().gt(0).all()


def test_a_bad_ticker_is_not_recorded_as_made_and_its_check_says_why(chain: Chain) -> None:
    passed = checks(chain.several)
    assert passed["raw_bars", "complete"] == dict.fromkeys(["BRK-B", "BRK.B", "^GSPC"], True) | {"BRK.A": False}
    assert "BRK.A" not in passed["windows", "complete"]
    assert not chain.location.layout.bars("BRK.A").exists()


def test_each_ticker_of_a_run_has_checks_and_metadata_of_its_own(chain: Chain) -> None:
    passed = checks(chain.several)
    assert set(passed["holdout_metrics", "better_mean"]) == {"BRK-B", "BRK.B", "^GSPC"}
    hashes = {ticker: chain.location.metadata("raw_bars", ticker)["content hash"] for ticker in ("BRK-B", "BRK.B")}
    assert hashes == {ticker: load_bars(chain.location.layout.bars(ticker)).content_hash for ticker in hashes}
    assert len(set(hashes.values())) == 2


def test_a_second_materialisation_replaces_the_first(chain: Chain) -> None:
    adapter = chain.location.layout.adapter("BRK-B").resolve()
    assert str(adapter) != chain.adapter_before
    assert (adapter / MANIFEST).is_file()


def test_the_leaderboard_names_the_ticker_that_has_no_metrics(chain: Chain) -> None:
    evaluation = read_json(chain.location.layout.evaluation)
    assert [entry["symbol"] for entry in evaluation["per_symbol"]] == ["BRK-B", "BRK.B", "^GSPC"]
    assert [entry["symbol"] for entry in evaluation["skipped"]] == ["BRK.A"]


def test_materialisations_show_what_people_look_for(chain: Chain) -> None:
    bars, windows, adapter, metrics = (chain.location.metadata(asset, "^GSPC") for asset in PER_TICKER)
    assert bars["dagster/row_count"] == 150
    assert bars["first bar"] < bars["last bar"]
    assert windows["train windows"] > 0
    assert windows["holdout windows"] == 3
    assert adapter["device"] == "cpu"
    assert str(chain.location.layout.adapter("^GSPC")) in adapter["summary"]
    assert metrics["summary"].startswith("Holdout: MAE of the adapter ")
    assert "no verdict on mean, distribution, volatility: 3 cutoffs" in metrics["summary"]
    for shown in (bars, adapter, metrics):
        assert shown["sketch"].startswith("![sketch](data:image/svg+xml;base64,")
        assert len(shown["sketch"]) < 1000  # the UI hides longer Markdown behind a link
        assert not [value for value in shown.values() if isinstance(value, float) and value != float(f"{value:.5g}")]
    assert adapter["losses"].startswith("![losses by step](data:image/png;base64,")
    assert "| epochs | 1 |" in adapter["settings"]
    assert metrics["forecasts"].startswith("![forecasts beside the truth](data:image/png;base64,")
    assert {"fan chart", "error by step", "reliability"} <= set(metrics)
    assert "too little evidence" in metrics["verdicts"]
    assert "not known to be unseen in pre-training" in metrics["notes"]
    assert sum(len(str(value)) for value in metrics.values()) < 250_000  # Dagster's event log keeps it for ever
    error = read_json(chain.location.layout.ticker_metrics("^GSPC"))["per_symbol"][0]["models"]["adapter"]["mae"]
    assert metrics["adapter MAE (price)"] == float(f"{error:.5g}")


def test_an_mlflow_run_holds_the_training_its_holdout_metrics_and_where_it_came_from(chain: Chain) -> None:
    from mlflow import MlflowClient

    run_id = chain.location.metadata("adapter", "BRK.B")["MLflow run"]
    assert run_id == chain.location.metadata("holdout_metrics", "BRK.B")["MLflow run"]
    run = MlflowClient().get_run(run_id)
    assert run.data.tags["dagster_run"] == chain.several.run_id
    assert (run.data.tags["asset"], run.data.tags["partition"]) == ("adapter", "BRK.B")
    assert run.data.params["epochs"] == "1"
    shown = chain.location.metadata("holdout_metrics", "BRK.B")["adapter MAE (price)"]
    assert run.data.metrics["holdout/mae"] == pytest.approx(shown, rel=1e-4)


def test_a_checkpoint_is_trained_over_the_good_tickers_and_gets_a_column(chain: Chain) -> None:
    result = chain.location.run("retrain_checkpoint", "BRK-B", "^GSPC", settings={"refit_all": True})
    assert set(failed_steps(result)) == {"raw_bars_complete"}
    manifest = read_json(chain.location.layout.best_checkpoint / MANIFEST)
    assert sorted(manifest["data"]) == ["BRK-B", "BRK.B", "^GSPC"]
    forecasts = pd.read_parquet(chain.location.layout.forecasts)
    assert {"naive", "base", "checkpoint", "adapter"} <= set(forecasts)
    decided = chain.location.metadata("checkpoint_champion")
    assert decided["registered model"] == "kronos-all"
    assert decided["promoted"] is False
    assert f"kronos-all version {decided['version']}, by its holdout: not promoted" in decided["summary"]
    assert decided["not measured since"] == "none"
    assert decided["refit"].startswith(
        f"kronos-all version {decided['version'] + 1}: version {decided['version']} on all"
    )
    assert (chain.location.layout.refit_checkpoint / MANIFEST).is_file()


def test_a_checkpoint_is_judged_by_new_metrics_where_they_are_older_than_it(chain: Chain) -> None:
    """As where everything is materialised at once: the checkpoint is trained after the run of the tickers."""
    chain.location.instance.report_runless_asset_event(dg.AssetMaterialization("checkpoint"))
    result = chain.location.select(["checkpoint_champion"], "BRK-B")
    assert result.success, failed_steps(result)
    assert chain.location.metadata("checkpoint_champion")["not measured since"] == "none"
    events = [event for event in result.get_asset_materialization_events() if event.partition]
    assert {(event.asset_key, event.partition) for event in events} == {
        (dg.AssetKey("holdout_metrics"), ticker) for ticker in ("BRK-B", "BRK.B", "^GSPC")
    }


def test_an_adapter_is_not_judged_by_the_metrics_of_another_one(chain: Chain) -> None:
    assert chain.location.select(["adapter"], "BRK.B").success
    failed = failed_steps(chain.location.select(["champion"], "BRK.B"))["champion"]
    assert "The holdout metrics of BRK.B are of another adapter" in failed


def test_a_ticker_too_short_for_a_backtest_fails_by_name_and_the_others_are_promoted_or_not(location: Location) -> None:
    location.write("AAPL")
    location.write("SHORT", bars=50)
    settings = {"backtest_origins": 12, "backtest_refit_every": 12}
    result = location.run("promote_adapter", "AAPL", "SHORT", settings=settings)
    failed = failed_steps(result)
    assert set(failed) == {"backtest_complete"}
    assert "SHORT" in failed["backtest_complete"]
    assert location.materialised("holdout_metrics") == {"AAPL", "SHORT"}
    assert location.materialised("champion") == location.materialised("forecast") == {"AAPL"}
    metadata = location.metadata("forecast", "AAPL")
    assert metadata["forecast by"] == "last close, spread of ewma"
    assert "kronos-AAPL has no champion" in metadata["why"]
    # On the next day's watch it is forecast all the same, and there is no champion to watch.
    assert location.run("watch", "AAPL", "SHORT").success
    assert location.materialised("forecast") == {"AAPL", "SHORT"}
    assert location.metadata("drift", "SHORT")["summary"] == "SHORT has no champion, so no drift was measured"


def test_the_launchpad_changes_a_setting_for_one_run_and_every_asset_of_it(location: Location) -> None:
    location.write("AAPL")
    result = location.run("retrain_adapter", "AAPL", settings={"epochs": 2, "horizon": 5})
    assert result.success, failed_steps(result)
    config = read_json(location.layout.adapter("AAPL") / MANIFEST)["config"]
    assert (config["epochs"], config["horizon"], config["adapter"]) == (2, 5, "lora")
    assert location.metadata("windows", "AAPL")["horizon (bars)"] == 5
    assert location.metadata("holdout_metrics", "AAPL")["evaluated"].startswith("10 bars from 2 cutoffs, ")


def test_windows_of_other_settings_or_bars_are_cut_anew_by_what_loads_them(location: Location) -> None:
    location.write("AAPL")
    assert location.run("ingest", "AAPL", settings={"lookback": 9}).success
    result = location.select(["adapter"], "AAPL")
    assert result.success, failed_steps(result)
    assert read_manifest(location.layout.windows("AAPL"))["lookback"] == TINY["lookback"]
    location.add_bars("AAPL", 10)
    assert location.select(["raw_bars"], "AAPL").success
    result = location.select(["adapter"], "AAPL")
    assert result.success, failed_steps(result)
    bars = load_bars(location.layout.bars("AAPL")).content_hash
    assert read_manifest(location.layout.windows("AAPL"))["bars_hash"] == bars


def test_a_ticker_alone_that_is_bad_fails_its_step_and_keeps_the_last_good_artifact(location: Location) -> None:
    location.write("AAPL")
    assert location.run("ingest", "AAPL").success
    good = location.layout.bars("AAPL").read_bytes()
    location.write_bad("AAPL")
    result = location.run("ingest", "AAPL")
    assert set(failed_steps(result)) == {"raw_bars"}
    assert not [event for event in result.all_events if event.event_type == dg.DagsterEventType.STEP_UP_FOR_RETRY]
    assert location.layout.bars("AAPL").read_bytes() == good


def test_a_cut_off_csv_fails_its_ticker_until_the_launchpad_accepts_it(location: Location) -> None:
    location.write("AAPL", "MSFT")
    assert location.run("ingest", "AAPL", "MSFT").success
    path = location.data / "AAPL" / "AAPL.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:121]))

    result = location.run("ingest", "AAPL", "MSFT")
    failure = str(failed_steps(result))
    assert "30 bars (2021-06-21 to 2021-07-30) that were read before are gone" in failure
    assert "take it as it is with `accept_history: true`" in failure
    assert len(load_bars(location.layout.bars("AAPL"))) == 150

    assert location.run("ingest", "AAPL", settings={"accept_history": True}).success
    assert len(load_bars(location.layout.bars("AAPL"))) == 120
    assert location.run("ingest", "AAPL").success


def test_a_bad_file_stays_failed_until_it_is_mended_whatever_was_made_before(location: Location) -> None:
    location.write("AAPL", "MSFT")
    assert location.run("ingest", "AAPL", "MSFT").success
    location.write_bad("MSFT")
    assert set(failed_steps(location.run("ingest", "AAPL", "MSFT"))) == {"raw_bars_complete"}
    # Windows of the bars before are still there, and yet none are made from them in a run that could not read the file.
    assert checks(location.run("ingest", "AAPL", "MSFT"))["windows", "complete"] == {"AAPL": True}
    location.write("MSFT")
    assert location.run("ingest", "AAPL", "MSFT").success


def test_without_its_check_in_the_run_a_step_with_a_bad_ticker_fails_itself(location: Location) -> None:
    location.write("AAPL")
    location.write_bad("MSFT")
    job = dg.define_asset_job(
        "no_checks", dg.AssetSelection.assets("raw_bars").without_checks(), partitions_def=None
    ).resolve(asset_graph=location.definitions.resolve_asset_graph(), resource_defs=location.definitions.resources)
    tags = {"dagster/asset_partition_range_start": "AAPL", "dagster/asset_partition_range_end": "MSFT"}
    result = job.execute_in_process(instance=location.instance, tags=tags, raise_on_error=False)
    assert set(failed_steps(result)) == {"raw_bars"}
    assert location.materialised("raw_bars") == {"AAPL"}


def test_a_tickers_asset_selected_with_adapter_itself_does_not_train_it_again(location: Location) -> None:
    location.write("AAPL")
    result = location.select(["raw_bars", "windows", "adapter", "adapter/AAPL"], "AAPL")
    assert result.success, failed_steps(result)
    event = location.instance.get_latest_materialization_event(dg.AssetKey(["adapter", "AAPL"]))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["run"].value == result.run_id
    assert [run.run_id for run in location.instance.get_runs()] == [result.run_id]


def test_damaged_bars_block_what_is_downstream(location: Location) -> None:
    location.write("AAPL")
    assert location.run("ingest", "AAPL").success
    location.layout.bars("AAPL").write_bytes(b"damaged")
    result = location.select(["windows", "adapter"], "AAPL")
    assert "cannot be read" in failed_steps(result)["windows"]
    assert location.materialised("adapter") == set()


def test_an_asset_whose_upstream_was_never_made_says_what_to_materialise(location: Location) -> None:
    location.write("AAPL")
    assert "AAPL has no raw_bars yet" in failed_steps(location.select(["adapter"], "AAPL"))["adapter"]
    assert location.run("ingest", "AAPL").success
    result = location.select(["holdout_metrics"], "AAPL")
    assert "materialise one of them first" in failed_steps(result)["holdout_metrics"]


def test_the_last_message_of_a_run_says_what_was_made_what_failed_and_what_to_do_next(chain: Chain) -> None:
    messages = [entry.user_message for entry in chain.location.instance.all_logs(chain.several.run_id)]
    summary = next(text for text in reversed(messages) if text.startswith("Made "))
    assert "1 ticker failed: BRK.A." in summary
    assert re.search(r"BRK.A failed: .*BRK.A.csv:2: close", summary)
    assert re.search(
        r"\^GSPC holdout_metrics: Holdout: MAE of the adapter [\d.,]+, of the last close [\d.,]+ \(error ", summary
    )
    assert "next: kronos forecast BRK-B" in summary
