"""Interruptions before a write to the MLflow store, by number, and what a registry says afterwards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from mlflow import MlflowClient

from kronos_pipeline.tracking.registry import Registry

WRITES = (
    *("create_logged_model", "log_model_artifacts", "finalize_logged_model", "log_outputs", "log_batch"),
    *("create_registered_model", "update_registered_model", "create_model_version", "set_logged_model_tags"),
    *("set_registered_model_tag", "delete_registered_model_tag", "set_model_version_tag", "update_model_version"),
    *("set_registered_model_alias", "delete_registered_model_alias"),
)
_TIMES = ("decided_at", "trained_at")


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


def content_of(registry: Registry, name: str) -> Any:
    """Return what a registry says of a model: versions with aliases and tags, and the model's tags, without times."""
    versions = [
        (
            version.number,
            version.aliases,
            {key: tag for key, tag in version.tags.items() if not key.startswith(_TIMES)},
        )
        for version in registry.versions(name)
    ]
    return versions, registry._store.tags(name)
