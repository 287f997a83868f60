"""What is in an output folder, by ticker: bars, trainings, verdicts, champions, and what is stale or failed.

It reads manifests, stored evaluations and the registry's SQLite file, and imports neither torch nor MLflow, so that a
look takes about a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, read_json, readable_parquet
from kronos_pipeline.errors import ArtifactError, KronosError
from kronos_pipeline.evaluation.predictions import ADAPTER, CHECKPOINT
from kronos_pipeline.evaluation.reports.worth import combined_verdict_of
from kronos_pipeline.evaluation.scoring.targets import TARGETS
from kronos_pipeline.names import NAME

if TYPE_CHECKING:
    from kronos_pipeline.config import ReadingSettings
    from kronos_pipeline.data.csv_file import CsvFile
    from kronos_pipeline.tracking.stored_registry import RegisteredModel


@dataclass
class TickerStatus:
    """The state of a ticker; times are ISO 8601, those of files in UTC.

    Attributes:
        ticker: the symbol.
        csv: the CSV in the data folder, or None.
        bars: number of stored bars, or None before the first reading.
        last_bar: time of the last stored bar.
        trained: time of the last training by kind, "adapter" and "checkpoint".
        evaluated: the model, the kind of evaluation, its cutoffs, its last bar, and the verdict on each target.
        champions: the version that is champion of each target, and the day of its promotion.
        stale: what is older than what it was made from, a phrase each.
        expired: champions that were promoted longer ago than `expires_days`, a phrase each; `stale` has them too.
        failed: the reason that the ticker failed in the last run, or None.
    """

    ticker: str
    csv: str | None = None
    bars: int | None = None
    last_bar: str | None = None
    trained: dict[str, str] = field(default_factory=dict)
    evaluated: dict[str, Any] = field(default_factory=dict)
    champions: dict[str, dict[str, str]] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    expired: list[str] = field(default_factory=list)
    failed: str | None = None


@dataclass(frozen=True)
class FolderStatus:
    """The state of all tickers of a data folder and an output folder.

    Attributes:
        tickers: the state of each ticker, sorted by symbol.
        notes: what could not be read, a sentence each.
        settings: the settings of the last training; empty without an evaluation.
    """

    tickers: tuple[TickerStatus, ...]
    notes: tuple[str, ...]
    settings: Mapping[str, Any]


def read_status(data_dir: Path, layout: ArtifactLayout, now: datetime) -> FolderStatus:
    """Read the state of every ticker that has a CSV or an artifact.

    Args:
        data_dir: the folder of CSVs; it may be missing.
        layout: the layout of the artifacts.
        now: the current time, with a zone.
    """
    notes: list[str] = []
    evaluations = _evaluations(layout, notes)
    settings = _settings_of(evaluations)
    reading = _reading(settings)
    files = _csv_files(data_dir, reading, notes)
    stored = {path.stem: path for path in layout.bars("X").parent.glob("*.parquet") if NAME.fullmatch(path.stem)}
    tickers = {name: TickerStatus(name) for name in sorted({*files, *stored})}
    times: dict[tuple[int, str], str] = {}
    for name, status in tickers.items():
        status.csv = str(files[name].paths[0]) if name in files else None
        if name in stored:
            _read_bars(status, stored[name], notes, times)
            _check_csv(status, files.get(name), stored[name], reading)
    _read_trainings(layout, tickers, notes)
    for evaluation in evaluations:
        _read_evaluation(tickers, evaluation)
    _read_champions(layout, tickers, int(settings.get("expires_days", 30)), now, notes)
    for status in tickers.values():
        until = status.evaluated.get("until")
        if until and status.last_bar and status.last_bar > until:
            status.stale.append(f"bars since the last evaluation, which ends on {until[:10]}")
        elif status.bars and status.trained and not status.evaluated:
            status.stale.append("trained, but not evaluated")
    return FolderStatus(tuple(tickers.values()), tuple(notes), settings)


def reading_of_last_evaluation(layout: ArtifactLayout) -> ReadingSettings:
    """Return the settings of the reading in the last evaluation, or the defaults."""
    return _reading(_settings_of(_evaluations(layout, [])))


def _settings_of(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return next((found["manifest"]["config"] for found in evaluations if "config" in found["manifest"]), {})


def _reading(settings: Mapping[str, Any]) -> ReadingSettings:
    from kronos_pipeline.config import ReadingSettings

    return ReadingSettings.model_validate(
        {name: value for name, value in settings.items() if name in ReadingSettings.model_fields}
    )


def _csv_files(data_dir: Path, reading: ReadingSettings, notes: list[str]) -> Mapping[str, CsvFile]:
    from kronos_pipeline.data.csv_files import find_csv_files

    try:
        return find_csv_files(data_dir, reading).files
    except KronosError as error:
        notes.append(str(error))
        return {}


def _read_bars(status: TickerStatus, path: Path, notes: list[str], times: dict[tuple[int, str], str]) -> None:
    """Read number and last time of stored bars from the statistics in the file's footer.

    Args:
        status: the state of the ticker, which is changed.
        path: the stored bars.
        notes: what could not be read, to which a sentence may be added.
        times: the times so far by their number and type, as most tickers end on the same day, and Arrow is slow.
    """
    try:
        with readable_parquet(path) as file:
            footer = file.metadata
        column = footer.schema.names.index("timestamps")
        groups = [footer.row_group(group).column(column).statistics for group in range(footer.num_row_groups)]
    except ArtifactError as error:
        notes.append(str(error))
        return
    except ValueError:
        notes.append(f"{path} holds no bars; train again.")
        return
    status.bars = footer.num_rows
    if groups and all(statistics is not None and statistics.has_min_max for statistics in groups):
        newest = max(groups, key=lambda statistics: statistics.max_raw)
        key = newest.max_raw, footer.schema.column(column).logical_type.to_json()
        if key not in times:
            times[key] = newest.max.isoformat()
        status.last_bar = times[key]


def _check_csv(status: TickerStatus, file: CsvFile | None, stored: Path, reading: ReadingSettings) -> None:
    """Note a CSV that is newer than the stored bars, unless it reads the same."""
    from kronos_pipeline.data.bar_cache import is_current

    if file is None:
        status.stale.append("its CSV is gone")
        return
    newer = any(path.stat().st_mtime > stored.stat().st_mtime for path in file.paths)
    if newer and not is_current(file, stored, reading):
        status.stale.append("its CSV has changed since it was read")


def _read_trainings(layout: ArtifactLayout, tickers: Mapping[str, TickerStatus], notes: list[str]) -> None:
    """Note the time of each ticker's adapter, and of the checkpoint that was trained on it."""
    for name, status in tickers.items():
        manifest = layout.adapter(name) / MANIFEST
        if manifest.is_file():
            status.trained[ADAPTER] = _time_of(manifest)
    manifest = layout.best_checkpoint / MANIFEST
    if manifest.is_file():
        try:
            trained = read_json(manifest).get("data", {})
        except ArtifactError as error:
            notes.append(str(error))
            return
        for name in tickers.keys() & trained.keys():
            tickers[name].trained[CHECKPOINT] = _time_of(manifest)


