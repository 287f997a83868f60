"""The code location: its imports and loading time, its assets for symbols of every kind, its failures."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
import yaml
from code_locations import Location, failed_steps
from dagster._core.execution.api import create_execution_plan

from kronos_pipeline.data.bars import load_bars
from kronos_pipeline.definitions import build
from kronos_pipeline.errors import KronosError
from kronos_pipeline.orchestration.assets.adapter_by_ticker import step_name
from kronos_pipeline.orchestration.automation.jobs import AutomationSettings
from kronos_pipeline.orchestration.automation.killed_runs import make_killed_runs_sensor
from kronos_pipeline.orchestration.partitions import find_tickers
from kronos_pipeline.orchestration.resources import PipelineSettings, with_defaults

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def load_location(data_dir: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Load the code location in a new process, and run some code after it."""
    program = f"import sys, kronos_pipeline.definitions as d\n{code}"
    environment = {**os.environ, "KRONOS_DATA_DIR": str(data_dir)}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)


def test_the_code_location_loads_without_torch_and_without_mlflow(location: Location) -> None:
    location.write("AAPL", "^GSPC")
    code = (
        "repository = d.defs.get_repository_def()\n"
        "assert 'adapter/AAPL' in {key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()}\n"
        "print(sorted({'torch', 'mlflow', 'matplotlib', 'peft', 'transformers'} & set(sys.modules)))"
    )
    loaded = load_location(location.data, code)
    assert loaded.stdout == "[]\n", loaded.stderr


def test_the_code_location_loads_where_there_is_no_data_folder_and_says_why(tmp_path: Path) -> None:
    code = "print([job.name for job in d.defs.resolve_all_job_defs()])"
    loaded = load_location(tmp_path / "nowhere", code)
    assert "retrain_adapter" in loaded.stdout, loaded.stderr
    assert "no such folder" in loaded.stderr
    assert "Traceback" not in loaded.stderr


def test_a_folder_without_csvs_has_no_tickers_and_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no CSV in this folder"):
        assert find_tickers(tmp_path) == []


def test_a_file_that_makes_no_symbol_is_no_partition_and_a_warning(location: Location) -> None:
    location.write("AAPL")
    (location.data / "a b.csv").write_text("x")
    with pytest.warns(UserWarning, match="makes no symbol"):
        assert find_tickers(location.data) == ["AAPL"]


def test_a_thousand_tickers_load_in_seconds(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"T{number:04}.csv").write_text("date,open,high,low,close\n")
    start = time.process_time()
    definitions = build(with_defaults(PipelineSettings, {"data_dir": str(tmp_path)}), AutomationSettings())
    keys = definitions.get_repository_def().asset_graph.get_all_asset_keys()
    assert sum(key.path[0] == "adapter" and len(key.path) == 2 for key in keys) == 1000
    assert time.process_time() - start < 30


def test_symbols_that_look_alike_have_assets_of_their_own(location: Location) -> None:
    location.write("BRK-B", "BRK.B", "BRK_B", "EURUSD=X", "^GSPC")
    graph = location.definitions.resolve_asset_graph()
    for ticker in ("BRK-B", "BRK.B", "BRK_B", "EURUSD=X", "^GSPC"):
        assert dg.AssetKey(["adapter", ticker]) in graph.get_all_asset_keys()
    assert len({step_name(ticker) for ticker in ("BRK-B", "BRK.B", "BRK_B")}) == 3


def test_a_tickers_asset_depends_on_its_own_partition_of_adapter_alone(location: Location) -> None:
    location.write("AAPL", "MSFT")
    asset = next(
        asset
        for asset in location.definitions.assets or []
        if isinstance(asset, dg.AssetsDefinition) and dg.AssetKey(["adapter", "MSFT"]) in asset.keys
    )
    mapping = asset.get_partition_mapping_for_dep(dg.AssetKey("adapter"))
    assert mapping == dg.SpecificPartitionsPartitionMapping(["MSFT"])


def test_every_asset_says_what_it_is_and_whose(location: Location) -> None:
    location.write("AAPL")
    graph = location.definitions.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description
        assert node.owners
        assert node.kinds
        assert node.group_name != "default"
        assert node.code_version or len(key.path) == 2 or node.is_virtual


def test_upstream_of_a_trained_asset_only_what_blocks_is_blocking(location: Location) -> None:
    location.write("AAPL")
    graph = location.definitions.resolve_asset_graph()
    blocking = {(key.asset_key.to_user_string(), key.name) for key in graph.asset_check_keys if graph.get(key).blocking}
    assert blocking == {("raw_bars", "sound"), ("windows", "no_leak")}


def test_a_setting_that_cannot_be_is_named(location: Location) -> None:
    location.write("AAPL")
    failed = failed_steps(location.run("ingest", "AAPL", settings={"horizon": 0}))
    assert "horizon is 0, and must be greater than or equal to 1." in failed["windows"]
    with pytest.raises(dg.DagsterError, match="epoch_count"):
        location.run("ingest", "AAPL", settings={"epoch_count": 2})


def test_the_launchpad_changes_how_a_file_is_read(location: Location) -> None:
    location.write("AAPL")
    assert location.run("ingest", "AAPL").success
    stamps = load_bars(location.layout.bars("AAPL")).frame["timestamps"]
    settings = {"from_date": [f"{stamps.iloc[20]:%Y-%m-%d}"], "drop_bad_rows": "1%"}
    assert location.run("ingest", "AAPL", settings=settings).success
    assert list(load_bars(location.layout.bars("AAPL")).frame["timestamps"]) == list(stamps.iloc[20:])


