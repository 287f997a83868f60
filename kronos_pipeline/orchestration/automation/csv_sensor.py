"""The sensor of the data folder: ingest changed CSVs, and retrain adapters after enough new bars.

    a file's size or time differs -> its hash differs -> ingest, or with enough bars after its adapter's last: retrain

The sensor hashes a file only if its size or time changed, and reads it only if its hash changed and its bars are not
stored already (after a reset of the sensor they are). A ticker without an adapter is ingested and not trained: a person
or a schedule requests the first training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pandas as pd
from pydantic import TypeAdapter

from kronos_pipeline.checksums import file_hash, text_hash
from kronos_pipeline.data.bar_cache import read_files_cached
from kronos_pipeline.data.bars import Bars
from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.data.csv_files import CsvFolder, find_csv_files
from kronos_pipeline.errors import KronosError, enumerate_some
from kronos_pipeline.orchestration.automation.jobs import INGEST, RETRAIN_ADAPTER, AutomationSettings
from kronos_pipeline.orchestration.automation.sensor_state import load_state, save_state
from kronos_pipeline.orchestration.metadata import LAST_BAR
from kronos_pipeline.orchestration.newest_events import newest_materialisations
from kronos_pipeline.orchestration.partitions import split_into_runs

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

_NAME = "changed_csvs"
_READ_PER_TICK = 200
"""The largest number of changed files read in a tick, whose limit is a minute. The next tick reads the others."""

FileStates = dict[str, tuple[str, str, str]]
"""By ticker: size, time and hash of its file at the last tick; a hash of these of its files if there are several."""


def make_csv_sensor(
    data_dir: Path,
    tickers: Sequence[str],
    jobs: Sequence[UnresolvedAssetJobDefinition],
    settings: AutomationSettings,
) -> dg.SensorDefinition:
    """Return the sensor `changed_csvs`.

    Args:
        data_dir: the folder with the CSVs.
        tickers: the partitions of the code location.
        jobs: the jobs of the code location.
        settings: the number of new bars that triggers retraining, and the number of tickers per run.
    """

    @dg.sensor(
        name=_NAME,
        jobs=[job for job in jobs if job.name in (INGEST, RETRAIN_ADAPTER)],
        minimum_interval_seconds=60,
        required_resource_keys={"pipeline"},
        description=f"Ingests changed CSVs, and retrains an adapter after {settings.retrain_after_bars} new bars.",
    )
    def changed_csvs(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            reading = context.resources.pipeline.reading
            folder = find_csv_files(data_dir, reading)
        except KronosError as error:
            return dg.SkipReason(str(error))
        notes = _folder_notes(folder, tickers)
        for note in notes:
            context.log.warning(note)
        states = load_state(context, _NAME, TypeAdapter(FileStates))
        changed = _changed_files([folder.files[ticker] for ticker in tickers if ticker in folder.files], states)
        layout = context.resources.pipeline.layout
        retrained = _tickers_to_retrain(
            context.instance,
            changed,
            lambda files: read_files_cached(files, layout.bars, reading)[0],
            settings.retrain_after_bars,
        )
        ingested = {file.ticker for file in changed} - set(retrained)
        requests = [
            dg.RunRequest(job_name=job, tags=tags)
            for job, selected in ((INGEST, ingested), (RETRAIN_ADAPTER, retrained))
            for tags in split_into_runs(selected, tickers, settings.tickers_per_run)
        ]
        known = {ticker: states[ticker] for ticker in sorted(states) if ticker in folder.files}
        cursor = save_state(context, _NAME, known)
        if requests:
            return dg.SensorResult(run_requests=requests, cursor=cursor)
        context.update_cursor(cursor)
        return dg.SkipReason(" ".join(["No CSV has changed.", *notes]))

    return changed_csvs


def _folder_notes(folder: CsvFolder, tickers: Sequence[str]) -> list[str]:
    """Return notes on problems of the folder, and on its differences from the partitions."""
    known = set(tickers)
    new = [ticker for ticker in folder.files if ticker not in known]
    missing = [ticker for ticker in tickers if ticker not in folder.files]
    notes = [*folder.notes, *(str(problem) for problem in folder.problems.values())]
    if new:
        notes.append(f"New in the folder: {enumerate_some(new)}. Reload the code location to see them.")
    if missing:
        notes.append(f"No longer in the folder: {enumerate_some(missing)}. Reload the code location to drop them.")
    return notes


def _changed_files(files: Sequence[CsvFile], known_states: FileStates) -> list[CsvFile]:
    """Return the files with new content, at most as many as a tick can read, and update `seen`."""
    changed: list[CsvFile] = []
    hash_of = cache(file_hash)  # a file may hold several tickers
    for file in files:
        try:
            states = [path.stat() for path in file.paths]
            stamp = (
                _joined([str(state.st_size) for state in states]),
                _joined([str(state.st_mtime_ns) for state in states]),
            )
            previous = known_states.get(file.ticker, ("", "", ""))
            if previous[:2] == stamp:
                continue
            if len(changed) == _READ_PER_TICK:
                break
            content = _joined([hash_of(path) for path in file.paths])
        except OSError:
            continue  # gone or locked since the folder was listed; the next tick tries again
        if content != previous[2]:
            changed.append(file)
        known_states[file.ticker] = (*stamp, content)
    return changed


def _joined(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else text_hash(*texts)


def _tickers_to_retrain(
    instance: dg.DagsterInstance,
    files: Sequence[CsvFile],
    read: Callable[[Sequence[CsvFile]], Mapping[str, Bars]],
    enough: int,
) -> list[str]:
    """Return the tickers with enough bars after the last bar of their last training.

    A bad file is not reported here: its ingestion reports the problems.
    """
    last_bars = _last_trained_bars(instance, [file.ticker for file in files])
    bars_of_trained = read([file for file in files if file.ticker in last_bars])
    return [
        ticker
        for ticker, bars in bars_of_trained.items()
        if (bars.frame["timestamps"] > last_bars[ticker]).sum() >= enough
    ]


def _last_trained_bars(instance: dg.DagsterInstance, tickers: Sequence[str]) -> dict[str, pd.Timestamp]:
    """Return by trained ticker the time of the last bar in the data of its last training."""
    records = newest_materialisations(instance, dg.AssetKey("adapter"), tickers)
    trained = {ticker: record.asset_materialization for ticker, record in records.items()}
    return {
        ticker: pd.Timestamp(str(event.metadata[LAST_BAR].value))
        for ticker, event in trained.items()
        if event is not None and LAST_BAR in event.metadata
    }
