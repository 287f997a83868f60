"""The data assets: bars from CSVs, and windows from bars."""

# Annotations are not postponed here: Dagster reads the annotation of `context` and refuses a string.
from collections.abc import Iterator

import dagster as dg

from kronos_pipeline.checksums import text_hash
from kronos_pipeline.data.bar_cache import read_files_cached
from kronos_pipeline.data.csv_files import find_csv_files
from kronos_pipeline.data.vanished import find_vanished
from kronos_pipeline.data.windows import build_all_windows
from kronos_pipeline.orchestration.failures import as_failure
from kronos_pipeline.orchestration.io_manager import TickerArtifacts
from kronos_pipeline.orchestration.metadata import bars_metadata, windows_metadata
from kronos_pipeline.orchestration.resources import PipelineSettings
from kronos_pipeline.orchestration.setting_names import name_settings
from kronos_pipeline.orchestration.ticker_batch import Event, TickerBatch
from kronos_pipeline.pipeline.ingest import note_on_other_data


def raw_bars(context: dg.AssetExecutionContext, pipeline: PipelineSettings) -> Iterator[Event]:
    """A ticker's validated OHLCV bars, from its CSV in the data folder; stored as `bars/<T>.parquet`.

    All bad lines of a file are reported at once, with file, line, column, rule and value. An unchanged file is not read
    again.
    """
    with as_failure("raw_bars"):
        reading = pipeline.reading
        found = find_csv_files(pipeline.data_folder, reading)
        folder = find_vanished(found, pipeline.layout, accept_history=pipeline.accept_history)
        for note in folder.notes:
            context.log.warning(note)
        if note_on_other := note_on_other_data(pipeline.layout, pipeline.data_dir, folder.files):
            context.log.warning(name_settings(note_on_other))
        batch = TickerBatch(context)
        files = []
        for ticker in batch.tickers:
            with batch.ticker(ticker):
                files.append(folder.file(ticker))
        good, bad, unchanged = read_files_cached(
            files, pipeline.layout.bars, reading, accept_history=pipeline.accept_history
        )
        if unchanged:
            context.log.info(f"{len(unchanged)} of {len(files)} CSVs are as they were when they were last read.")
        for ticker, bars in good.items():
            batch.add(ticker, bars, bars_metadata(bars) | {"CSV unchanged": ticker in unchanged})
        batch.errors |= bad
        yield from batch.events(text_hash(*(bars.content_hash for bars in batch.done.values())))


def windows(
    context: dg.AssetExecutionContext, raw_bars: TickerArtifacts, pipeline: PipelineSettings
) -> Iterator[Event]:
    """A ticker's windows of lookback and target bars, split into train, selection and holdout.

    Stored as `windows/<T>.parquet`: one row per window, with its offsets, split and normalisation statistics.
    """
    with as_failure("windows"):
        recipe = pipeline.recipe("lora")
        batch = TickerBatch(context)
        bars = []
        for ticker in batch.tickers:
            with batch.ticker(ticker):
                bars.append(raw_bars[ticker])
        if note := recipe.lookback_note:
            context.log.warning(f"{note}.")
        cut, errors = build_all_windows(bars, recipe)
        for ticker, window_set in cut.items():
            batch.add(ticker, window_set, windows_metadata(window_set))
        batch.errors |= errors
        yield from batch.events()
