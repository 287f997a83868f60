"""Selection of a ticker's forecast model: the champion, else the base model if better than naive, else naive."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from kronos_pipeline.artifacts import ArtifactLayout, read_json
from kronos_pipeline.errors import ModelError
from kronos_pipeline.evaluation.forecasting.sampling import Sampling, load_sampling, plain_sampling
from kronos_pipeline.evaluation.predictions import ADAPTER, BASE, CHECKPOINT, NAIVE
from kronos_pipeline.evaluation.scoring.targets import MEAN
from kronos_pipeline.promotion.champion_warnings import champion_warnings
from kronos_pipeline.tracking.packaging import read_training_manifest
from kronos_pipeline.tracking.registry import Registry, Version, registered_name

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.bars import Bars
    from kronos_pipeline.model.loading import KronosModel

NOT_MEASURED = "not itself measured"


@dataclass(frozen=True)
class SelectedModel:
    """The model of a forecast.

    Attributes:
        model: the model; None means the naive forecast.
        sampling: its sampling for the ticker.
        recipe: the settings of the forecast: the given settings, with the lookback of a champion's training.
        label: its name in tables and plots.
        reason: the reason for the selection, in a sentence.
        notes: notes on every plot, for instance that the model is not itself measured.
        seen_until: time of the newest bar of the ticker that the model's training may have read, ISO 8601, or None.
    """

    model: KronosModel | None
    sampling: Sampling
    recipe: Recipe
    label: str
    reason: str
    notes: tuple[str, ...] = ()
    seen_until: str | None = None


def select_champion(
    registry: Registry, layout: ArtifactLayout, bars: Bars, base: KronosModel, recipe: Recipe, now: datetime
) -> SelectedModel:
    """Select the model that forecasts a ticker's next bars.

    The champion of `kronos-<ticker>` comes first, then the champion of the recipe's `adapter_name`, then the champion
    of `kronos-all`; a champion that was not trained on the ticker is skipped. If a champion has a refit, the refit
    forecasts. A champion that is too old, or whose inputs are unlike those of its training, forecasts with a warning,
    or by `strict_champion` not at all. Without a champion, the base model forecasts if the ticker's own verdict is
    better than naive.

    Args:
        registry: the registry.
        layout: the layout of the artifacts.
        bars: the ticker's bars.
        base: the untouched base model.
        recipe: settings of the forecast; lookback, if no champion has its own.
        now: the time of the forecast, with a zone.

    Raises:
        TrackingError: the registry cannot be reached, or a champion's files are gone.
        ModelError: the champion was trained on another base model than `base`, or is damaged.
    """
    ticker = bars.ticker
    champion, reasons = find_champion(registry, ticker, recipe.adapter_name)
    if champion is not None:
        selected, warnings = _champion(registry, champion, bars, base, recipe, now)
        if not (warnings and recipe.strict_champion):
            return replace(selected, notes=(*selected.notes, *warnings))
        reasons = [*reasons, f"the champion does not forecast by --strict-champion: {'; '.join(warnings)}"]
    better, reason, notes = _verdict_on_base(layout, ticker, base)
    why = f"{'; '.join(reasons)}; {reason}"
    if not better:
        return SelectedModel(
            None, plain_sampling(recipe), recipe, NAIVE, f"{why}, so the forecast repeats the last close."
        )
    sampling = load_sampling(layout.base, ticker, base, recipe) or plain_sampling(recipe)
    return SelectedModel(base, sampling, recipe, f"base {base.source.label}", f"{why}.", (*_demo(base), *notes))


def find_champion(registry: Registry, ticker: str, adapter_name: str | None = None) -> tuple[Version | None, list[str]]:
    """Return the champion that forecasts a ticker, or None, and the reasons that earlier names in the order do not.

    Args:
        registry: the registry.
        ticker: the symbol.
        adapter_name: name of an adapter over several tickers that may forecast this ticker.

    Raises:
        TrackingError: the registry cannot be reached.
    """
    adapters = [ticker, *([adapter_name] if adapter_name else []), None]
    reasons = []
    for name in dict.fromkeys(registered_name(adapter) for adapter in adapters):
        champion = registry.champion(name)
        if champion is None:
            reasons.append(f"{name} has no champion")
        elif not champion.covers(ticker):
            reasons.append(f"the champion {champion} was not trained on {ticker}")
        else:
            return champion, reasons
    return None, reasons


def _champion(
    registry: Registry, champion: Version, bars: Bars, base: KronosModel, recipe: Recipe, now: datetime
) -> tuple[SelectedModel, tuple[str, ...]]:
    """Return the champion, or its refit, and the warnings about it."""
    from kronos_pipeline.model.lora import load_trained  # imports torch

    used = registry.refit_of(champion) or champion
    with TemporaryDirectory() as temporary:
        folder = registry.fetch(used, Path(temporary))
        try:
            model = load_trained(folder, base)
        except ModelError as error:
            cause = str(error).replace(str(folder), "it")
            raise ModelError(
                f"The champion {used} cannot forecast: {cause} Or restore the previous champion: kronos rollback."
            ) from error
        manifest = read_training_manifest(folder)
        recipe = recipe.model_copy(update={"lookback": manifest["config"]["lookback"]})
        sampling = load_sampling(folder, bars.ticker, model, recipe)
    notes = [*_demo(base), *filter(None, [champion.tags.get("contamination")])]
    promotion_reason = (champion.decision("reason", "mean") or "no reason is recorded").removesuffix(".")
    label, reason = str(used), f"{champion} is the champion: {promotion_reason}."
    if not used.measured:  # also if a person made a refit the champion in MLflow itself
        label = f"{used}, a refit of version {used.tags.get('refit_of')}, {NOT_MEASURED}"
        reason = f"{reason} {used} is a refit on all bars and {NOT_MEASURED}."
        notes.insert(0, NOT_MEASURED)
    seen_until = manifest.get("seen_until", {}).get(bars.ticker)
    selected = SelectedModel(model, sampling or plain_sampling(recipe), recipe, label, reason, tuple(notes), seen_until)
    return selected, champion_warnings(champion, seen_until, bars, recipe, now)


def _verdict_on_base(layout: ArtifactLayout, ticker: str, base: KronosModel) -> tuple[bool, str, list[str]]:
    """Return True if the ticker's reports have this base model better than naive, the reason, and notes."""
    backtests = [layout.backtest_report(trained, ticker) for trained in (ADAPTER, CHECKPOINT)]
    for path in (*backtests, layout.ticker_metrics(ticker)):
        if not path.is_file():
            continue
        report = read_json(path)
        measured = report.get("manifest", {}).get("base_model", {}).get("name")
        entries = [entry for entry in report.get("per_symbol", []) if entry.get("symbol") == ticker]
        verdict = entries[0].get("verdicts", {}).get(MEAN, {}).get(BASE, {}).get(NAIVE) if entries else None
        if measured != base.source.name or verdict is None:
            continue
        summary = f"the base model {base.source.name} against naive: {verdict['verdict']}"
        notes = [entries[0]["contamination"]] if entries[0].get("contamination") else []
        return (
            verdict["verdict"] == "better",
            f"{summary} ({verdict['reason']})" if verdict.get("reason") else summary,
            notes,
        )
    return False, f"no verdict on the base model {base.source.name} against naive for {ticker}", []


def _demo(base: KronosModel) -> tuple[str, ...]:
    return ("embedded demo model",) if base.source.demo else ()
