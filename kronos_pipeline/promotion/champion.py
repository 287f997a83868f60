"""Champions of a ticker: the version that is champion of a target, loaded, and the reason."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from kronos_pipeline.errors import ModelError
from kronos_pipeline.evaluation.forecasting.composition import PathModel
from kronos_pipeline.evaluation.forecasting.sampling import load_sampling, plain_sampling
from kronos_pipeline.promotion.champion_warnings import champion_warnings
from kronos_pipeline.tracking.known_champions import KnownChampions
from kronos_pipeline.tracking.packaging import read_training_manifest
from kronos_pipeline.tracking.version import Version
from kronos_pipeline.tracking.version_page import beaten_rivals
from kronos_pipeline.tracking.version_store import registered_name

if TYPE_CHECKING:
    from kronos_pipeline.config import Recipe
    from kronos_pipeline.data.bars import Bars
    from kronos_pipeline.evaluation.scoring.targets import Target
    from kronos_pipeline.model.loading import KronosModel

NOT_MEASURED = "not itself measured"


@dataclass(frozen=True)
class LoadedChampion:
    """A champion that is ready to forecast a ticker.

    Attributes:
        part: the model with its sampling, and the settings of the forecast with the lookback of its training.
        label: its name in tables and plots.
        notes: notes on every plot, for instance that the model is not itself measured.
        warnings: reasons to doubt its forecast, see `champion_warnings`.
        seen_until: time of the newest bar of the ticker that its training may have read, ISO 8601, or None.
    """

    part: PathModel
    label: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    seen_until: str | None


def find_champion(
    champions: KnownChampions, ticker: str, adapter_name: str | None = None, *, target: Target | None = None
) -> tuple[Version | None, list[str]]:
    """Return a champion of a ticker, or None, and the reasons that earlier names in the order have none.

    The champion of `kronos-<ticker>` comes first, then that of `kronos-<adapter_name>`, then that of `kronos-all`; a
    champion that was not trained on the ticker is skipped.

    Args:
        champions: the champions of registered models.
        ticker: the symbol.
        adapter_name: name of an adapter over several tickers that may forecast this ticker.
        target: the target; None for the version that serves a forecast.

    Raises:
        TrackingError: the registry cannot be used, or does not answer and nothing is kept of it.
    """
    adapters = [ticker, *([adapter_name] if adapter_name else []), None]
    what = f"champion of {target}" if target else "champion"
    reasons = []
    for name in dict.fromkeys(registered_name(adapter) for adapter in adapters):
        champion = champions.champion(name, target)
        if champion is None:
            reasons.append(f"{name} has no {what}")
        elif not champion.covers(ticker):
            reasons.append(f"the {what}, {champion}, was not trained on {ticker}")
        else:
            return champion, reasons
    return None, reasons


def load_champion(
    champions: KnownChampions, champion: Version, bars: Bars, base: KronosModel, recipe: Recipe, now: datetime
) -> LoadedChampion:
    """Load a champion, or its refit if it has a refit.

    Args:
        champions: the champions of registered models.
        champion: the champion.
        bars: the ticker's bars.
        base: the untouched base model.
        recipe: the settings of the forecast.
        now: the time of the forecast, with a zone.

    Raises:
        TrackingError: the champion's files are gone.
        ModelError: the champion was trained on another base model than `base`, or is damaged.
    """
    from kronos_pipeline.model.lora import load_trained  # imports torch

    used = champions.refit_of(champion) or champion
    with TemporaryDirectory() as temporary:
        folder = champions.fetch(used, Path(temporary))
        try:
            model = load_trained(folder, base)
        except ModelError as error:
            cause = str(error).replace(str(folder), "it")
            raise ModelError(
                f"The champion {used} cannot forecast: {cause} Or restore the previous champion: kronos rollback."
            ) from error
        manifest = read_training_manifest(folder)
        recipe = recipe.model_copy(update={"lookback": manifest["config"]["lookback"]})
        sampling = load_sampling(folder, bars.ticker, model, recipe) or plain_sampling(recipe)
    label, notes = str(used), [*demo_notes(base), *filter(None, [champion.tags.get("contamination")])]
    if not used.measured:  # also if a person made a refit the champion in MLflow itself
        label = f"{used}, a refit of version {used.tags.get('refit_of')}, {NOT_MEASURED}"
        notes.insert(0, NOT_MEASURED)
    seen_until = manifest.get("seen_until", {}).get(bars.ticker)
    warnings = champion_warnings(champion, seen_until, bars, recipe, now)
    return LoadedChampion(PathModel(model, sampling, recipe), label, tuple(notes), warnings, seen_until)


def promotion_reason(champion: Version, target: Target) -> str:
    """Return the reason of a promotion in a few words: the rivals that it was better than, or the words of a person."""
    beaten = beaten_rivals(champion, target)
    if champion.decision("decided_by", target) == "gate" and beaten:
        return f"better than {', '.join(beaten)}"
    return (champion.decision("reason", target) or "no reason is recorded").removesuffix(".")


def demo_notes(base: KronosModel) -> tuple[str, ...]:
    """Return the note that forecasts of the embedded demo model carry."""
    return ("embedded demo model",) if base.source.demo else ()
