"""The unpartitioned asset `adapter/<TICKER>` of each ticker, which runs the partitioned job for that ticker.

`dagster asset materialize --select adapter/AAPL` works on an empty store, because the job includes every asset upstream
of the adapter. The asset does not train by itself: the job is the only code path, and the partitions of all its assets
record their events. Whichever run trains a partition of `adapter`, the asset of its ticker records an event too.
"""

# Annotations are not postponed here: Dagster reads the annotation of `context` and refuses a string.
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.execution.plan.objects import ErrorSource

from kronos_pipeline.checksums import text_hash
from kronos_pipeline.orchestration.automation.jobs import RETRAIN_ADAPTER

_ADAPTER = dg.AssetKey("adapter")
_BACKFILL = "dagster/backfill"
_STARTED_BY = "kronos/door"
"""Tag of a job's run: the run of the asset `adapter/<TICKER>` that started it."""
_ILLEGAL_IN_NAMES = re.compile(r"[^A-Za-z0-9]+")


def adapters_by_ticker(tickers: Sequence[str], **options: Any) -> list[dg.AssetsDefinition]:
    """Return the asset `adapter/<TICKER>` of each ticker.

    Args:
        tickers: the symbols.
        options: options of every asset, such as group and owners; see `dagster.AssetSpec`.
    """
    # The reference that `dagster.with_source_code_references` would look up for each ticker anew.
    code = dg.LocalFileCodeReference(file_path=__file__, line_number=_run_job.__code__.co_firstlineno)
    metadata = {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[code])}
    return [_adapter_asset(ticker, {"metadata": metadata, **options}) for ticker in tickers]


def record_by_ticker(context: dg.AssetExecutionContext, tickers: Iterable[str]) -> None:
    """Record a materialisation of `adapter/<TICKER>` for each trained partition of `adapter`."""
    if _STARTED_BY in context.run.tags:
        return  # the asset itself started this run, and records the event
    run = {"run": dg.MetadataValue.dagster_run(context.run.run_id)}
    selected = context.run.asset_selection or set()
    for ticker in tickers:
        if (key := dg.AssetKey(["adapter", ticker])) not in selected:
            context.log_event(dg.AssetMaterialization(key, metadata=run))


def _adapter_asset(ticker: str, options: dict[str, Any]) -> dg.AssetsDefinition:
    # Assembled without the decorator, which would inspect the function again for each ticker: half a second for a
    # thousand tickers.
    spec = dg.AssetSpec(
        ["adapter", ticker],
        deps=[dg.AssetDep(_ADAPTER, partition_mapping=dg.SpecificPartitionsPartitionMapping([ticker]))],
        description=(
            f"The adapter of {ticker}: the partition {ticker} of `adapter`, as an asset for the command line. There, "
            f"`dagster asset materialize --select adapter/{ticker}` reads the CSV, trains and evaluates, by the job "
            f"`{RETRAIN_ADAPTER}`. In the UI, use the partitions of `adapter`, which train together; the events here "
            "follow theirs."
        ),
        **options,
    )
    step = dg.OpDefinition(
        _run_job,
        name=step_name(ticker),
        ins={"adapter": dg.In(dg.Nothing)},
        outs={"done": dg.Out(dg.Nothing)},
        required_resource_keys={"pipeline", "tracking", "io_manager"},
        config_schema={},
    )
    return dg.AssetsDefinition(
        node_def=step,
        specs=[spec],
        keys_by_input_name={"adapter": _ADAPTER},
        keys_by_output_name={"done": spec.key},
    )


def _run_job(context: dg.AssetExecutionContext, _: Mapping[str, Any]) -> Iterator[dg.MaterializeResult[None]]:
    """Run the job for the ticker in the asset's key, and return the run's id as metadata."""
    ticker = context.asset_key.path[-1]
    run_id = _run_of_same_request(context, ticker) or _retrain(context, ticker)
    yield dg.MaterializeResult(metadata={"run": dg.MetadataValue.dagster_run(run_id)})


def _retrain(context: dg.AssetExecutionContext, ticker: str) -> str:
    """Run the partitioned job for the ticker, and return the run's id; an interrupt ends both runs."""
    result = context.repository_def.get_job(RETRAIN_ADAPTER).execute_in_process(
        # The job has other steps, so it takes only the resources of this run's launchpad settings.
        run_config={"resources": context.run.run_config.get("resources", {})},
        instance=context.instance,
        partition_key=ticker,
        tags={_STARTED_BY: context.run.run_id},
        raise_on_error=False,
    )
    if any(
        event.is_step_failure and event.step_failure_data.error_source == ErrorSource.INTERRUPT
        for event in result.all_events
    ):
        context.instance.report_run_canceled(result.dagster_run)
        raise dg.DagsterExecutionInterruptedError
    if not result.success:
        raise _failure_of(result)
    return result.run_id


def step_name(ticker: str) -> str:
    """Return a step name for a ticker: legal for any symbol, and different for BRK.B and BRK-B."""
    return f"adapter_{_ILLEGAL_IN_NAMES.sub('_', ticker)}_{text_hash(ticker)[:8]}"


def _run_of_same_request(context: dg.AssetExecutionContext, ticker: str) -> str | None:
    """Return the run that trained the ticker's adapter if it is this run or belongs to the same backfill, else None.

    A request for all assets selects both assets of a ticker; without this it would train each adapter twice.
    """
    newest = dg.AssetRecordsFilter(asset_key=_ADAPTER, asset_partitions=[ticker])
    records = context.instance.fetch_materializations(newest, limit=1).records
    run = context.instance.get_run_by_id(records[0].run_id) if records else None
    if run is None:
        return None
    backfill = context.run.tags.get(_BACKFILL)
    same_request = run.run_id == context.run.run_id or (backfill is not None and run.tags.get(_BACKFILL) == backfill)
    return run.run_id if same_request else None


def _failure_of(result: dg.ExecuteInProcessResult) -> dg.Failure:
    """Return the failure of the job's first failed step, with its table."""
    for event in result.all_events:
        if event.is_step_failure:
            failed = event.step_failure_data
            cause = failed.user_failure_data
            text = cause.description if cause else failed.error and failed.error.message
            metadata = dict(cause.metadata) if cause else {}
            run = dg.MetadataValue.dagster_run(result.run_id)
            return dg.Failure(text or "the run failed", metadata={**metadata, "run": run}, allow_retries=False)
    return dg.Failure(f"run {result.run_id} failed", allow_retries=False)
