"""A submission to the gate that is interrupted before a write to the store, and is completed by the next.

All writes take a minute; `make faults` interrupts within each of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from registered_models import BAD, GOOD, evidence, made_adapter, save_holdout

from kronos_pipeline.artifacts import ArtifactLayout
from kronos_pipeline.config import Recipe
from kronos_pipeline.promotion.submit import TrainedModel, submit
from kronos_pipeline.tracking.registry import Registry
from kronos_pipeline.tracking.runs import Tracker

pytestmark = pytest.mark.slow

WRITES = (
    *("create_logged_model", "log_model_artifacts", "finalize_logged_model", "log_outputs", "log_batch"),
    *("create_registered_model", "update_registered_model", "set_registered_model_tag", "create_model_version"),
    *("set_logged_model_tags", "set_model_version_tag", "update_model_version"),
    *("set_registered_model_alias", "delete_registered_model_alias"),
)
NAME = "kronos-AAPL"


class Interrupted(BaseException):
    """An end of the process, as far as the code can see it."""


def interrupt_before(patch: pytest.MonkeyPatch, write: int) -> list[str]:
    """Let a write to the store, by number from 1, interrupt the process; return the list that names the writes."""
    made: list[str] = []

    def counted(name: str, method: Callable[..., Any], client: MlflowClient, *arguments: Any, **settings: Any) -> Any:
        made.append(name)
        if len(made) == write:
            raise Interrupted
        return method(client, *arguments, **settings)

    for name in WRITES:
        method = partial(counted, name, getattr(MlflowClient, name))
        patch.setattr(MlflowClient, name, lambda client, *a, method=method, **k: method(client, *a, **k))
    return made


def said(uri: str, root: Path) -> Any:
    """Return what a registry says: versions with aliases and tags, and the tags of the model, without times."""
    registry = Registry(Tracker(uri, root))
    versions = [
        (
            version.number,
            version.aliases,
            {key: tag for key, tag in version.tags.items() if not key.startswith(("decided_at", "trained_at"))},
        )
        for version in registry.versions(NAME)
    ]
    return versions, registry._store.tags(NAME)


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

    def submit_to(store: Path) -> str:
        uri = f"sqlite:///{shutil.copy(template, store) if not store.exists() else store}"
        model = TrainedModel("AAPL", ["AAPL"], run.run_id)
        submit(Registry(Tracker(uri, layout.root)), layout, model, recipe, tickers_tested=1)
        return uri

    with pytest.MonkeyPatch.context() as patch:
        writes = interrupt_before(patch, 0)
        expected = said(submit_to(tmp_path / "0.db"), layout.root)
    for name in sample:
        numbers = [number for number, write in enumerate(writes, start=1) if write == name]
        store = tmp_path / f"{name}.db"
        with pytest.MonkeyPatch.context() as patch:
            interrupt_before(patch, numbers[len(numbers) // 2])
            with pytest.raises(Interrupted):
                submit_to(store)
        assert said(submit_to(store), layout.root) == expected, name
