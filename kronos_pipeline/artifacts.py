"""Layout of the output folder, its JSON and Parquet files, and manifests that record the origin of each artifact."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kronos_pipeline.atomic_writes import write_file
from kronos_pipeline.checksums import (
    changed_file,
    file_hash,
    json_bytes,
    json_lines_bytes,
    json_text,
    open_parquet,
    parquet_bytes,
    parse_json,
    read_json_bytes,
    remedy,
)
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.manifests import find_wrong_entry
from kronos_pipeline.names import NAME, NAME_RULE

MANIFEST = "manifest.json"
SAMPLING = "sampling"
"""Folder of the sampling settings by ticker, in the folder of an adapter, a checkpoint or the base model."""
PARQUET_MANIFEST = b"kronos_manifest"
"""Key of the manifest in the metadata of a Parquet file's schema."""


@dataclass(frozen=True)
class ArtifactLayout:
    """Paths below an output folder; symbols and adapter names are checked before they become part of a path."""

    root: Path

    def bars(self, ticker: str) -> Path:
        """Stored bars of a ticker."""
        return self.root / "bars" / f"{_checked_name(ticker)}.parquet"

    def windows(self, ticker: str) -> Path:
        """Stored windows of a ticker."""
        return self.root / "windows" / f"{_checked_name(ticker)}.parquet"

    def adapter(self, name: str) -> Path:
        """Folder of an adapter."""
        return self.root / "adapters" / _checked_name(name)

    @property
    def best_checkpoint(self) -> Path:
        """Folder of the checkpoint with the lowest loss on the selection block."""
        return self.root / "checkpoints" / "best_model"

    @property
    def last_checkpoint(self) -> Path:
        """Folder of the checkpoint after the last step."""
        return self.root / "checkpoints" / "last_model"

    def trained(self, adapter: str | None) -> Path:
        """The adapter of that name; the checkpoint for None."""
        return self.best_checkpoint if adapter is None else self.adapter(adapter)

    def state(self, key: str) -> Path:
        """Folder of the state that a training resumes from."""
        return self.root / "state" / _checked_name(key)

    def ticker_metrics(self, ticker: str) -> Path:
        """Evaluation of a ticker."""
        return self.root / "metrics" / f"{_checked_name(ticker)}.json"

    def ticker_forecasts(self, ticker: str) -> Path:
        """Predictions of a ticker's holdout."""
        return self.root / "metrics" / f"{_checked_name(ticker)}.parquet"

    @property
    def evaluation(self) -> Path:
        """Evaluation over all tickers."""
        return self.root / "metrics" / "evaluation.json"

    @property
    def forecasts(self) -> Path:
        """Mean paths of all holdouts, a column per model."""
        return self.root / "metrics" / "forecasts.parquet"

    @property
    def predictions(self) -> Path:
        """Predictions of all holdouts, a row per bar, cutoff and model."""
        return self.root / "metrics" / "predictions.parquet"

    @property
    def leaderboard(self) -> Path:
        """Leaderboard of the models."""
        return self.root / "metrics" / "leaderboard.json"

    @property
    def seeds(self) -> Path:
        """Losses of the recipe over seeds."""
        return self.root / "metrics" / "seeds.json"

    @property
    def ensemble(self) -> Path:
        """Folder of the sampling of the ensemble over seeds."""
        return self.root / "seeds" / "ensemble"

    def seed(self, seed: int) -> Path:
        """Output folder of the trainings with another seed."""
        return self.root / "seeds" / str(seed)

    def backtest_evaluation(self, trained: str) -> Path:
        """The backtest over all tickers."""
        return self.root / "backtest" / f"{_checked_name(trained)}.json"

    def backtest(self, trained: str, ticker: str) -> Path:
        """The predictions of a ticker's backtest; `trained` is "adapter" or "checkpoint"."""
        return self.root / "backtest" / _checked_name(trained) / f"{_checked_name(ticker)}.parquet"

    def backtest_report(self, trained: str, ticker: str) -> Path:
        """The evaluation of a ticker's backtest."""
        return self.root / "backtest" / _checked_name(trained) / f"{_checked_name(ticker)}.json"

    def backtest_fold(self, key: str) -> Path:
        """Folder of a finished fold, by its cache key."""
        return self.root / "backtest" / "folds" / _checked_name(key)

    def forecast(self, ticker: str) -> Path:
        """The forecast of the next bars."""
        return self.root / "forecasts" / f"{_checked_name(ticker)}.parquet"

    @property
    def champions(self) -> Path:
        """Folder of the last known champions of an MLflow server, by registered model."""
        return self.root / "champions"

    @property
    def ledger(self) -> Path:
        """Folder of the forecasts that were issued, by month."""
        return self.root / "ledger"

    def track_record(self, ticker: str) -> Path:
        """The scores of a ticker's issued forecasts."""
        return self.root / "track_record" / f"{_checked_name(ticker)}.json"

    def refit(self, name: str) -> Path:
        """An adapter trained on all bars, including the holdout, so it is not measured."""
        return self.root / "refits" / _checked_name(name)

    @property
    def refit_checkpoint(self) -> Path:
        """A checkpoint trained on all bars, including the holdout, so it is not measured."""
        return self.root / "checkpoints" / "refit_model"

    def refit_of(self, adapter: str | None) -> Path:
        """The refit of the adapter of that name; of the checkpoint for None."""
        return self.refit_checkpoint if adapter is None else self.refit(adapter)

    @property
    def base(self) -> Path:
        """The sampling settings of the base model, by ticker."""
        return self.root / "base"

    def plot(self, ticker: str) -> Path:
        """The picture of a ticker's forecasts of the holdout."""
        return self.root / "plots" / f"{_checked_name(ticker)}.png"

    def picture(self, ticker: str, kind: str) -> Path:
        """A further picture of a ticker: "fan", "steps", "reliability", "forecast" or "record"."""
        return self.root / "plots" / _checked_name(ticker) / f"{_checked_name(kind)}.png"

    @property
    def mlflow_database(self) -> Path:
        """MLflow's database, unless MLFLOW_TRACKING_URI names another store."""
        return self.root / "mlflow.db"

    @property
    def mlflow_waiting(self) -> Path:
        """Folder of the runs that wait for an MLflow store that is away."""
        return self.root / "mlflow_waiting"

    @property
    def mlflow_artifacts(self) -> Path:
        """Folder of MLflow's artifacts."""
        return self.root / "mlruns"


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ArtifactError(f"{name!r} cannot name a file: {NAME_RULE}.")
    return name


