"""Candidates of a ticker: a model competes only if it was trained on the ticker, and a note names the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from registered_models import base_of, made_checkpoint
from small_trainings import simulated_bars, small_recipe

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.data.windows import build_windows
from kronos_pipeline.evaluation.forecasting.candidates import TrainedModels, load_candidates


@pytest.mark.slow
def test_a_checkpoint_of_another_folder_is_no_candidate_and_a_note_says_what_to_do(
    tmp_path: Path, tiny_base: Path
) -> None:
    recipe, layout = small_recipe(tiny_base), ArtifactLayout(tmp_path)
    made_checkpoint(layout.best_checkpoint, recipe, ["AAPL", "AMD", "AMZN", "GOOG"])
    models = TrainedModels(layout, base_of(recipe))

    own, notes = load_candidates(models, build_windows(simulated_bars("AAPL", 130), recipe), None)
    assert (set(own), notes) == ({"base", "checkpoint"}, [])
    others, (note,) = load_candidates(models, build_windows(simulated_bars("MINE", 130), recipe), None)
    assert set(others) == {"base"}
    assert note == (
        "MINE: the checkpoint is left out: it was trained on AAPL, AMD, AMZN and 1 more, and not on this ticker; train "
        "it again on this data folder, or give the folder an output folder of its own (--output-dir)."
    )
