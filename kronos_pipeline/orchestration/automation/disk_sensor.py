"""The sensor of the output folder: report artifacts that no run made, such as those of the command line.

    a file's time is not that of the last tick -> it is newer than the asset's last event -> an event without a run

The plain command knows nothing of Dagster, so the UI learns from its files what it made. A file that was written since
an unfinished run began waits for the run's end, because the run may report it itself. With an artifact store, a tick
first fetches what other machines have published, so the UI learns of their commands too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
from pydantic import TypeAdapter

from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, read_json
from kronos_pipeline.data.bars import load_bars
from kronos_pipeline.data.windows import load_windows
from kronos_pipeline.errors import KronosError, count
from kronos_pipeline.evaluation.predictions import ADAPTER
from kronos_pipeline.orchestration.automation.published import PublishedArtifacts
from kronos_pipeline.orchestration.automation.sensor_state import load_state, save_state
from kronos_pipeline.orchestration.metadata import (
    LAST_BAR,
    bars_metadata,
    evaluation_metadata,
    manifest_metadata,
    windows_metadata,
)
from kronos_pipeline.orchestration.newest_events import newest_summaries

_NAME = "artifacts_on_disk"
SECONDS_PER_TICK = 5.0
"""The time after which a tick leaves artifacts to the next tick. Reading one takes about 0.1 s, and so does writing its
event on a busy machine: a tick never lasts as long as the daemon waits for it."""
_UNFINISHED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]

FileTimes = dict[str, int]
"""By file: its time, in nanoseconds, when a tick examined it."""


class Artifact(NamedTuple):
    """An artifact on the disk: its asset and partition, its file, and a function that returns its metadata."""

    asset: str
    ticker: str | None
    path: Path
    metadata: Callable[[], Mapping[str, Any]]

    @property
    def events(self) -> Iterator[dg.AssetMaterialization]:
        """The materialisations to report; none if the artifact cannot be read."""
        written = datetime.fromtimestamp(self.path.lstat().st_mtime, UTC).isoformat(timespec="seconds")
        try:
            metadata = {"made": f"without Dagster; written at {written}", **self.metadata()}
        except (KronosError, AttributeError, LookupError, TypeError, ValueError):
            return  # damaged, or of an earlier version; whatever loads it reports it
        yield dg.AssetMaterialization(self.asset, partition=self.ticker, metadata=metadata)
        if self.asset == "adapter":
            yield dg.AssetMaterialization(["adapter", str(self.ticker)], metadata=metadata)


def make_disk_sensor(tickers: Sequence[str]) -> dg.SensorDefinition:
    """Return the sensor `artifacts_on_disk`, which is on by default."""
    published = PublishedArtifacts()

    @dg.sensor(
        name=_NAME,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={"pipeline"},
        description="Reports artifacts that were made without Dagster, by the command line, as materialisations.",
    )
    def artifacts_on_disk(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        known = load_state(context, _NAME, TypeAdapter(FileTimes))
        layout = context.resources.pipeline.layout
        published.fetch(layout, tickers, SECONDS_PER_TICK, context.log.warning)
        found = {str(artifact.path): artifact for artifact in _artifacts(layout, set(tickers))}
        times = {name: artifact.path.lstat().st_mtime_ns for name, artifact in found.items()}
        begun = _first_unfinished(context.instance)
        changed = sorted(
            (name for name, at in times.items() if at != known.get(name) and at < begun * 1e9), key=times.__getitem__
        )
        newer = _newer_than_events(context.instance, [found[name] for name in changed])
        examined: FileTimes = {name: at for name, at in known.items() if name in found}
        reported, deadline = 0, time.monotonic() + SECONDS_PER_TICK
        for name in changed:
            if found[name] in newer:
                if reported and time.monotonic() > deadline:
                    break
                # Written here and not by the daemon, so that the time of the writing counts.
                for event in found[name].events:
                    context.instance.report_runless_asset_event(event)
                    reported += 1
            examined[name] = times[name]
        context.update_cursor(save_state(context, _NAME, dict(sorted(examined.items()))))
        if not reported:
            return dg.SkipReason("Every artifact on the disk is known.")
        waiting = sum(name not in examined or examined[name] != times[name] for name in changed)
        return dg.SkipReason(f"Reported {count(reported, 'artifact')}; {waiting} more wait for the next tick.")

    return artifacts_on_disk


def _artifacts(layout: ArtifactLayout, tickers: set[str]) -> Iterator[Artifact]:
    """Yield the artifacts of the code location's tickers."""
    for asset, path_of, metadata_of in (
        ("raw_bars", layout.bars, _bars),
        ("windows", layout.windows, _windows),
        ("adapter", layout.adapter, _adapter),
        ("holdout_metrics", layout.ticker_metrics, _holdout),
        ("backtest", partial(layout.backtest_report, ADAPTER), _backtest),
    ):
        folder = path_of("T").parent
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        for ticker in sorted(tickers):
            if (path := path_of(ticker)).name in names:
                yield Artifact(asset, ticker, path, partial(metadata_of, layout, ticker))
    if layout.best_checkpoint.exists():
        yield Artifact("checkpoint", None, layout.best_checkpoint, partial(_trained, layout.best_checkpoint))
    if layout.leaderboard.exists():
        yield Artifact("leaderboard", None, layout.leaderboard, lambda: _evaluated(layout.evaluation, "Holdout"))


