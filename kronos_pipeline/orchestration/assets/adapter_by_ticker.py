"""A door per ticker: the unpartitioned asset `adapter/<TICKER>`, which runs the partitioned job for that ticker.

`dagster asset materialize --select adapter/AAPL` works on an empty store, as the door runs all that is upstream of an
adapter too. It has no training of its own: there is one way to make an adapter, and the partitions of all assets record
what the job did.
"""

# Annotations are not postponed here: Dagster takes that of `context` as it stands, and refuses a text.
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from kronos_pipeline.artifacts import text_hash
from kronos_pipeline.orchestration.automation.jobs import RETRAIN_ADAPTER

_ADAPTER = dg.AssetKey("adapter")
_BACKFILL = "dagster/backfill"
_NOT_FOR_NAMES = re.compile(r"[^A-Za-z0-9]+")


def adapter_doors(tickers: Sequence[str], **options: Any) -> list[dg.AssetsDefinition]:
    """The doors of some tickers.

    Args:
        tickers: the symbols.
        options: what all doors share, such as group and owners; see `dagster.AssetSpec`.
    """
    return [_door(ticker, options) for ticker in tickers]


def _door(ticker: str, options: dict[str, Any]) -> dg.AssetsDefinition:
    # Put together by hand: the decorator would examine the one function anew for each ticker, half a second in all for
    # a thousand.
    spec = dg.AssetSpec(
        ["adapter", ticker],
        deps=[dg.AssetDep(_ADAPTER, partition_mapping=dg.SpecificPartitionsPartitionMapping([ticker]))],
        description=f"Retrains the adapter of {ticker}: the job `{RETRAIN_ADAPTER}` for its partition, as one step.",
        **options,
    )
    step = dg.OpDefinition(
        _go_through,
        name=door_name(ticker),
        ins={"adapter": dg.In(dg.Nothing)},
        outs={"door": dg.Out(dg.Nothing)},
        required_resource_keys={"pipeline", "tracking", "io_manager"},
        config_schema={},
    )
    return dg.AssetsDefinition(
        node_def=step,
        specs=[spec],
        keys_by_input_name={"adapter": _ADAPTER},
        keys_by_output_name={"door": spec.key},
    )


def _go_through(context: dg.AssetExecutionContext, _: Mapping[str, Any]) -> Iterator[dg.MaterializeResult]:
    """What every door does; the asset's key says for which ticker."""
    ticker = context.asset_key.path[-1]
    run_id = _made_together(context, ticker) or _retrain(context, ticker)
    yield dg.MaterializeResult(metadata={"run": dg.MetadataValue.dagster_run(run_id)})


def _retrain(context: dg.AssetExecutionContext, ticker: str) -> str:
    """Run the partitioned job for the ticker, and return the run's id."""
    result = context.repository_def.get_job(RETRAIN_ADAPTER).execute_in_process(
        # What the launchpad says of resources for this run holds for the job, whose steps are others.
        run_config={"resources": context.run.run_config.get("resources", {})},
        instance=context.instance,
        partition_key=ticker,
        tags={"kronos/door": context.run.run_id},
        raise_on_error=False,
    )
    if not result.success:
        raise _failure_of(result)
    return result.run_id


def door_name(ticker: str) -> str:
    """A step's name for a door: symbols hold characters that names may not, and BRK.B is not BRK-B."""
    return f"door_{_NOT_FOR_NAMES.sub('_', ticker)}_{text_hash(ticker)[:8]}"


def _made_together(context: dg.AssetExecutionContext, ticker: str) -> str | None:
    """The run that made the ticker's adapter, where it is this one or of the same backfill.

    Who materialises all assets selects the doors with the rest, and would train everything twice.
    """
    wanted = dg.AssetRecordsFilter(asset_key=_ADAPTER, asset_partitions=[ticker])
    records = context.instance.fetch_materializations(wanted, limit=1).records
    run = context.instance.get_run_by_id(records[0].run_id) if records else None
    if run is None:
        return None
    backfill = context.run.tags.get(_BACKFILL)
    together = run.run_id == context.run.run_id or (backfill is not None and run.tags.get(_BACKFILL) == backfill)
    return run.run_id if together else None


def _failure_of(result: dg.ExecuteInProcessResult) -> dg.Failure:
    """The failure of the job's first step that failed, its table included."""
    for event in result.all_events:
        if event.is_step_failure:
            failed = event.step_failure_data
            cause = failed.user_failure_data
            text = cause.description if cause else failed.error and failed.error.message
            metadata = dict(cause.metadata) if cause else {}
            run = dg.MetadataValue.dagster_run(result.run_id)
            return dg.Failure(text or "the run failed", metadata={**metadata, "run": run}, allow_retries=False)
    return dg.Failure(f"run {result.run_id} failed", allow_retries=False)
