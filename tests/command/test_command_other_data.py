from __future__ import annotations

from pathlib import Path

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, write_json
from kronos_pipeline.pipeline.ingest import note_on_other_data


def test_an_output_folder_with_models_of_other_tickers_is_named_with_a_way_out(tmp_path: Path) -> None:
    layout = ArtifactLayout(tmp_path / "out")
    assert note_on_other_data(layout, "mine", ["AAPL"]) is None
    layout.adapter("META").mkdir(parents=True)
    write_json(layout.adapter("META") / MANIFEST, {"data": {"META": "hash"}})
    assert note_on_other_data(layout, "mine", ["AAPL", "META"]) is None
    note = str(note_on_other_data(layout, "mine", ["AAPL"]))
    assert f"{layout.root} has models of META, and mine has none" in note
    assert "--output-dir" in note