def _first_unfinished(instance: dg.DagsterInstance) -> float:
    """Return the time, in seconds, at which the first unfinished run was created; infinity without one."""
    records = instance.get_run_records(dg.RunsFilter(statuses=_UNFINISHED))
    return min((record.create_timestamp.timestamp() for record in records), default=float("inf"))


def _newer_than_events(instance: dg.DagsterInstance, artifacts: Sequence[Artifact]) -> set[Artifact]:
    """Return the artifacts that were written after the last materialisation of their asset and partition."""
    newer: set[Artifact] = set()
    for asset in {artifact.asset for artifact in artifacts}:
        of_asset = [artifact for artifact in artifacts if artifact.asset == asset]
        key, times = dg.AssetKey(asset), dict[str | None, float]()
        if of_asset[0].ticker is None:
            records = instance.fetch_materializations(key, limit=1).records
            times[None] = records[0].timestamp if records else 0.0
        else:
            newest = newest_summaries(instance, key, [str(artifact.ticker) for artifact in of_asset])
            times |= {ticker: summary.timestamp for ticker, summary in newest.items()}
        newer |= {artifact for artifact in of_asset if artifact.path.lstat().st_mtime > times.get(artifact.ticker, 0.0)}
    return newer


def _bars(layout: ArtifactLayout, ticker: str) -> Mapping[str, Any]:
    return bars_metadata(load_bars(layout.bars(ticker)))


def _windows(layout: ArtifactLayout, ticker: str) -> Mapping[str, Any]:
    return windows_metadata(load_windows(layout.windows(ticker), load_bars(layout.bars(ticker))))


def _adapter(layout: ArtifactLayout, ticker: str) -> Mapping[str, Any]:
    """Return the metadata of an adapter; the last bar is that of its data, from which new bars are counted."""
    folder = layout.adapter(ticker)
    manifest, last = read_json(folder / MANIFEST), None
    if layout.bars(ticker).exists():
        bars = load_bars(layout.bars(ticker))
        if manifest["data"].get(ticker) == bars.content_hash:
            last = bars.frame["timestamps"].iloc[-1].isoformat()
    last = last or manifest["seen_until"].get(ticker)
    return {**_trained(folder), **({LAST_BAR: last} if last else {})}


def _trained(folder: Path) -> Mapping[str, Any]:
    return manifest_metadata(folder, read_json(folder / MANIFEST))


def _holdout(layout: ArtifactLayout, ticker: str) -> Mapping[str, Any]:
    return _evaluated(layout.ticker_metrics(ticker), "Holdout")


def _backtest(layout: ArtifactLayout, ticker: str) -> Mapping[str, Any]:
    return _evaluated(layout.backtest_report(ADAPTER, ticker), "Backtest")


def _evaluated(report: Path, source: str) -> Mapping[str, Any]:
    return evaluation_metadata(read_json(report), source)
