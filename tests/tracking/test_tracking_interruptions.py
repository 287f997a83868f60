"""A submission to the gate that is interrupted before a write to the store, and is completed by the next.

All writes take a minute; `make faults` interrupts within each of them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from interrupted_writes import Interrupted, content_of, interrupt_before
from registered_models import BAD, GOOD, evidence, made_adapter, save_holdout

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.config import Recipe
from kronos_pipeline.promotion.submit import TrainedModel, submit
from kronos_pipeline.tracking.registry import Registry
from kronos_pipeline.tracking.runs import Tracker

pytestmark = pytest.mark.slow

NAME = "kronos-AAPL"


@pytest.mark.parametrize(
    ("promoted", "sample"),
    [
        (True, ("set_model_version_tag", "set_registered_model_alias", "set_registered_model_tag")),
        (False, ("set_model_version_tag", "set_registered_model_alias")),
    ],
)
def test_a_submission_that_is_interrupted_before_a_write_is_completed_by_the_next(
    tmp_path: Path, recipe: Recipe, empty_mlflow_store: Path, promoted: bool, sample: tuple[str, ...]
) -> None:
    layout = ArtifactLayout(tmp_path / "out")
    folder = made_adapter(layout.adapter("AAPL"), recipe)
    save_holdout(layout, evidence(GOOD if promoted else BAD), recipe)
    template = tmp_path / "template.db"
    shutil.copy(empty_mlflow_store, template)
    tracker = Tracker(f"sqlite:///{template}", layout.root)
    with tracker.training_run("adapter AAPL", recipe) as run:
        pass
    tracker.register_trained(folder, NAME, run.run_id)

    def submit_to(store: Path) -> Registry:
        uri = f"sqlite:///{shutil.copy(template, store) if not store.exists() else store}"
        model = TrainedModel("AAPL", ["AAPL"], run.run_id)
        registry = Registry(Tracker(uri, layout.root))
        submit(registry, layout, model, recipe, tickers_tested=1)
        return registry

    with pytest.MonkeyPatch.context() as patch:
        writes = interrupt_before(patch, 0)
        expected = content_of(submit_to(tmp_path / "0.db"), NAME)
    for name in sample:
        numbers = [number for number, write in enumerate(writes, start=1) if write == name]
        store = tmp_path / f"{name}.db"
        with pytest.MonkeyPatch.context() as patch:
            interrupt_before(patch, numbers[len(numbers) // 2])
            with pytest.raises(Interrupted):
                submit_to(store)
        assert content_of(submit_to(store), NAME) == expected, name
