"""Choice of the parts of a ticker's forecast: champions where there are champions, else what the evidence has best.

centre   champion of mean          else the base model, if better than all rivals    else the last close
shape    champion of distribution  else the base model, if better than all rivals    else the best volatility rival

Without a centre, paths that were judged as sampled keep their own mean path, see `composed_variants`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from kronos_pipeline.artifacts import ArtifactLayout, read_json
from kronos_pipeline.evaluation.composed_variants import keeps_its_centre
from kronos_pipeline.evaluation.forecasting.composition import PathModel
from kronos_pipeline.evaluation.forecasting.sampling import load_sampling, plain_sampling
from kronos_pipeline.evaluation.predictions import ADAPTER, BASE, CHECKPOINT, EWMA, VOLATILITY_RIVALS
from kronos_pipeline.evaluation.scoring.targets import DISTRIBUTION, MEAN, Target
from kronos_pipeline.evaluation.scoring.verdicts import BETTER, combined_verdict
from kronos_pipeline.promotion.champion import (
    LoadedChampion,
    demo_notes,
    find_champion,
    load_champion,
    promotion_reason,
)
from kronos_pipeline.tracking.registry import Registry

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.bars import Bars
    from kronos_pipeline.model.loading import KronosModel

LAST_CLOSE = "last close"


@dataclass(frozen=True)
class Part:
    """A part of a forecast, centre or shape.

    Attributes:
        source: the model; for a centre None, the last close; for a shape the name of a volatility rival.
        label: its name.
        summary: the reason for the choice in a few words.
        reason: the whole reason.
        notes: notes on every plot.
        seen_until: time of the newest bar of the ticker that the model's training may have read, ISO 8601, or None.
    """

    source: PathModel | str | None
    label: str
    summary: str
    reason: str
    notes: tuple[str, ...] = ()
    seen_until: str | None = None


@dataclass(frozen=True)
class Parts:
    """The centre and the shape of a ticker's forecast."""

    centre: Part
    shape: Part

    @property
    def models(self) -> dict[str, PathModel]:
        """The models by part."""
        parts = {"centre": self.centre.source, "shape": self.shape.source}
        return {name: source for name, source in parts.items() if isinstance(source, PathModel)}

    @property
    def label(self) -> str:
        """The name of the forecast in tables and plots."""
        if self.centre.label == self.shape.label:
            return self.centre.label
        return f"{self.centre.label}, spread of {self.shape.label}"

    @property
    def summary(self) -> str:
        """Which model gives which part, and why, in a few words."""
        centre, shape = self.centre, self.shape
        if centre.label == shape.label:
            why = "; ".join(dict.fromkeys([shape.summary, centre.summary]))
            return f"By {shape.label} ({why})."
        return f"Centre: {centre.label} ({centre.summary}); spread: {shape.label} ({shape.summary})."

    @property
    def reason(self) -> str:
        """Which model gives which part, and the whole reason."""
        return f"centre: {self.centre.label} ({self.centre.reason}); shape: {self.shape.label} ({self.shape.reason})."

    @property
    def seen_until(self) -> tuple[str, ...]:
        """The times of the newest bars that the models' trainings may have read."""
        return tuple(filter(None, [self.centre.seen_until, self.shape.seen_until]))

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes on both parts, each once."""
        return tuple(dict.fromkeys((*self.centre.notes, *self.shape.notes)))


def select_parts(
    registry: Registry, layout: ArtifactLayout, bars: Bars, base: KronosModel, recipe: Recipe, now: datetime
) -> Parts:
    """Select the centre and the shape of the forecast of a ticker's next bars.

    A champion that is too old, or whose inputs are unlike those of its training, forecasts with a warning, or by
    `strict_champion` not at all.

    Args:
        registry: the registry.
        layout: the layout of the artifacts.
        bars: the ticker's bars.
        base: the untouched base model.
        recipe: settings of the forecast; lookback, if no champion has its own.
        now: the time of the forecast, with a zone.

    Raises:
        TrackingError: the registry cannot be reached, or a champion's files are gone.
        ModelError: a champion was trained on another base model than `base`, or is damaged.
    """
    loaded: dict[str, LoadedChampion] = {}

    def select(target: Target, otherwise: Callable[[], Part]) -> Part:
        champion, reasons = find_champion(registry, bars.ticker, recipe.adapter_name, target=target)
        if champion is not None:
            name = str(champion)
            if name not in loaded:
                loaded[name] = load_champion(registry, champion, bars, base, recipe, now)
            model = loaded[name]
            if not (model.warnings and recipe.strict_champion):
                refit = f"version {champion.number} is " if model.label != name else ""
                reason = f"{refit}champion of {target}: {promotion_reason(champion, target)}"
                notes = (*model.notes, *model.warnings)
                return Part(model.part, model.label, f"champion of {target}", reason, notes, model.seen_until)
            reasons.append(f"the champion does not forecast by --strict-champion: {'; '.join(model.warnings)}")
        is_best, verdict, notes_on_base = _verdict_on_base(layout, bars.ticker, base, target)
        reasons.append(verdict)
        if is_best:
            sampling = load_sampling(layout.base, bars.ticker, base, recipe) or plain_sampling(recipe)
            model_part = PathModel(base, sampling, recipe)
            label = f"base {base.source.label}"
            notes = (*demo_notes(base), *notes_on_base)
            return Part(model_part, label, "better than every rival", "; ".join(reasons), notes)
        part = otherwise()
        return replace(part, reason="; ".join([*reasons, *filter(None, [part.reason])]))

    centre = select(MEAN, lambda: Part(None, LAST_CLOSE, "no model was shown to be better", ""))
    shape = select(DISTRIBUTION, lambda: _best_rival(layout, bars.ticker))
    source = shape.source
    if (
        centre.source is None
        and isinstance(source, PathModel)
        and keeps_its_centre(source.sampling.variant(DISTRIBUTION))
    ):
        as_sampled = "its paths as sampled were best on the selection block"
        centre = replace(shape, summary="its paths as sampled", reason=f"{centre.reason}; {as_sampled}")
    return Parts(centre, shape)


def _verdict_on_base(
    layout: ArtifactLayout, ticker: str, base: KronosModel, target: Target
) -> tuple[bool, str, tuple[str, ...]]:
    """Return True if the ticker's reports have this base model better than all rivals, the reason, and notes."""
    for report, entry in _reports(layout, ticker):
        measured = report.get("manifest", {}).get("base_model", {}).get("name")
        verdicts = entry.get("verdicts", {}).get(target, {}).get(BASE)
        if measured != base.source.name or not verdicts:
            continue
        against = {rival: verdict["verdict"] for rival, verdict in verdicts.items()}
        verdict = combined_verdict(against.values())
        rivals = ", ".join(rival for rival, word in against.items() if word == verdict)
        notes = tuple(filter(None, [entry.get("contamination")]))
        return verdict == BETTER, f"base against {rivals}: {verdict}", notes
    return False, "base not evaluated", ()


def _best_rival(layout: ArtifactLayout, ticker: str) -> Part:
    """Return the volatility rival with the lowest loss on the distribution in the last evaluation."""
    for _, entry in _reports(layout, ticker):
        scores = {name: entry.get("models", {}).get(name, {}).get("scaled_crps") for name in VOLATILITY_RIVALS}
        scored = {name: score for name, score in scores.items() if score is not None}
        if scored:
            best = min(scored, key=lambda name: scored[name])
            return Part(best, best, "best rival", "the best rival of the last evaluation")
    return Part(EWMA, EWMA, "no evaluation of rivals", "no evaluation of rivals")


def _reports(layout: ArtifactLayout, ticker: str) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Iterate over the ticker's reports, backtests first, each with the ticker's entry."""
    backtests = [layout.backtest_report(trained, ticker) for trained in (ADAPTER, CHECKPOINT)]
    for path in (*backtests, layout.ticker_metrics(ticker)):
        if path.is_file():
            report = read_json(path)
            for entry in report.get("per_symbol", []):
                if entry.get("symbol") == ticker:
                    yield report, entry
