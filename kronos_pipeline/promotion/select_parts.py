"""Choice of the parts of a ticker's forecast: champions where there are champions, else what the evidence has best.

centre   champion of mean          else the base model, if better than all rivals    else the last close
shape    champion of distribution  else the base model, if better than all rivals    else the best volatility rival

Without a centre, paths that were judged as sampled keep their own mean path, see `composed_variants`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kronos_pipeline.artifacts import ArtifactLayout, read_json
from kronos_pipeline.errors import ArtifactError
from kronos_pipeline.evaluation.composed_variants import keeps_its_centre
from kronos_pipeline.evaluation.forecasting.composition import PathModel
from kronos_pipeline.evaluation.forecasting.sampling import Sampling, load_sampling, plain_sampling
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
from kronos_pipeline.tracking.known_champions import KnownChampions

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.bars import Bars
    from kronos_pipeline.model.loading import KronosModel
    from kronos_pipeline.tracking.registry import Registry

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
    """The centre and the shape of a ticker's forecast.

    Attributes:
        centre: the centre.
        shape: the shape.
        warnings: what the selection did without: an MLflow server that does not answer, a damaged report.
    """

    centre: Part
    shape: Part
    warnings: tuple[str, ...] = ()

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
        """The notes on both parts and on their selection, each once."""
        return tuple(dict.fromkeys((*self.centre.notes, *self.shape.notes, *self.warnings)))


def select_parts(
    registry: Registry, layout: ArtifactLayout, bars: Bars, base: KronosModel, recipe: Recipe, now: datetime
) -> Parts:
    """Select the centre and the shape of the forecast of a ticker's next bars.

    A champion that is too old, or whose inputs are unlike those of its training, forecasts with a warning, or by
    `strict_champion` not at all. While MLflow does not answer, the champions are those that were known last. A report
    that is damaged counts as missing, with a warning.

    Args:
        registry: the registry.
        layout: the layout of the artifacts.
        bars: the ticker's bars.
        base: the untouched base model.
        recipe: settings of the forecast; lookback, if no champion has its own.
        now: the time of the forecast, with a zone.

    Raises:
        TrackingError: the registry cannot be used, or does not answer and nothing is kept of it; or a champion's files
            are gone.
        ModelError: a champion was trained on another base model than `base`, or is damaged.
    """
    champions, reports = KnownChampions(registry), _Reports(layout, bars.ticker)
    loaded: dict[str, LoadedChampion] = {}

    def select(target: Target, otherwise: Callable[[], Part]) -> Part:
        champion, reasons = find_champion(champions, bars.ticker, recipe.adapter_name, target=target)
        if champion is not None:
            name = str(champion)
            if name not in loaded:
                loaded[name] = load_champion(champions, champion, bars, base, recipe, now)
            model = loaded[name]
            if not (model.warnings and recipe.strict_champion):
                refit = f"version {champion.number} is " if model.label != name else ""
                reason = f"{refit}champion of {target}: {promotion_reason(champion, target)}"
                notes = (*model.notes, *model.warnings)
                return Part(model.part, model.label, f"champion of {target}", reason, notes, model.seen_until)
            reasons.append(f"the champion does not forecast by --strict-champion: {'; '.join(model.warnings)}")
        is_best, verdict, notes_on_base = _verdict_on_base(reports, base, target)
        reasons.append(verdict)
        if is_best:
            sampling = reports.base_sampling(base, recipe) or plain_sampling(recipe)
            model_part = PathModel(base, sampling, recipe)
            label = f"base {base.source.label}"
            notes = (*demo_notes(base), *notes_on_base)
            return Part(model_part, label, "better than every rival", "; ".join(reasons), notes)
        part = otherwise()
        return replace(part, reason="; ".join([*reasons, *filter(None, [part.reason])]))

    centre = select(MEAN, lambda: Part(None, LAST_CLOSE, "no model was shown to be better", ""))
    shape = select(DISTRIBUTION, lambda: _best_rival(reports))
    source = shape.source
    if (
        centre.source is None
        and isinstance(source, PathModel)
        and keeps_its_centre(source.sampling.variant(DISTRIBUTION))
    ):
        as_sampled = "its paths as sampled were best on the selection block"
        centre = replace(shape, summary="its paths as sampled", reason=f"{centre.reason}; {as_sampled}")
    return Parts(centre, shape, (*filter(None, [champions.warning]), *reports.warnings))


class _Reports:
    """The stored evaluations of a ticker; a damaged file counts as missing, with a warning.

    Attributes:
        warnings: a sentence for each damaged file, with the remedy.
    """

    def __init__(self, layout: ArtifactLayout, ticker: str) -> None:
        self._layout, self._ticker = layout, ticker
        self.warnings: list[str] = []

    @cached_property
    def entries(self) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """The reports, backtests first, each with the ticker's entry."""
        backtests = [self._layout.backtest_report(trained, self._ticker) for trained in (ADAPTER, CHECKPOINT)]
        entries: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
        for path in (*backtests, self._layout.ticker_metrics(self._ticker)):
            if path.is_file():
                try:
                    report = read_json(path)
                except ArtifactError as damage:
                    self._warn("the evaluation", damage)
                    continue
                entries += [
                    (report, entry) for entry in report.get("per_symbol", []) if entry.get("symbol") == self._ticker
                ]
        return entries

    def base_sampling(self, base: KronosModel, recipe: Recipe) -> Sampling | None:
        """Return the sampling that was fitted for the base model, or None."""
        try:
            return load_sampling(self._layout.base, self._ticker, base, recipe)
        except ArtifactError as damage:
            self._warn("the fitted sampling", damage)
            return None

    def _warn(self, what: str, damage: ArtifactError) -> None:
        self.warnings.append(f"{what} is left out: {damage}".removesuffix("."))


def _verdict_on_base(reports: _Reports, base: KronosModel, target: Target) -> tuple[bool, str, tuple[str, ...]]:
    """Return True if the ticker's reports have this base model better than all rivals, the reason, and notes."""
    for report, entry in reports.entries:
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


def _best_rival(reports: _Reports) -> Part:
    """Return the volatility rival with the lowest loss on the distribution in the last evaluation."""
    for _, entry in reports.entries:
        scores = {name: entry.get("models", {}).get(name, {}).get("scaled_crps") for name in VOLATILITY_RIVALS}
        scored = {name: score for name, score in scores.items() if score is not None}
        if scored:
            best = min(scored, key=lambda name: scored[name])
            return Part(best, best, "best rival", "the best rival of the last evaluation")
    return Part(EWMA, EWMA, "no evaluation of rivals", "no evaluation of rivals")
