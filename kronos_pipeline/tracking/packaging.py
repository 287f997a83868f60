"""Package a trained model as an MLflow `pyfunc` made from code, with signature and input example, without a pickle.

    MLmodel  served_model.py  input_example.json  requirements.txt ...
    artifacts/model/     the adapter or checkpoint with its manifest and sampling settings
    evidence.parquet     the predictions of its verdict; a refit has none

The package does not contain the base model of an adapter: the manifest has its name and the hash of its weights.
`served_model.py` imports this project, so a serving environment needs this project installed.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kronos_pipeline.artifacts import (
    MANIFEST,
    SAMPLING,
    check_folder,
    package_versions,
    read_json,
    read_parquet,
    write_parquet,
)
from kronos_pipeline.data.bars import FEATURES, PRICES
from kronos_pipeline.data.simulate import simulate_ticker
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.evaluation.predictions import BOUNDS
from kronos_pipeline.evaluation.scoring.targets import ChosenVariants

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

WEIGHTS_HASH = "weights_hash"
"""Tag of a version with the hash of its weights, by which it is known."""
MODEL = "model"
FOLDER = f"artifacts/{MODEL}"
EVIDENCE = "evidence.parquet"
FORECAST = ("mean", "median", *BOUNDS)
"""Values of a served forecast beside its time, in the file's price unit."""
_TORCH_FILE = "adapter.pt"
_VARIANTS = "variants"
_LATER_COLUMNS = ("squared_return", "range_variance", "variance", "p_up")


@dataclass(frozen=True)
class EvidenceTable:
    """The predictions of a verdict, and the variants that were chosen to stand for the models on each target."""

    predictions: pd.DataFrame
    variants: ChosenVariants = field(default_factory=dict)


def save_pyfunc(folder: Path, target: Path, model: Model, evidence: EvidenceTable | None) -> None:
    """Write an MLflow model folder.

    Args:
        folder: the adapter or checkpoint, with its manifest.
        target: the folder to create.
        model: MLflow's record of the model, with its ids.
        evidence: the evidence of its verdict; None for a refit.

    Raises:
        ArtifactError: the folder has no manifest of this project, or a file of it was edited or damaged.
    """
    from mlflow import pyfunc

    manifest = read_training_manifest(folder)
    check_folder(folder)
    with TemporaryDirectory() as temporary:
        copied = Path(temporary) / MODEL
        # Leave out adapter.pt: it is for scripts, contains a pickle and has the same tensors as PEFT's file.
        shutil.copytree(folder.resolve(), copied, ignore=shutil.ignore_patterns(_TORCH_FILE))
        pyfunc.save_model(
            str(target),
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={MODEL: str(copied)},
            model_config=_base_model(manifest),
            signature=_signature(),
            input_example=_example(int(manifest["config"]["lookback"])),
            pip_requirements=_requirements(),
            mlflow_model=model,
        )
    if evidence is not None:
        _write_evidence(target, evidence)


def save_evidence(folder: Path, target: Path, evidence: EvidenceTable) -> None:
    """Write what an evaluation adds to an MLflow model folder: the evidence, and the sampling settings that it fitted.

    Args:
        folder: the adapter or checkpoint.
        target: an empty folder.
        evidence: the evidence.
    """
    if (fitted := folder / SAMPLING).is_dir():
        shutil.copytree(fitted, target / FOLDER / SAMPLING)
    _write_evidence(target, evidence)


def _write_evidence(target: Path, evidence: EvidenceTable) -> None:
    write_parquet(target / EVIDENCE, evidence.predictions, {_VARIANTS: evidence.variants})


def read_evidence(path: Path) -> EvidenceTable:
    """Read the file of evidence of a version; NaN in columns that earlier versions of the project did not have.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    table, manifest = read_parquet(path)
    table = table.assign(**{name: np.nan for name in _LATER_COLUMNS if name not in table})
    return EvidenceTable(table, manifest.get(_VARIANTS, {}))


def manifest_tags(folder: Path) -> dict[str, str]:
    """Return the version tags from a folder's manifest.

    Raises:
        ArtifactError: the folder has no manifest of this project.
    """
    from kronos_pipeline.model.lora import is_adapter  # imports torch

    manifest = read_training_manifest(folder)
    base = manifest["base_model"]
    tags = {
        "kind": "adapter" if is_adapter(folder) else "checkpoint",
        "trained_on": ",".join(sorted(manifest["data"])),
        "base_model": base["label"],
        "base_revision": base["revision"],
        "base_hash": base["weights_hash"],
        WEIGHTS_HASH: trained_weights_hash(folder),
        "contamination": manifest.get("contamination"),
        "code_version": manifest["code_version"],
    }
    return {key: str(value) for key, value in tags.items() if value}


def trained_weights_hash(folder: Path) -> str:
    """Return the hash of the trained weights in a folder, and of the base model that they are for.

    Raises:
        ArtifactError: the folder has no manifest of this project.
    """
    from kronos_pipeline.model.loading import checkpoint_hash  # imports torch
    from kronos_pipeline.model.lora import adapter_hash, is_adapter

    base_hash = read_training_manifest(folder)["base_model"]["weights_hash"]
    return adapter_hash(folder, base_hash) if is_adapter(folder) else checkpoint_hash(folder, base_hash)


def read_training_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of an adapter or checkpoint.

    Raises:
        ArtifactError: the manifest is missing or is not of a training.
    """
    manifest = read_json(folder / MANIFEST)
    required = ("base_model", "data", "config", "code_version")
    if any(key not in manifest for key in required):
        raise ArtifactError(f"{folder / MANIFEST} is not that of a training; train again.")
    return manifest


def _base_model(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return location-independent base model names: a folder by its absolute path, a published model at its commit."""
    base = manifest["base_model"]
    names = {"base_model": ("name", "revision"), "tokenizer": ("tokenizer", "tokenizer_revision")}
    return {key: _resolved_name(str(base[name]), base.get(revision)) for key, (name, revision) in names.items()}


def _resolved_name(name: str, revision: str | None) -> str:
    if revision is not None:
        return name if "@" in name else f"{name}@{revision}"
    folder = Path(name).expanduser()
    return str(folder.absolute()) if folder.is_dir() else name


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, schema

    any_type: Any = schema.AnyType  # MLflow does not type its constructor
    optional = [name for name in FEATURES if name not in PRICES]
    # Times are AnyType because MLflow would convert zoned times to UTC; volumes are AnyType because MLflow rejects
    # integers for doubles. `serving` parses both.
    inputs: list[Any] = [
        ColSpec(any_type(), "timestamps"),
        *(ColSpec(DataType.double, name) for name in PRICES),
        *(ColSpec(any_type(), name, required=False) for name in optional),
        ColSpec(DataType.string, "unique_id", required=False),
    ]
    outputs: list[Any] = [ColSpec(DataType.datetime, "ds"), *(ColSpec(DataType.double, name) for name in FORECAST)]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def _example(bars: int) -> pd.DataFrame:
    """Return a lookback of simulated bars."""
    frame = simulate_ticker([0], bars).frame()
    return frame.assign(timestamps=frame["timestamps"].astype(str))[["timestamps", *PRICES, "volume"]]


def _requirements() -> list[str]:
    names = {**package_versions(), "mlflow": importlib.metadata.version("mlflow")}
    return [f"{name}=={version}" for name, version in sorted(names.items())]
