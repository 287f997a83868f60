"""The sensor of the data folder: what changed is ingested, and retrained when enough new bars have come.

    a file's size or time differs -> its hash differs -> ingest, or with enough bars after its adapter's last: retrain

Most files are no more than looked at: only one whose size or time changed is hashed, and only one whose hash changed is
read, if its bars are not stored already, as they are for a sensor that starts anew. A ticker without an adapter is
ingested and not trained: the first training is for a person or a schedule to ask.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pandas as pd

from kronos_pipeline.artifacts import file_hash
from kronos_pipeline.data.bar_cache import read_files_cached
from kronos_pipeline.data.csv_files import CsvFile, CsvFolder, find_csv_files
from kronos_pipeline.errors import DataError
from kronos_pipeline.orchestration.automation.jobs import INGEST, RETRAIN_ADAPTER, AutomationSettings
from kronos_pipeline.orchestration.metadata import LAST_BAR
from kronos_pipeline.orchestration.partitions import split_into_runs

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

_READ_PER_TICK = 200
"""Changed files that one tick reads: a tick has a minute. The others are the next tick's."""

Seen = dict[str, list[str]]
"""By ticker: the file's size and time as they were last seen, and its hash."""


def make_sensor(
    data_dir: Path,
    tickers: Sequence[str],
    jobs: Sequence[UnresolvedAssetJobDefinition],
    settings: AutomationSettings,
) -> dg.SensorDefinition:
    """The sensor `changed_csvs`.

    Args:
        data_dir: the folder with the CSVs.
        tickers: the partitions, as they were found when the code location loaded.
        jobs: those of the code location.
        settings: how many new bars ask for retraining, and how many tickers one run covers.
    """

    @dg.sensor(
        name="changed_csvs",
        jobs=[job for job in jobs if job.name in (INGEST, RETRAIN_ADAPTER)],
        minimum_interval_seconds=60,
        required_resource_keys={"pipeline"},
        description=f"Ingests changed CSVs, and retrains an adapter after {settings.retrain_after_bars} new bars.",
    )
    def changed_csvs(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            folder = find_csv_files(data_dir)
        except DataError as error:
            return dg.SkipReason(str(error))
        notes = _differences(folder, tickers)
        for note in notes:
            context.log.warning(note)
        seen: Seen = json.loads(context.cursor or "{}")
        changed = _changed([folder.files[ticker] for ticker in tickers if ticker in folder.files], seen)
        layout = context.resources.pipeline.layout
        retrained = _due(context.instance, changed, layout.bars, settings.retrain_after_bars)
        ingested = {file.ticker for file in changed} - set(retrained)
        requests = [
            dg.RunRequest(job_name=job, tags=tags)
            for job, wanted in ((INGEST, ingested), (RETRAIN_ADAPTER, retrained))
            for tags in split_into_runs(wanted, tickers, settings.tickers_per_run)
        ]
        cursor = json.dumps({ticker: seen[ticker] for ticker in seen if ticker in folder.files})
        if requests:
            return dg.SensorResult(run_requests=requests, cursor=cursor)
        context.update_cursor(cursor)
        return dg.SkipReason(" ".join(["No CSV has changed.", *notes]))

    return changed_csvs


def _differences(folder: CsvFolder, tickers: Sequence[str]) -> list[str]:
    """What a person should know of a folder that is not what the partitions are."""
    new = [ticker for ticker in folder.files if ticker not in tickers]
    gone = [ticker for ticker in tickers if ticker not in folder.files]
    notes = [str(problem) for problem in folder.problems.values()]
    if new:
        notes.append(f"New in the folder: {', '.join(new)}. Reload the code location to see them.")
    if gone:
        notes.append(f"No longer in the folder: {', '.join(gone)}. Reload the code location to drop them.")
    return notes


def _changed(files: Sequence[CsvFile], seen: Seen) -> list[CsvFile]:
    """The files whose content is not what was seen last, up to what one tick can read; `seen` is brought up to date."""
    changed: list[CsvFile] = []
    for file in files:
        try:
            state = file.path.stat()
            stamp = [str(state.st_size), str(state.st_mtime_ns)]
            before = seen.get(file.ticker, ["", "", ""])
            if before[:2] == stamp:
                continue
            if len(changed) == _READ_PER_TICK:
                break
            content = file_hash(file.path)
        except OSError:
            continue  # gone or locked since the folder was listed; the next tick looks again
        if content != before[2]:
            changed.append(file)
        seen[file.ticker] = [*stamp, content]
    return changed


def _due(
    instance: dg.DagsterInstance, files: Sequence[CsvFile], stored_at: Callable[[str], Path], enough: int
) -> list[str]:
    """The tickers whose files hold enough bars that came after those of their last training.

    Of a bad file nothing is said here: ingesting it tells what is wrong.
    """
    trained = {file.ticker: last for file in files if (last := _last_trained_bar(instance, file.ticker)) is not None}
    good, _, _ = read_files_cached([file for file in files if file.ticker in trained], stored_at)
    return [ticker for ticker, bars in good.items() if (bars.frame["timestamps"] > trained[ticker]).sum() >= enough]


def _last_trained_bar(instance: dg.DagsterInstance, ticker: str) -> pd.Timestamp | None:
    """The time of the last bar of the data of the ticker's last training, or None."""
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey("adapter"), asset_partitions=[ticker])
    records = instance.fetch_materializations(wanted, limit=1).records
    trained = records[0].asset_materialization if records else None
    if trained is None or LAST_BAR not in trained.metadata:
        return None
    return pd.Timestamp(str(trained.metadata[LAST_BAR].value))
