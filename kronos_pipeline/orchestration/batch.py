"""One step over one ticker or many: the good ones are stored, recorded and passed on, and the bad ones fail by name.

Dagster records a materialisation of every partition in a run's range as soon as a step gives its output, and it skips
all that is downstream of a step that fails. So a bad ticker among good ones would either count as made, or keep the
good ones from being trained. Here the step gives its output without that record, writes a materialisation for each good
ticker and an observation with the problems for each bad one, and goes on; the asset's `complete` check then fails the
run, naming them. A step with no good ticker, or without that check in its run, fails itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

from kronos_pipeline.errors import ArtifactError, DataError, KronosError
from kronos_pipeline.orchestration.failures import describe, make_failure, problem_table, read_problem_table

COMPLETE = "complete"
"""The name of the check that fails a run for the tickers that its step could not make."""
_NO_RECORD = {SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True}
"""Metadata of an output that keeps Dagster from recording it for the whole range. Dagster has no public name for it; a
test fails where it stops working."""
_PROBLEMS = "problems"
"""Metadata of an observation that says that a ticker failed."""

Event = dg.Output | dg.AssetMaterialization | dg.AssetObservation


class TickerBatch:
    """The tickers of a step, what was made of them, and what went wrong.

    Attributes:
        tickers: those of the run that nothing upstream in it has failed.
        done: what was made, by ticker.
        errors: what was wrong, by ticker.
    """

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context
        self._metadata: dict[str, Mapping[str, Any]] = {}
        left_out = failed_in_run(context, context.asset_key)
        self.tickers = [ticker for ticker in sorted(context.partition_keys) if ticker not in left_out]
        self.done: dict[str, Any] = {}
        self.errors: dict[str, KronosError] = {}

    @contextmanager
    def ticker(self, ticker: str) -> Iterator[None]:
        """Work on one ticker; a `KronosError` of the block is that ticker's failure, and the others go on."""
        try:
            yield
        except KronosError as error:
            self.errors[ticker] = error

    def add(self, ticker: str, artifact: Any, metadata: Mapping[str, Any]) -> None:
        """Note what was made of a ticker, and what the UI shows of it."""
        self.done[ticker] = artifact
        self._metadata[ticker] = metadata

    def events(self, data_version: str | None = None) -> Iterator[Event]:
        """What the step gives to Dagster.

        Args:
            data_version: a hash of what was made, for assets whose inputs Dagster does not see.

        Raises:
            dagster.Failure: no ticker is good, or some are bad and nothing later in the run would say so.
        """
        asset = self._context.asset_key.to_user_string()
        if not self.done:
            raise make_failure(asset, self.errors)
        version = dg.DataVersion(data_version) if data_version else None
        if set(self.done) == set(self._context.partition_keys):
            for ticker, metadata in self._metadata.items():
                self._context.add_asset_metadata(metadata, partition_key=ticker)
            yield dg.Output(self.done, data_version=version)
            return
        yield dg.Output(self.done, metadata=_NO_RECORD)
        for ticker, metadata in self._metadata.items():
            yield dg.AssetMaterialization(self._context.asset_key, partition=ticker, metadata=dict(metadata))
        for ticker, error in self.errors.items():
            self._context.log.error(describe(asset, {ticker: error}))
            problems = {_PROBLEMS: problem_table({ticker: error})}
            yield dg.AssetObservation(self._context.asset_key, partition=ticker, metadata=problems)
        if self.errors and not _will_run(self._context, f"{asset}_{COMPLETE}"):
            raise make_failure(asset, self.errors)


def failed_in_run(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, asset: dg.AssetKey
) -> dict[str, str]:
    """Tickers that this run has failed on the way to an asset or in making it, and the asset that failed."""
    way = context.job_def.asset_layer.asset_graph.get_ancestor_asset_keys(asset, include_self=True)
    records = context.instance.get_records_for_run(
        context.run.run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION
    ).records
    observations = [record.event_log_entry.asset_observation for record in records]
    return {
        one.partition: one.asset_key.to_user_string()
        for one in observations
        if one and one.partition and one.asset_key in way and _PROBLEMS in one.metadata
    }


def failed_tickers(instance: dg.DagsterInstance, asset: dg.AssetKey, tickers: Sequence[str]) -> dict[str, KronosError]:
    """Those of some tickers whose latest attempt failed or that were never made, and why."""
    wanted = set(tickers)
    made = instance.get_latest_storage_id_by_partition(asset, dg.DagsterEventType.ASSET_MATERIALIZATION, wanted)
    tried = instance.get_latest_storage_id_by_partition(asset, dg.DagsterEventType.ASSET_OBSERVATION, wanted)
    return {
        ticker: _latest_error(instance, asset, ticker)
        for ticker in tickers
        if ticker not in made or tried.get(ticker, -1) > made[ticker]
    }


def _latest_error(instance: dg.DagsterInstance, asset: dg.AssetKey, ticker: str) -> KronosError:
    wanted = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[ticker])
    records = instance.fetch_observations(wanted, limit=1).records
    observation = records[0].asset_observation if records else None
    table = observation.metadata.get(_PROBLEMS) if observation else None
    if not isinstance(table, dg.TableMetadataValue):
        return ArtifactError(f"{ticker}: {asset.to_user_string()} was never materialised.")
    return DataError(read_problem_table(table), ticker)


def _will_run(context: dg.AssetExecutionContext, step: str) -> bool:
    """Whether the run has a step of that name still to come."""
    steps = context.run.step_keys_to_execute
    return step in steps if steps else context.job_def.has_node_named(step)
