from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, write_json
from kronos_pipeline.pipeline.ingest import note_on_other_data
from kronos_pipeline.pipeline.status import read_status


def test_an_output_folder_with_models_of_other_tickers_is_named_with_a_way_out(tmp_path: Path) -> None:
    layout = ArtifactLayout(tmp_path / "out")
    assert note_on_other_data(layout, "mine", ["AAPL"]) is None
    layout.adapter("META").mkdir(parents=True)
    write_json(layout.adapter("META") / MANIFEST, {"data": {"META": "hash"}})
    assert note_on_other_data(layout, "mine", ["AAPL", "META"]) is None
    note = str(note_on_other_data(layout, "mine", ["AAPL"]))
    assert f"{layout.root} has models of META, and mine has none" in note
    assert "--output-dir" in note


@pytest.mark.parametrize("damaged", ["[]", "{}", '{"data": []}', "[" * 100_000, '{"data":'])
def test_a_damaged_manifest_of_another_ticker_stops_neither_a_run_nor_the_status(tmp_path: Path, damaged: str) -> None:
    layout = ArtifactLayout(tmp_path / "out")
    for folder in (layout.adapter("META"), layout.best_checkpoint):
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_text(damaged)
    assert note_on_other_data(layout, "mine", ["AAPL"]) is None
    layout.bars("AAPL").parent.mkdir()
    layout.bars("AAPL").touch()
    (status,) = read_status(tmp_path / "none", layout, datetime.now(UTC)).tickers
    assert (status.ticker, status.trained) == ("AAPL", {})
