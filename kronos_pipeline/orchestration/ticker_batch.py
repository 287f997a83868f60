"""Batches of tickers in one step: good tickers are stored, recorded and passed on; bad tickers fail by name.

Dagster records a materialisation of every partition in a run's range when a step yields its output, and it skips all
steps downstream of a failed step. So one bad ticker would either be recorded as materialised, or keep the good tickers
from being trained. Here the step yields its output without that record, adds a materialisation for each good ticker and
an observation with the problems for each bad ticker, and succeeds; the asset's `complete` check then fails the run and
names the bad tickers. A step without any good ticker, or in a run without that check, fails itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

from kronos_pipeline.errors import ArtifactError, DataError, KronosError
from kronos_pipeline.orchestration.failures import failure_message, make_failure, problem_table, read_problem_table
from kronos_pipeline.orchestration.metadata import without_pictures
from kronos_pipeline.orchestration.newest_events import newest_ids
from kronos_pipeline.orchestration.partitions import tickers_tested
from kronos_pipeline.orchestration.run_tickers import run_tickers
from kronos_pipeline.orchestration.sharing import refused_tickers

COMPLETE = "complete"
"""The name of the check that fails a run if tickers of its step failed."""
_NO_RECORD = {SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True}
"""Metadata of an output that keeps Dagster from recording it for the whole range. Dagster has no public name for it; a
test fails if it stops working."""
MOST_WITH_PICTURES = 1000
"""Tickers of a code location up to which events hold pictures: a night of 5,000 would add a gigabyte to Dagster's
database, nine tenths of it pictures. Their files stay, and MLflow's runs have them."""
PROBLEMS = "problems"
"""Metadata of an observation that marks its ticker as failed."""

Event = dg.Output[Any] | dg.AssetMaterialization | dg.AssetObservation


class TickerBatch:
    """The tickers of a step, with their artifacts and errors.

    Attributes:
        tickers: the run's tickers, or the given ones, without those that failed upstream in the same run.
        done: artifacts, by ticker.
        errors: errors, by ticker.
    """

    def __init__(self, context: dg.AssetExecutionContext, tickers: Sequence[str] | None = None) -> None:
        self._context = context
        self._metadata: dict[str, Mapping[str, Any]] = {}
        failed = failed_in_run(context, context.asset_key)
        of_step = run_tickers(context) if tickers is None else tickers
        refused = refused_tickers(context.run.run_id, context.asset_key.to_user_string())
        self.tickers = [ticker for ticker in of_step if ticker not in failed and ticker not in refused]
        self._pictures = max(tickers_tested(context), len(of_step)) <= MOST_WITH_PICTURES
        self.done: dict[str, Any] = {}
        self.errors: dict[str, KronosError] = {
            ticker: refused[ticker] for ticker in of_step if ticker in refused and ticker not in failed
        }

    @contextmanager
    def ticker(self, ticker: str) -> Iterator[None]:
        """Record a `KronosError` of the block as this ticker's failure, so that the other tickers go on."""
        try:
            yield
        except KronosError as error:
            self.errors[ticker] = error

    def add(self, ticker: str, artifact: Any, metadata: Mapping[str, Any]) -> None:
        """Record a ticker's artifact and the metadata that the UI shows with it."""
        self.done[ticker] = artifact
        self._metadata[ticker] = metadata if self._pictures else without_pictures(metadata)

    def materialisations(self, asset: dg.AssetKey) -> Iterator[dg.AssetMaterialization]:
        """Yield a materialisation of an asset's partition for each good ticker."""
        for ticker, metadata in self._metadata.items():
            yield dg.AssetMaterialization(asset, partition=ticker, metadata=dict(metadata))

    def events(self, data_version: str | None = None) -> Iterator[Event]:
        """Yield the step's events for Dagster.

        Args:
            data_version: a hash of the artifacts, for assets with inputs that Dagster does not see.

        Raises:
            dagster.Failure: no ticker is good, or some are bad and the run has no `complete` check to report them.
        """
        asset = self._context.asset_key.to_user_string()
        if not self.done:
            raise make_failure(asset, self.errors)
        version = dg.DataVersion(data_version) if data_version else None
        if set(self.done) == set(self._context.partition_keys):
            for ticker, metadata in self._metadata.items():
                self._context.add_asset_metadata(metadata, partition_key=ticker)
            with warnings.catch_warnings():
                # Data versions are not stable in Dagster yet; constraints.txt pins its version.
                warnings.simplefilter("ignore", dg.BetaWarning)
                output = dg.Output(self.done, data_version=version)
            yield output
            return
        yield dg.Output(self.done, metadata=_NO_RECORD)
        yield from self.materialisations(self._context.asset_key)
        for ticker, error in self.errors.items():
            self._context.log.error(failure_message(asset, {ticker: error}))
            problems = {PROBLEMS: problem_table({ticker: error})}
            yield dg.AssetObservation(self._context.asset_key, partition=ticker, metadata=problems)
        if self.errors and not _will_run(self._context, f"{asset}_{COMPLETE}"):
            raise make_failure(asset, self.errors)


