"""Names and texts from the launchpad: a text that steers a terminal, and a partition that does not exist, end a run."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest
from code_locations import Location, failed_steps
from hostile_texts import TEXTS_OF_SETTINGS, takes_text

from kronos_pipeline.config import Recipe
from kronos_pipeline.errors import SettingsError
from kronos_pipeline.orchestration.resources import PipelineSettings, with_defaults
from kronos_pipeline.orchestration.torchrun import count_processes

pytestmark = pytest.mark.slow

MARKS = ["a\0b", "a\nb", "\x1b[31mred", "\u202eLPAA", "A\u2028B"]


def test_each_setting_of_a_run_that_is_a_text_is_tried() -> None:
    texts = {name for name, field in PipelineSettings.model_fields.items() if takes_text(field.annotation)}
    assert texts == {*TEXTS_OF_SETTINGS, "nproc_per_node"}


@pytest.mark.parametrize("mark", MARKS)
def test_a_number_of_processes_that_is_none_is_refused(mark: str) -> None:
    with pytest.raises(SettingsError) as caught:
        count_processes(mark, Recipe())
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", sorted(TEXTS_OF_SETTINGS))
@pytest.mark.parametrize("mark", MARKS)
def test_a_text_that_steers_a_terminal_is_refused(name: str, mark: str) -> None:
    text: Any = TEXTS_OF_SETTINGS[name].format(mark)
    field = PipelineSettings.model_fields[name]
    settings = with_defaults(PipelineSettings, {name: [text] if "list" in str(field.annotation) else text})
    with pytest.raises(SettingsError) as caught:
        _ = settings.recipe("lora"), settings.data_folder, settings.layout
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["data_dir", "output_dir"])
def test_a_folder_with_such_a_name_fails_the_run_once_and_makes_nothing(name: str, location: Location) -> None:
    location.write("AAPL")
    before = sorted(location.root.rglob("*"))
    result = location.select(["raw_bars"], "AAPL", settings={name: "x\0\x1b[31my"})
    assert not result.success
    assert "STEP_UP_FOR_RETRY" not in {event.event_type_value for event in result.all_events}
    assert all(r"x\x00\x1b[31my" in message for message in failed_steps(result).values())
    assert sorted(location.root.rglob("*")) == before


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "\x1b[31mred", "aapl", "AAPL...MSFT"])
def test_a_partition_that_does_not_exist_is_refused_before_a_step_runs(key: str, location: Location) -> None:
    location.write("AAPL")
    before = sorted(location.root.rglob("*"))
    with pytest.raises((dg.DagsterError, dg.DagsterUnknownPartitionError)):
        location.run("ingest", key)
    assert location.materialised("raw_bars") == set()
    assert sorted(location.root.rglob("*")) == before


FIRST, LAST = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"dagster/partition": "\x1b[31mred"}, r"No ticker is called '\x1b[31mred'"),
        ({"dagster/partition": ""}, "No ticker is called ''"),
        ({"dagster/partition": "AAPL, MSFT"}, "No ticker is called 'AAPL, MSFT'"),
        ({"dagster/partition": "../AAPL"}, "No ticker is called '../AAPL'"),
        ({FIRST: "MSFT", LAST: "AAPL"}, "it ends before it begins"),
        ({}, "This run has no ticker"),
        ({"kronos/tickers": ""}, "This run has no ticker"),
    ],
)
def test_a_run_of_the_interface_without_a_ticker_fails_once_with_a_sentence(
    tags: dict[str, str], said: str, location: Location
) -> None:
    """The launchpad offers tickers only; Dagster's interface for programs takes any tag."""
    location.write("AAPL", "MSFT")
    result = location.select(["raw_bars"], tags=tags)
    [(step, message)] = failed_steps(result).items()
    assert step == "raw_bars"
    assert said in message
    assert message.isprintable()
    assert "STEP_UP_FOR_RETRY" not in {event.event_type_value for event in result.all_events}


@pytest.mark.parametrize(
    "cursor", ["{", "[]", "null", '"text"', "[" * 10_000, '{"until": "x"}', '{"until": 1e300}', '{"AAPL": ["1"]}']
)
def test_a_sensor_ticks_as_at_first_after_a_person_set_another_cursor(cursor: str, location: Location) -> None:
    location.write("AAPL")
    for sensor in location.definitions.get_repository_def().sensor_defs:
        first, tick = location.tick(sensor), location.tick(sensor, cursor)
        assert (tick.skip_message, len(tick.run_requests)) == (first.skip_message, len(first.run_requests)), sensor.name
