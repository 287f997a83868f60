"""What the Dagster UI shows: sketches in place, columns and source code of assets, figures in words."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from code_locations import Location

from kronos_pipeline.data.schemas import STATISTICS, WindowRows
from kronos_pipeline.evaluation import predictions
from kronos_pipeline.evaluation.forecasting import future
from kronos_pipeline.orchestration.column_schemas import BY_ASSET
from kronos_pipeline.orchestration.resources import PipelineSettings
from kronos_pipeline.orchestration.setting_names import name_settings
from kronos_pipeline.orchestration.sketch import SHOWN_IN_PLACE, sketch

pytestmark = pytest.mark.slow


def test_the_columns_on_an_assets_page_are_those_of_its_table(location: Location) -> None:
    location.write("AAPL")
    assert list(BY_ASSET["windows"]) == [*WindowRows.to_schema().columns, *STATISTICS]
    assert list(BY_ASSET["holdout_metrics"]) == list(predictions.COLUMNS)
    assert list(BY_ASSET["forecast"]) == list(future.COLUMNS)
    graph = location.definitions.resolve_asset_graph()
    for asset, columns in BY_ASSET.items():
        schema = graph.get(dg.AssetKey(asset)).metadata["dagster/column_schema"]
        assert [column.name for column in schema.columns] == list(columns)
        assert all(column.description for column in schema.columns)


def test_every_asset_links_its_source_code(location: Location) -> None:
    location.write("AAPL")
    made = [node for node in location.definitions.resolve_asset_graph().asset_nodes if node.is_materializable]
    assert made
    for node in made:
        (reference,) = node.metadata["dagster/code_references"].code_references
        line = Path(reference.file_path).read_text().splitlines()[reference.line_number - 1]
        assert line.lstrip().startswith("def ")


@pytest.mark.parametrize("points", [2, 30, 5000])
def test_a_sketch_is_small_enough_for_the_ui_to_show_it_in_place(points: int) -> None:
    rng = np.random.default_rng(0)
    lines = {label: 1e4 * rng.normal(size=points).cumsum() for label in ("close", "adapter", "last close")}
    text = sketch(lines)["sketch"].value
    assert text is not None
    assert len(text) < SHOWN_IN_PLACE
    picture, legend = text.removeprefix("![sketch](data:image/svg+xml;base64,").split(")", 1)
    assert base64.b64decode(picture).decode().count("<path ") == 3
    assert legend.strip().startswith("grey close, blue adapter, orange last close; ")


def test_a_sketch_says_its_range_and_does_not_make_a_small_change_steep() -> None:
    text = str(sketch({"loss": [1.5037, 1.5040]})["sketch"].value)
    picture, legend = text.removeprefix("![sketch](data:image/svg+xml;base64,").split(")", 1)
    assert legend.strip() == "grey loss; 1.5037 to 1.504"
    (rise,) = re.findall(r"l300([+-]?\d+)'", base64.b64decode(picture).decode())
    assert -16 <= int(rise) < 0


def test_there_is_no_sketch_of_a_single_value_or_of_values_that_are_not_finite() -> None:
    assert sketch({"loss": [1.0], "other": [np.nan, 1.0]}) == {}


def test_the_launchpad_describes_each_setting_with_its_part_of_the_run_and_its_limits() -> None:
    descriptions = {name: str(field.description) for name, field in PipelineSettings.model_fields.items()}
    assert descriptions["epochs"] == "Training: passes over the training windows (at least 1)"
    assert descriptions["top_p"].startswith("Forecasts: ")
    assert descriptions["top_p"].endswith("(above 0, at most 1)")
    assert "instead of `validation_days`" in descriptions["validation_bars"]
    for text in descriptions.values():
        assert re.match(r"[A-Z][A-Za-z ]+: \S", text)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("--drop-bad-rows 1 leaves out the bad row", "`drop_bad_rows: '1'` leaves out the bad row"),
        ("left out by --drop-bad-rows 1%: A.csv", "left out by `drop_bad_rows: '1%'`: A.csv"),
        ("give more bars, or lower --lookback or --horizon", "give more bars, or lower `lookback` or `horizon`"),
        ("--lookback 600 is above it, with --horizon 30 + 1", "`lookback: 600` is above it, with `horizon: 30` + 1"),
        ("say --columns time=Date,close=Last.", "say `columns: ['time=Date', 'close=Last']`."),
        ("read them with --from AAPL=2012-01-03", "read them with `from_date: ['AAPL=2012-01-03']`"),
        ("or use --precision fp32. Or", "or use `precision: fp32`. Or"),
        ("or use --keep-jumps if they are real", "or use `keep_jumps: true` if they are real"),
        ("--adjusted: no CSV has it", "`adjusted`: no CSV has it"),
        ("with `hf download a/b --revision c --device d`", "with `hf download a/b --revision c --device d`"),
        ("use --nproc_per_node 2", "use --nproc_per_node 2"),
    ],
)
def test_a_remedy_names_the_setting_as_the_launchpad_takes_it(message: str, shown: str) -> None:
    assert name_settings(message) == shown
    assert name_settings(shown) == shown