def failed_in_run(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, asset: dg.AssetKey
) -> dict[str, str]:
    """Return the tickers that failed in this run, at an asset or upstream of it, with the name of the failed asset.

    A run that is retried goes on from the run before: the steps that it skips failed there.
    """
    graph = context.job_def.asset_layer.asset_graph
    # The graph of a job ends at virtual assets; the graph that it was made from has what is upstream of them.
    ancestors = getattr(graph, "source_asset_graph", graph).get_ancestor_asset_keys(asset, include_self=True)
    failed: dict[str, str] = {}
    for run_id, repeated in _runs_of_steps(context):
        records = context.instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION).records
        for observation in (record.event_log_entry.asset_observation for record in records):
            if (
                observation
                and observation.partition
                and observation.asset_key in ancestors
                and observation.asset_key.to_python_identifier() not in repeated
                and PROBLEMS in observation.metadata
            ):
                failed[observation.partition] = observation.asset_key.to_user_string()
    return failed


def _runs_of_steps(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext,
) -> list[tuple[str, frozenset[str]]]:
    """Return this run and the runs that it goes on from, each with its steps that a later run repeats.

    A run that is retried after its process was killed skips the steps that had ended.
    """
    runs: list[tuple[str, frozenset[str]]] = []
    run, repeated = context.instance.get_run_by_id(context.run.run_id), frozenset[str]()
    while run is not None:
        runs.append((run.run_id, repeated))
        if run.step_keys_to_execute is None or run.parent_run_id is None:
            break  # it ran all steps itself
        repeated |= frozenset(run.step_keys_to_execute)
        run = context.instance.get_run_by_id(run.parent_run_id)
    return runs


def failed_tickers(instance: dg.DagsterInstance, asset: dg.AssetKey, tickers: Sequence[str]) -> dict[str, KronosError]:
    """Return the tickers that were never materialised or failed in their latest attempt, with the error."""
    materialised = newest_ids(instance, asset, tickers)
    observed = newest_ids(instance, asset, tickers, dg.DagsterEventType.ASSET_OBSERVATION)
    return {
        ticker: _latest_error(instance, asset, ticker)
        for ticker in tickers
        if ticker not in materialised or observed.get(ticker, -1) > materialised[ticker]
    }


def _latest_error(instance: dg.DagsterInstance, asset: dg.AssetKey, ticker: str) -> KronosError:
    newest = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[ticker])
    records = instance.fetch_observations(newest, limit=1).records
    observation = records[0].asset_observation if records else None
    table = observation.metadata.get(PROBLEMS) if observation else None
    if not isinstance(table, dg.TableMetadataValue):
        return ArtifactError(f"{ticker}: {asset.to_user_string()} was never materialised.")
    return DataError(read_problem_table(table), ticker)


def _will_run(context: dg.AssetExecutionContext, step: str) -> bool:
    """Return whether the run includes the step."""
    steps = context.run.step_keys_to_execute
    return step in steps if steps else context.job_def.has_node_named(step)
