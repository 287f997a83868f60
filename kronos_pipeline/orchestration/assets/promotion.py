"""The gate as assets: what was trained becomes a version in the registry, and champion where it has earned that."""

# Annotations are not postponed here: Dagster takes that of `context` as it stands, and refuses a text.
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from kronos_pipeline.artifacts import MANIFEST, mlflow_run_of, read_json
from kronos_pipeline.data.windows import WindowSet
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.orchestration.batch import Event, TickerBatch
from kronos_pipeline.orchestration.failures import failures_of
from kronos_pipeline.orchestration.io_manager import TickerArtifacts
from kronos_pipeline.orchestration.metadata import bullets, mlflow_metadata
from kronos_pipeline.orchestration.partitions import tickers_tested
from kronos_pipeline.orchestration.resources import PipelineSettings, Tracking, run_tags

if TYPE_CHECKING:
    from kronos_pipeline.promotion.submit import Submission


def champion(
    context: dg.AssetExecutionContext, windows: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> Iterator[Event]:
    """The gate's decision on a ticker's adapter, which becomes a version of the registered model `kronos-<T>`.

    It becomes champion where it is better than naive and than base, and not worse than the present champion: by the
    backtest, where that is of this recipe and these bars, else by the holdout. With `refit_all` the same recipe is
    trained once more on all bars, for forecasts.
    """
    from kronos_pipeline.promotion.submit import evaluated_run, submit
    from kronos_pipeline.tracking.registry import Registry

    with failures_of("champion"):
        recipe, layout = pipeline.recipe("lora"), pipeline.layout
        tracker = tracking.tracker(layout)
        registry, tested = Registry(tracker), tickers_tested(context)
        batch = TickerBatch(context)
        for ticker in batch.tickers:
            with batch.ticker(ticker):
                run = evaluated_run(layout, ticker)
                found = submit(registry, layout, ticker, [ticker], run, recipe, tickers_tested=tested)
                metadata = _decision_metadata(found) | mlflow_metadata(run, tracker.link(run))
                if recipe.refit_all:
                    metadata |= _refit(context, found, ticker, [windows[ticker]], pipeline, tracking)
                batch.add(ticker, found.version, metadata)
        yield from batch.events()


def checkpoint_champion(
    context: dg.AssetExecutionContext, windows: TickerArtifacts, pipeline: PipelineSettings, tracking: Tracking
) -> dg.MaterializeResult:
    """The gate's decision on the checkpoint: a version of the registered model `kronos-all`, as `champion` does it.

    It rests on the tickers whose holdout metrics are newer than the checkpoint; the others are named.
    """
    from kronos_pipeline.promotion.submit import submit
    from kronos_pipeline.tracking.registry import Registry

    with failures_of("checkpoint_champion"):
        recipe, layout = pipeline.recipe("none"), pipeline.layout
        tracker = tracking.tracker(layout)
        run = mlflow_run_of(layout.best_checkpoint)
        if run is None:
            raise ArtifactError("There is no checkpoint with an MLflow run; materialise checkpoint first.")
        tickers = sorted(set(read_json(layout.best_checkpoint / MANIFEST)["data"]) & set(windows))
        measured = _measured_since_checkpoint(context, tickers)
        if not measured:
            raise ArtifactError("No holdout metrics are newer than the checkpoint; materialise holdout_metrics first.")
        found = submit(Registry(tracker), layout, None, measured, run, recipe, tickers_tested=1)
        metadata = _decision_metadata(found) | mlflow_metadata(run, tracker.link(run))
        if recipe.refit_all:
            metadata |= _refit(context, found, None, [windows[ticker] for ticker in tickers], pipeline, tracking)
        left_out = [ticker for ticker in tickers if ticker not in measured]
        return dg.MaterializeResult(metadata=metadata | {"not measured since": ", ".join(left_out) or "none"})


def _measured_since_checkpoint(context: dg.AssetExecutionContext, tickers: list[str]) -> list[str]:
    """Those of some tickers whose holdout metrics were made after the checkpoint."""
    records = context.instance.fetch_materializations(dg.AssetKey("checkpoint"), limit=1).records
    made = context.instance.get_latest_storage_id_by_partition(
        dg.AssetKey("holdout_metrics"), dg.DagsterEventType.ASSET_MATERIALIZATION, set(tickers)
    )
    return [ticker for ticker in tickers if records and made.get(ticker, -1) > records[0].storage_id]


def _decision_metadata(found: "Submission") -> dict[str, Any]:
    decision = found.decision
    against = [
        f"{rival}: {one.verdict}" + (f", {one.reason}" if one.reason else "")
        for rival, one in decision.comparisons.items()
    ]
    return {
        "promoted": decision.promote,
        "decision": found.sentence(),
        "against": dg.MetadataValue.md(bullets(against) or "nothing"),
        "gate": decision.gate,
        "evidence": found.source,
        "registered model": found.name,
        "version": found.version,
    }


def _refit(
    context: dg.AssetExecutionContext,
    measured: "Submission",
    adapter: str | None,
    windows: list[WindowSet],
    pipeline: PipelineSettings,
    tracking: Tracking,
) -> dict[str, Any]:
    """Train the recipe of a submitted model once more, on all bars, and register it as its refit."""
    from kronos_pipeline.promotion.refit import refit
    from kronos_pipeline.training.trainer import KronosTrainer  # imports torch

    recipe, tracker = pipeline.recipe("none" if adapter is None else "lora"), tracking.tracker(pipeline.layout)
    trainer = KronosTrainer(recipe, pipeline.layout.root, say=context.log.info)
    bars = [one.bars for one in windows]
    return {"refit": refit(tracker, trainer, measured, adapter, bars, run_tags(context, adapter)).sentence()}
