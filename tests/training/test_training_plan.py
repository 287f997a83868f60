"""The plan of a recipe: which models are trained, and on which tickers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_trainings import simulated_windows, small_recipe

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.training.plan import group_tickers, plan_trainings

TICKERS = ("AAPL", "MSFT")


@pytest.mark.parametrize(
    ("settings", "planned"),
    [
        ({"adapter": "none"}, {None: ["AAPL", "MSFT"]}),
        ({"adapter": "lora"}, {"AAPL": ["AAPL"], "MSFT": ["MSFT"]}),
        ({"adapter": "lora", "adapter_name": "pair"}, {"pair": ["AAPL", "MSFT"]}),
    ],
)
def test_a_recipe_plans_a_checkpoint_an_adapter_per_ticker_or_one_named_adapter(
    settings: dict[str, Any], planned: dict[str | None, list[str]]
) -> None:
    recipe = small_recipe(Path("kronos-nano"), **settings)
    jobs = plan_trainings(recipe, simulated_windows(recipe, TICKERS))
    assert {job.adapter: [windows.ticker for windows in job.windows] for job in jobs} == planned
    assert group_tickers(recipe, TICKERS) == list(planned.values())


def test_a_job_is_published_in_the_folder_of_its_model() -> None:
    layout = ArtifactLayout(Path("out"))
    assert [layout.trained(name) for name in ("AAPL", None)] == [layout.adapter("AAPL"), layout.best_checkpoint]
    assert [layout.refit_of(name) for name in ("AAPL", None)] == [layout.refit("AAPL"), layout.refit_checkpoint]
