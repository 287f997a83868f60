"""What happened since the last summary: trained, promoted, skipped, failed and so on, each with its reason.

It is put together from the instance's events and ticks, so it covers runs of schedules, sensors and people alike.
Tickers with one reason share a line, which links to the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus
from dagster._core.storage.tags import SCHEDULE_NAME_TAG, SENSOR_NAME_TAG, WILL_RETRY_TAG

from kronos_pipeline.errors import cause_of, count, enumerate_some, group_messages
from kronos_pipeline.orchestration.metadata import DRIFTED, OBSTACLES, SUMMARY, WARNINGS
from kronos_pipeline.orchestration.newest_events import newest_materialisations, newest_summaries
from kronos_pipeline.orchestration.run_summary import failed_in
from kronos_pipeline.orchestration.run_tickers import TICKERS

HEADINGS = ("trained", "promoted", "skipped", "failed", "drifting", "expired", "warned")
_RUNS = 500
"""The largest number of failed runs that are read; a night of five thousand tickers is a hundred runs."""
_LINES = 12
"""The largest number of lines of a heading."""


class Entry(NamedTuple):
    """What happened to a ticker, a job or a schedule: its name, the reason, and the run, or None without a run."""

    subject: str
    text: str
    run_id: str | None = None


Summary = Mapping[str, Sequence[Entry]]
"""The entries by heading; see `HEADINGS`."""


def read_events(instance: dg.DagsterInstance, tickers: Sequence[str], since: datetime) -> dict[str, list[Entry]]:
    """Return the entries of all headings but `expired`.

    Args:
        instance: the instance with the events.
        tickers: the partitions of the code location.
        since: the time of the oldest event, with a zone.
    """
    runs = _Runs(instance)
    promoted, skipped = _decisions(instance, tickers, since)
    return {
        "trained": list(_trainings(instance, tickers, since, runs)),
        "promoted": promoted,
        "skipped": [
            *skipped,
            *(
                Entry(tick.instigator_name, tick.skip_reason or "skipped")
                for tick in _ticks(instance, since, TickStatus.SKIPPED)
            ),
            *(
                Entry(_subject(run), "the run was cancelled", run.run_id)
                for run in _ended_runs(instance, since, dg.DagsterRunStatus.CANCELED)
            ),
        ],
        "failed": [
            *(
                entry
                for run in _ended_runs(instance, since, dg.DagsterRunStatus.FAILURE)
                for entry in failures(instance, run)
            ),
            *(
                Entry(tick.instigator_name, _first_line(tick.error.message if tick.error else "the tick failed"))
                for tick in _ticks(instance, since, TickStatus.FAILURE)
            ),
        ],
        "drifting": list(_drifting(instance, tickers)),
        "warned": list(_warned(instance, tickers, since)),
    }


def failures(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[Entry]:
    """Return the reason of each failed ticker of a failed run, or that of the run; none if the run starts once more."""
    if run.tags.get(WILL_RETRY_TAG) == "true":
        return []
    if by_ticker := failed_in(instance, run.run_id):
        return [Entry(ticker, reason, run.run_id) for ticker, reason in by_ticker.items()]
    return [Entry(_subject(run), _reason(instance, run), run.run_id)]


def title_of(summary: Summary) -> str:
    """Return the counts in a line: "12 trained, 1 promoted, 2 failed"."""
    numbers = {heading: len({entry.subject for entry in summary.get(heading, ())}) for heading in HEADINGS}
    return ", ".join(f"{number:,} {heading}" for heading, number in numbers.items() if number) or "nothing happened"


def markdown_of(summary: Summary, link: Callable[[str], str]) -> str:
    """Return the entries as Markdown, those with one reason in one line.

    Args:
        summary: the entries.
        link: returns a run in Markdown, by its id.
    """
    parts = []
    for heading in HEADINGS:
        lines = _lines(summary.get(heading, ()), link)
        if lines:
            more = [f"- and {count(len(lines) - _LINES, 'more reason')}"] if len(lines) > _LINES else []
            parts.append("\n".join([f"**{heading.capitalize()}**", "", *lines[:_LINES], *more]))
    return "\n\n".join(parts) or "Nothing was trained, and nothing failed."


def run_link(address: str | None) -> Callable[[str], str]:
    """Return a function that names a run in Markdown, with a link if the address of Dagster's UI is known."""
    if address is None:
        return lambda run_id: f"run {run_id[:8]}"
    return lambda run_id: f"[run {run_id[:8]}]({address.rstrip('/')}/runs/{run_id})"


def _lines(entries: Sequence[Entry], link: Callable[[str], str]) -> list[str]:
    causes: dict[str, list[Entry]] = {}
    for entry in entries:
        causes.setdefault(cause_of(entry.text), []).append(entry)
    lines = []
    for alike in sorted(causes.values(), key=len, reverse=True):
        [line] = group_messages((entry.subject, entry.text) for entry in alike)
        runs = list(dict.fromkeys(entry.run_id for entry in alike if entry.run_id))
        more = f" and {count(len(runs) - 1, 'more run')}" if len(runs) > 1 else ""
        lines.append(f"- {line}" + (f" ({link(runs[0])}{more})" if runs else ""))
    return lines