def test_settings_of_the_reading_that_cannot_be_leave_no_tickers_and_a_warning(location: Location) -> None:
    location.write("AAPL")
    settings = with_defaults(PipelineSettings, {"data_dir": str(location.data), "columns": ["end=x"]})
    with pytest.warns(UserWarning, match="is not meaning=name"):
        assert find_tickers(location.data, lambda: settings.reading) == []


def test_the_environments_folders_and_model_hold_beside_what_the_launchpad_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KRONOS_BASE_MODEL", "kronos-nano")
    monkeypatch.setenv("KRONOS_OUTPUT_DIR", "elsewhere")

    @dg.op
    def look(pipeline: PipelineSettings) -> list[str]:
        recipe = pipeline.recipe("lora")
        return [recipe.model_name, str(pipeline.layout.root), str(recipe.epochs), recipe.adapter]

    @dg.job(resource_defs={"pipeline": PipelineSettings.from_environment()})
    def looking() -> None:
        look()

    result = looking.execute_in_process(run_config={"resources": {"pipeline": {"config": {"epochs": 7}}}})
    assert result.output_for_node("look") == ["kronos-nano", "elsewhere", "7", "lora"]


def test_a_run_that_goes_on_is_not_taken_for_one_that_was_killed(location: Location) -> None:
    @dg.op
    def look(context, pipeline: PipelineSettings) -> list[str]:  # type: ignore[no-untyped-def]  # Dagster refuses a string
        assert pipeline.model_dump()["epochs"]
        execution = make_killed_runs_sensor().evaluate_tick(dg.build_sensor_context(instance=context.instance))
        run = context.instance.get_run_by_id(context.run_id)
        assert run is not None
        return [execution.skip_message or "", run.status.value]

    @dg.job(resource_defs={"pipeline": PipelineSettings.from_environment()})
    def looking() -> None:
        look()

    result = looking.execute_in_process(instance=location.instance)
    assert result.output_for_node("look") == ["No run was killed.", "STARTED"]


def test_the_instances_settings_are_ones_that_dagster_takes(tmp_path: Path) -> None:
    settings = ROOT / "kronos_pipeline" / "orchestration" / "dagster.yaml"
    (tmp_path / "dagster.yaml").write_text(settings.read_text())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert not instance.nux_enabled
        assert not instance.telemetry_enabled
        granularity = instance.get_concurrency_config().pool_config.pool_granularity
        assert granularity is not None
        assert granularity.value == "run"
        assert instance.global_op_concurrency_default_limit == 1


def test_the_workspace_names_this_code_location() -> None:
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text())
    assert workspace == {"load_from": [{"python_module": "kronos_pipeline.definitions"}]}


def test_errors_of_the_pipeline_become_failures_that_are_not_retried() -> None:
    from kronos_pipeline.errors import DataError, Problem
    from kronos_pipeline.orchestration.failures import as_failure, make_failure
    from kronos_pipeline.tracking.store import TrackingError

    with pytest.raises(dg.Failure) as caught, as_failure("raw_bars"):
        raise DataError([Problem("A.csv", "must be above 0", 3, "close", "-1")], "A")
    assert caught.value.allow_retries is False
    assert caught.value.description == "raw_bars failed for A:\nA.csv:3: close: must be above 0 (found '-1')"
    errors: dict[str, KronosError] = {"A": TrackingError("The store is away.")}
    assert make_failure("adapter", errors).allow_retries is True


def test_the_table_of_problems_holds_a_rule_that_many_lines_break_once_and_whole() -> None:
    from kronos_pipeline.errors import DataError, Problem
    from kronos_pipeline.orchestration.failures import problem_table, read_problem_table

    error = DataError([Problem("A.csv", "must be above 0", line, "Low", "0") for line in range(2, 500)], "A")
    table = problem_table({"A": error})
    [record] = table.records
    assert (record.data["line"], record.data["count"], record.data["lines"]) == (2, 498, "2, 3, 4")
    assert str(DataError(read_problem_table(table), "A")) == str(error)


def test_what_an_asset_can_do_without_is_no_direct_input_and_yet_comes_first_in_a_run(location: Location) -> None:
    """The UI warns of each direct input that was never made."""
    location.write("AAPL")
    graph = location.definitions.resolve_asset_graph()
    direct = {key: graph.get(dg.AssetKey(key)).parent_keys for key in ("holdout_metrics", "leaderboard", "champion")}
    for optional in ("checkpoint", "backtest"):
        assert dg.AssetKey(optional) not in set().union(*direct.values())
        assert f"reads `{optional}` where" in (graph.get(dg.AssetKey(f"optional_{optional}")).description or "")
    for job, first, then in (
        ("retrain_checkpoint", "checkpoint", "holdout_metrics"),
        ("promote_adapter", "backtest", "champion"),
        ("promote_adapter", "backtest", "leaderboard"),
        ("promote_adapter", "champion", "forecast"),
    ):
        plan = create_execution_plan(location.definitions.resolve_job_def(job))
        level = {
            step.key: number for number, steps in enumerate(plan.get_steps_to_execute_by_level()) for step in steps
        }
        assert level[first] < level[then]