def _time_of(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")


def _evaluations(layout: ArtifactLayout, notes: list[str]) -> list[dict[str, Any]]:
    """Return the stored evaluations, the newest file first; a damaged file becomes a note."""
    paths = [layout.evaluation, *(layout.backtest_evaluation(kind) for kind in (ADAPTER, CHECKPOINT))]
    found = []
    for path in sorted((path for path in paths if path.is_file()), key=lambda path: -path.stat().st_mtime):
        try:
            found.append({**read_json(path), "kind": "holdout" if path == layout.evaluation else "backtest"})
        except ArtifactError as error:
            notes.append(str(error))
    return found


def _read_evaluation(tickers: dict[str, TickerStatus], evaluation: Mapping[str, Any]) -> None:
    """Note the verdicts of an evaluation on tickers without any, or with too little evidence; and what failed."""
    for entry in evaluation["per_symbol"]:
        status, model = tickers.get(entry["symbol"]), evaluation["model"]
        if status is None:
            continue
        if not status.evaluated or entry["cutoffs"] > status.evaluated["cutoffs"]:
            verdicts = {target: combined_verdict_of(entry, model, target) for target in TARGETS}
            until = max(entry["holdout"]["last"], status.evaluated.get("until", ""))
            kind = {"model": model, "kind": evaluation["kind"], "cutoffs": entry["cutoffs"]}
            status.evaluated = {**kind, "until": until, "verdicts": verdicts}
    for entry in evaluation["skipped"]:
        status = tickers.setdefault(entry["symbol"], TickerStatus(entry["symbol"]))
        status.failed = status.failed or entry["reason"].splitlines()[0]


def _read_champions(
    layout: ArtifactLayout, tickers: Mapping[str, TickerStatus], expires_days: int, now: datetime, notes: list[str]
) -> None:
    from kronos_pipeline.promotion.champion_warnings import champion_age
    from kronos_pipeline.tracking.version_store import CHECKPOINT_NAME, registered_name

    models = _registered_models(layout, notes)
    for name, status in tickers.items():
        for model_name in (registered_name(name), CHECKPOINT_NAME):
            model = models.get(model_name)
            if model is None:
                continue
            versions = {version.number: version for version in model.versions}
            for target, number in model.champions.numbers.items():
                champion = versions[number]
                if target in status.champions or not champion.covers(name):
                    continue
                since = str(champion.decision("decided_at", target) or "")
                status.champions[target] = {"version": str(champion), "since": since}
                age = champion_age(champion, now)
                if expires_days and age is not None and age > expires_days:
                    status.expired.append(f"its champion of {target} was promoted {age} days ago")
        status.stale += status.expired


def _registered_models(layout: ArtifactLayout, notes: list[str]) -> Mapping[str, RegisteredModel]:
    from kronos_pipeline.tracking.outbox import Outbox
    from kronos_pipeline.tracking.store import find_store_uri
    from kronos_pipeline.tracking.stored_registry import fetch_registered_models, read_registered_models

    uri = find_store_uri(None, layout.root)
    if waiting := Outbox(layout.mlflow_waiting, uri).sentence():
        notes.append(waiting)
    try:
        models = read_registered_models(uri, champions_only=True)
        return fetch_registered_models(uri) if models is None else models
    except KronosError as error:
        notes.append(str(error))
        return {}