def write_json(path: Path, content: Any, *, checksum: bool = True) -> None:
    """Write `content` as JSON, atomically; NaN and infinity raise ValueError, as standard JSON has neither.

    An object gets a checksum as its last entry, unless `checksum` is false, for files that other programs read.
    """
    written = json_bytes(content, checksum=checksum)
    write_file(path, lambda handle: handle.write(written))


def write_report(path: Path, content: Mapping[str, Any]) -> None:
    """Write a large JSON object with a checksum, a line for each entry and each item of its lists, atomically."""
    written = json_lines_bytes(content)
    write_file(path, lambda handle: handle.write(written))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON artifact, which holds an object, and verify its checksum; check the types of a manifest's entries.

    Raises:
        ArtifactError: the file is missing or damaged, or is not as it was written.
    """
    try:
        content = read_json_bytes(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); {remedy(path)}.") from error
    if path.name == MANIFEST and (wrong := find_wrong_entry(content)):
        raise ArtifactError(f"{path}: {wrong}; {remedy(path)}.")
    return content


def write_parquet(path: Path, frame: pd.DataFrame, manifest: dict[str, Any]) -> None:
    """Write a frame without its index, with the manifest in the schema's metadata and a checksum, atomically."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    note = json_text(manifest).encode()
    content = parquet_bytes(table.replace_schema_metadata({**(table.schema.metadata or {}), PARQUET_MANIFEST: note}))
    write_file(path, lambda handle: handle.write(content))


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a file that `write_parquet` wrote, without its frame.

    Raises:
        ArtifactError: the file is missing or damaged, is not as it was written, or has no manifest.
    """
    with readable_parquet(path) as file:
        return _parquet_manifest(path, file.schema_arrow)


def read_parquet(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a frame that `write_parquet` wrote, and its manifest.

    Raises:
        ArtifactError: the file is missing or damaged, is not as it was written, or has no manifest.
    """
    with readable_parquet(path) as file:
        manifest = _parquet_manifest(path, file.schema_arrow)
        return file.read().to_pandas(), manifest


def _parquet_manifest(path: Path, schema: pa.Schema) -> dict[str, Any]:
    manifest = (schema.metadata or {}).get(PARQUET_MANIFEST)
    if manifest is None:
        raise ArtifactError(f"{path} has no manifest, so this project did not write it; move it and make it again.")
    return parse_json(manifest)


@contextmanager
def readable_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet artifact, verify its checksum, and turn errors of the reading into errors for users.

    Raises:
        ArtifactError: the file is missing or damaged, is not as it was written, or its table is too large.
    """
    try:
        with open_parquet(path) as file:
            yield file
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); {remedy(path)}.") from error


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest.json` into a folder, with the hash of every other file, including nested files."""
    files = {
        file.relative_to(folder).as_posix(): file_hash(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    write_json(folder / MANIFEST, {**manifest, "files": files})


def mlflow_run_of(folder: Path) -> str | None:
    """Return the id of the MLflow run that trained the adapter or checkpoint in a folder; None if none is recorded."""
    if not (folder / MANIFEST).is_file():
        return None
    run: str | None = read_json(folder / MANIFEST).get("mlflow_run")
    return run


def check_file(path: Path) -> None:
    """Compare a file of a published folder, or of a folder in one, with its hash in the manifest, if it has one.

    Raises:
        ArtifactError: it is not as it was written, or the manifest is damaged.
    """
    for folder in list(path.parents)[:2]:
        if (folder / MANIFEST).is_file():
            recorded = read_json(folder / MANIFEST).get("files", {}).get(path.relative_to(folder).as_posix())
            if recorded is not None and recorded != (actual := file_hash(path)):
                raise changed_file(path, actual, str(recorded))


def check_folder(folder: Path) -> None:
    """Compare every file of a published folder, or of a copy without some files, with its hash in the manifest.

    Raises:
        ArtifactError: a file is not as it was written, or the manifest is damaged.
    """
    for name in read_json(folder / MANIFEST).get("files", {}):
        if (folder / name).is_file():
            check_file(folder / name)


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that shape a result."""
    names = ("torch", "numpy", "pandas", "peft", "accelerate", "sktime", "safetensors")
    return {name: importlib.metadata.version(name) for name in names}