class _Runs:
    """The runs of the entries, each read once."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._known: dict[str, dg.DagsterRun | None] = {}

    def origin(self, run_id: str | None) -> str:
        """Return who asked for a run, in words."""
        if not run_id:
            return "by the command line"
        if run_id not in self._known:
            self._known[run_id] = self._instance.get_run_by_id(run_id)
        run = self._known[run_id]
        if run is None:
            return "by a run that was deleted"
        for tag, kind in ((SCHEDULE_NAME_TAG, "schedule"), (SENSOR_NAME_TAG, "sensor")):
            if tag in run.tags:
                return f"by the {kind} {run.tags[tag]}"
        return "by hand"


def _trainings(instance: dg.DagsterInstance, tickers: Sequence[str], since: datetime, runs: _Runs) -> Iterator[Entry]:
    kind: Any = dg.DagsterEventType.ASSET_MATERIALIZATION
    adapter, checkpoint = dg.AssetKey("adapter"), dg.AssetKey("checkpoint")
    records = [*newest_summaries(instance, adapter, tickers).values()]
    records = [*records, *instance.get_asset_event_summary_records(kind, checkpoint, limit=1)]
    for record in sorted(records, key=lambda record: record.partition or ""):
        if record.timestamp >= since.timestamp():
            yield Entry(record.partition or "checkpoint", runs.origin(record.run_id), record.run_id or None)


def _decisions(
    instance: dg.DagsterInstance, tickers: Sequence[str], since: datetime
) -> tuple[list[Entry], list[Entry]]:
    """Return the models that the gate promoted since a time, and those that it did not."""
    newest = dict(newest_materialisations(instance, dg.AssetKey("champion"), tickers))
    records = instance.fetch_materializations(dg.AssetKey("checkpoint_champion"), limit=1).records
    if records:
        newest["checkpoint"] = records[0]
    promoted, others = [], []
    for name, record in sorted(newest.items()):
        event = record.asset_materialization
        if event is None or record.timestamp < since.timestamp():
            continue
        if _value(event, "promoted") is True:
            promoted.append(Entry(name, f"champion of {_value(event, 'champion of')}", record.run_id or None))
        else:
            others.append(Entry(name, f"not promoted; {_value(event, OBSTACLES)}", record.run_id or None))
    return promoted, others


def _drifting(instance: dg.DagsterInstance, tickers: Sequence[str]) -> Iterator[Entry]:
    """Yield the tickers whose champion drifts by the newest measurement, however old it is."""
    for ticker, record in sorted(newest_materialisations(instance, dg.AssetKey("drift"), tickers).items()):
        event = record.asset_materialization
        if event is not None and _value(event, DRIFTED) is True:
            yield Entry(ticker, str(_value(event, SUMMARY)), record.run_id or None)


def _warned(instance: dg.DagsterInstance, tickers: Sequence[str], since: datetime) -> Iterator[Entry]:
    """Yield the tickers whose forecast did without a file or the MLflow server since a time."""
    for ticker, record in sorted(newest_materialisations(instance, dg.AssetKey("forecast"), tickers).items()):
        event = record.asset_materialization
        if event is not None and record.timestamp >= since.timestamp() and (warnings := _value(event, WARNINGS)):
            yield Entry(ticker, str(warnings).removeprefix("- ").replace("\n- ", "; "), record.run_id or None)


def _value(event: dg.AssetMaterialization, name: str) -> Any:
    value = event.metadata.get(name)
    return value.value if value is not None else None


def _ended_runs(instance: dg.DagsterInstance, since: datetime, status: dg.DagsterRunStatus) -> Iterable[dg.DagsterRun]:
    records = instance.get_run_records(dg.RunsFilter(statuses=[status], updated_after=since), limit=_RUNS)
    return [record.dagster_run for record in records if (record.end_time or 0.0) >= since.timestamp()]


def _ticks(instance: dg.DagsterInstance, since: datetime, status: TickStatus) -> Iterator[InstigatorTick]:
    """Yield the ticks of a status: of schedules, and, as a sensor skips most of its ticks, of sensors that failed."""
    if instance.schedule_storage is None:
        return  # an instance in memory
    kinds = [InstigatorType.SCHEDULE, *([InstigatorType.SENSOR] if status == TickStatus.FAILURE else [])]
    for kind in kinds:
        for state in instance.all_instigator_state(instigator_type=kind):
            yield from instance.get_ticks(
                state.instigator_origin_id, state.selector_id, after=since.timestamp(), statuses=[status], limit=_RUNS
            )


def _subject(run: dg.DagsterRun) -> str:
    """Return the tickers of a run, or its job."""
    tickers = (run.tags.get(TICKERS) or run.tags.get("dagster/partition") or "").split(", ")
    return f"{run.job_name} of {enumerate_some(tickers, 3)}" if any(tickers) else run.job_name


def _reason(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """Return the first line of why a run failed: of its first failed step, or of the run itself."""
    for kind in (dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE):
        for record in instance.get_records_for_run(run.run_id, of_type=kind, ascending=True).records:
            event = record.event_log_entry.get_dagster_event()
            if event.is_step_failure:
                cause = event.step_failure_data.user_failure_data
                error = event.step_failure_data.error
                text = cause.description if cause else error and (error.cause or error).message
            else:
                text = event.message
            if text:
                return _first_line(text)
    return "the run failed"


def _first_line(text: str) -> str:
    """Return the first line that has a reason: "adapter failed for AAPL:" is followed by it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if not line.endswith(":")), lines[0] if lines else "no reason is known")
