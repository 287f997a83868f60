"""Layout of the output folder, atomic writes, and manifests that record the origin of each artifact.

Files are written to a temporary sibling, flushed to the disk and renamed, so a reader never sees a partial file. A
folder cannot replace another by renaming, so a published folder is a symbolic link to a version beside it, and a new
link replaces the old link by renaming:

    adapters/AAPL -> .versions/AAPL-20260102T030405-1f2e3d4c/
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kronos_pipeline.config import NAME
from kronos_pipeline.errors import ArtifactError

MANIFEST = "manifest.json"
SAMPLING = "sampling"
"""Folder of the sampling settings by ticker, in the folder of an adapter, a checkpoint or the base model."""
PARQUET_MANIFEST = b"kronos_manifest"
"""Key of the manifest in the metadata of a Parquet file's schema."""
_VERSIONS_KEPT = 2


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
        raise ArtifactError(f"{name!r} cannot name a file: letters, digits and .-_^= only, without a leading dot.")
    return name


def check_writable(folder: Path) -> None:
    """Create `folder` and check that it is writable, before long work.

    Raises:
        ArtifactError: the folder cannot be created or written to.
    """
    with _readable_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = _sibling(folder / "probe")
        probe.touch()
        probe.unlink()


def write_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file atomically: readers see the complete old file or the complete new file.

    Args:
        path: the file; missing parent folders are created.
        write: receives the temporary file, open for writing bytes.

    Raises:
        ArtifactError: the file cannot be written; an earlier file stays unchanged.
    """
    with _readable_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _sibling(path)
        try:
            with temporary.open("wb") as handle:
                write(handle)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, atomically; NaN and infinity raise ValueError, as standard JSON has neither."""
    text = _json(content, indent=2) + "\n"
    write_file(path, lambda handle: handle.write(text.encode()))


def parse_json(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: the text is no JSON, or JSON of another kind.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON artifact, which holds an object.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); make it again.") from error


def write_parquet(path: Path, frame: pd.DataFrame, manifest: dict[str, Any]) -> None:
    """Write a frame without its index, with the manifest in the schema's metadata, atomically."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    note = _json(manifest).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), PARQUET_MANIFEST: note})
    # Prices rarely repeat, so a dictionary encoding makes the file larger and doubles the time of writing.
    repeating = [field.name for field in table.schema if not pa.types.is_floating(field.type)]
    write_file(path, lambda handle: pq.write_table(table, handle, use_dictionary=repeating))


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a file that `write_parquet` wrote, without its frame.

    Raises:
        ArtifactError: the file is missing or damaged, or has no manifest.
    """
    with _readable_parquet(path):
        return _parquet_manifest(path, pq.read_schema(path))


def read_parquet(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a frame that `write_parquet` wrote, and its manifest.

    Raises:
        ArtifactError: the file is missing or damaged, or has no manifest.
    """
    with _readable_parquet(path):
        table = pq.read_table(path, partitioning=None)  # a folder such as lr=3 is no column
        manifest = _parquet_manifest(path, table.schema)
        return table.to_pandas(), manifest


def _parquet_manifest(path: Path, schema: pa.Schema) -> dict[str, Any]:
    manifest = (schema.metadata or {}).get(PARQUET_MANIFEST)
    if manifest is None:
        raise ArtifactError(f"{path} has no manifest, so this project did not write it; move it and make it again.")
    return parse_json(manifest)


@contextmanager
def _readable_parquet(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); make it again.") from error


@contextmanager
def publish_folder(path: Path) -> Iterator[Path]:
    """Publish a folder atomically: readers see the complete folder or the previous version.

    Yields an empty folder to fill. After the block, `path` becomes a link to it; if the block raises, the folder is
    removed and `path` stays unchanged. The previous version is kept for readers that have it open.

    Raises:
        ArtifactError: the folder cannot be written, or `path` is a folder that this project did not create.
    """
    with _readable_errors(path):
        if path.exists() and not path.is_symlink():
            raise ArtifactError(f"{path} is in the way: it is no artifact of this project; move it and run again.")
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        version = path.parent / ".versions" / f"{path.name}-{stamp}-{uuid.uuid4().hex[:8]}"
        version.mkdir(parents=True)
        try:
            yield version
            for entry in (*version.rglob("*"), version, version.parent):
                _sync(entry)
            link = _sibling(path)
            link.symlink_to(Path(".versions") / version.name, target_is_directory=True)
            link.replace(path)
            _sync(path.parent)
        except BaseException:
            shutil.rmtree(version, ignore_errors=True)
            raise
        _drop_old_versions(path)


def _drop_old_versions(path: Path) -> None:
    # A stamp and eight hex digits follow the name, so AAPL does not match AAPL-B's versions.
    stamped = "[0-9]" * 8 + "T" + "[0-9]" * 12 + "-" + "[0-9a-f]" * 8
    escaped = path.name.replace("[", "[[]")
    versions = sorted((path.parent / ".versions").glob(f"{escaped}-{stamped}"), key=lambda version: version.name)
    current = path.readlink().name
    for version in versions[:-_VERSIONS_KEPT]:
        if version.name != current:  # an older version is current if a process that began later ended sooner
            shutil.rmtree(version, ignore_errors=True)


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


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def bytes_hash(content: bytes) -> str:
    """Return the SHA-256 of bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def text_hash(*parts: str) -> str:
    """Return the SHA-256 of texts in order, in hex."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part.encode())
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that shape a result."""
    names = ("torch", "numpy", "pandas", "peft", "accelerate", "sktime", "safetensors")
    return {name: importlib.metadata.version(name) for name in names}


def _json(content: Any, indent: int | None = None) -> str:
    return json.dumps(content, indent=indent, allow_nan=False, default=_json_value)


def _json_value(value: Any) -> Any:
    """Convert a NumPy scalar, a path or a date to a JSON type; other types are an error of the caller."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path | date):
        return str(value)
    raise TypeError(f"{value!r} has no place in a JSON artifact")


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _readable_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArtifactError(f"{path} cannot be written ({reason}); choose another --output-dir or mend it.") from error
