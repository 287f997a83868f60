"""Types of the entries of a manifest, for manifests that were written by hand or by another program."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError


def _time(text: str) -> str:
    datetime.fromisoformat(text)
    return text


class _Entries(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _BaseOfTraining(_Entries):
    name: str = ""
    label: str = ""
    revision: str | None = None
    tokenizer: str = ""
    tokenizer_revision: str | None = None
    weights_hash: str = ""


class _Manifest(_Entries):
    """Entries of the manifest of a base model that other code reads; all of them may be absent."""

    context: int = 0
    files: dict[str, str] = {}


class _TrainingManifest(_Manifest):
    """Entries of the manifest of an adapter or a checkpoint that other code reads; all of them may be absent."""

    artifact: str = ""
    key: str = ""
    base_model: _BaseOfTraining = _BaseOfTraining()
    contamination: str | None = None
    data: dict[str, str] = {}
    seen_until: dict[str, Annotated[str, AfterValidator(_time)] | None] = {}
    config: dict[str, Any] = {}
    training: dict[str, Any] = {}
    code_version: str = ""
    mlflow_run: str | None = None
    together: list[str] = []
    published_at: float | None = None


def find_wrong_entry(manifest: Mapping[str, Any]) -> str | None:
    """Return a phrase on the first entry of a manifest that is of a wrong type, or None."""
    # Only the manifest of a base model has a kind, and its data is a sentence.
    expected = _Manifest if "kind" in manifest else _TrainingManifest
    try:
        expected.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        return f"its entry {'.'.join(map(str, first['loc']))} is wrong: {first['msg']}"
    return None
