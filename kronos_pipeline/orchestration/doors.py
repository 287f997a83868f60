"""A door per ticker: the unpartitioned asset `adapter/<TICKER>`, which runs the partitioned job for that ticker.

`dagster asset materialize --select adapter/AAPL` works on an empty store, as the door runs all that is upstream of an
adapter too. It has no training of its own: there is one way to make an adapter, and the partitions of all assets record
what the job did.
"""

# Annotations are not postponed here: Dagster takes that of `context` as it stands, and refuses a text.
import re
from collections.abc import Sequence
from typing import Any

import dagster as dg

from kronos_pipeline.artifacts import text_hash
from kronos_pipeline.orchestration.automation import RETRAIN_ADAPTER

_BACKFILL = "dagster/backfill"
_NOT_FOR_NAMES = re.compile(r"[^A-Za-z0-9]+")


def adapter_doors(tickers: Sequence[str], **options: Any) -> list[dg.AssetsDefinition]:
    """The doors of some tickers.

    Args:
        tickers: the symbols.
        options: what all doors share, such as group and owners; see `dagster.AssetOut`.
    """
    return [_door(ticker, options) for ticker in tickers]


def _door(ticker: str, options: dict[str, Any]) -> dg.AssetsDefinition:
    out = dg.AssetOut(
        key=["adapter", ticker],
        dagster_type=dg.Nothing,
        description=f"Retrains the adapter of {ticker}: the job `{RETRAIN_ADAPTER}` for its partition, as one step.",
        **options,
    )
    dependency = dg.AssetDep("adapter", partition_mapping=dg.SpecificPartitionsPartitionMapping([ticker]))

    @dg.multi_asset(
        name=door_name(ticker),
        outs={"door": out},
        deps=[dependency],
        required_resource_keys={"pipeline", "tracking", "io_manager"},
    )
    def door(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        return dg.MaterializeResult(
            asset_key=["adapter", ticker],
            metadata={"run": dg.MetadataValue.dagster_run(_made_together(context, ticker) or retrain(context))},
        )

    def retrain(context: dg.AssetExecutionContext) -> str:
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

    return door


def door_name(ticker: str) -> str:
    """A step's name for a door: symbols hold characters that names may not, and BRK.B is not BRK-B."""
    return f"door_{_NOT_FOR_NAMES.sub('_', ticker)}_{text_hash(ticker)[:8]}"


def _made_together(context: dg.AssetExecutionContext, ticker: str) -> str | None:
    """The run that made the ticker's adapter, where it is this one or of the same backfill.

    Who materialises all assets selects the doors with the rest, and would train everything twice.
    """
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey("adapter"), asset_partitions=[ticker])
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
