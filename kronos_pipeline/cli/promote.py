"""`kronos promote` and `kronos rollback`: choose the champions by hand; the version records the reason."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Optional

from pydantic import Field
from pydantic_settings import CliPositionalArg

from kronos_pipeline.cli.ages import age_of
from kronos_pipeline.cli.command import Command
from kronos_pipeline.errors import SettingsError, join, printable_text
from kronos_pipeline.names import NAME, NAME_RULE
from kronos_pipeline.training.progress import step

if TYPE_CHECKING:
    from kronos_pipeline.evaluation.scoring.targets import Target
    from kronos_pipeline.tracking.registry import Registry, Version

CHECKPOINT = "all"
"""The name of the checkpoint over all tickers on the command line."""


class _ModelCommand(Command):
    shares: ClassVar[bool] = True

    adapter: CliPositionalArg[str] = Field(
        description="a ticker or the name of an adapter; all, in lower case, means the checkpoint over all tickers"
    )
    reason: Optional[str] = Field(None, min_length=1, description="the reason, in your words; the version records it")
    target: Optional[Literal["mean", "distribution", "volatility"]] = Field(
        None, description="what the model is to be champion of; by default all three"
    )
    output_dir: str = Field(
        "artifacts",
        min_length=1,
        description="folder of artifacts, for its MLflow store; MLFLOW_TRACKING_URI names another store "
        "[environment: KRONOS_OUTPUT_DIR]",
    )

    def groups(self) -> list[str]:
        """Return the ticker or the name of the adapter; nothing for the checkpoint, which is always fetched."""
        name = self.adapter.removesuffix("~adapter")
        return [name] if name != CHECKPOINT and NAME.fullmatch(name) else []

    @property
    def _name(self) -> str:
        from kronos_pipeline.tracking.version_store import registered_name

        if not NAME.fullmatch(self.adapter.removesuffix("~adapter")):
            raise SettingsError(f"No adapter is called {self.adapter!r}: use {NAME_RULE}.")
        return registered_name(None if self.adapter == CHECKPOINT else self.adapter)

    @property
    def _targets(self) -> tuple[Target, ...]:
        from kronos_pipeline.evaluation.scoring.targets import TARGETS

        return TARGETS if self.target is None else (self.target,)

    @property
    def _registry(self) -> Registry:
        from kronos_pipeline.artifacts import ArtifactLayout
        from kronos_pipeline.pipeline.promote import deliver_waiting
        from kronos_pipeline.tracking.registry import Registry
        from kronos_pipeline.tracking.runs import Tracker

        tracker = Tracker(None, Path(self.output_dir))
        for line in deliver_waiting(tracker, ArtifactLayout(Path(self.output_dir))):
            print(printable_text(line))
        return Registry(tracker)


class Promote(_ModelCommand):
    """Make a version of a registered model the champion of one target or of all, whatever the gate decided."""

    version: Optional[int] = Field(
        None, ge=1, description="number of the version; by default the challenger, the newest measured version"
    )

    def run(self) -> int:
        """Set the champion, and print it with the gate's decisions."""
        step("loading MLflow")
        from kronos_pipeline.tracking.known_champions import KnownChampions

        reason = self.reason or "promoted by hand, no reason given"
        registry = self._registry
        champion = registry.promote(self._name, self.version, reason, self._targets)
        KnownChampions(registry).refresh(self._name)
        print(f"{champion} is the champion of {join(self._targets)}")
        for line in _gate_lines(champion, self._targets):
            print(printable_text(f"the gate: {line}"))
        for line in self._training_lines(champion):
            print(printable_text(line))
        return 0

    def _training_lines(self, champion: Version) -> list[str]:
        """Return when the version was registered, and whether a newer training lies in the output folder."""
        from kronos_pipeline.artifacts import MANIFEST, ArtifactLayout, mlflow_run_of
        from kronos_pipeline.tracking.packaging import WEIGHTS_HASH, trained_weights_hash
        from kronos_pipeline.tracking.stored_registry import read_registered_models

        model = (read_registered_models(self._registry.uri) or {}).get(champion.name)
        registered = model.registered.get(champion.number) if model else None
        now, lines = datetime.now(UTC), []
        if registered:
            lines.append(f"it was trained and registered on {registered[:10]}, {age_of(registered, now)} ago")
        folder = ArtifactLayout(Path(self.output_dir)).trained(None if self.adapter == CHECKPOINT else self.adapter)
        run = mlflow_run_of(folder)
        if run in (None, champion.run_id) or not (folder / MANIFEST).is_file():
            return lines
        trained = datetime.fromtimestamp((folder / MANIFEST).stat().st_mtime, UTC)
        if registered and trained > datetime.fromisoformat(registered):
            weights = trained_weights_hash(folder)
            newer = [
                version
                for version in (model.versions if model else ())
                if version.run_id == run or version.tags.get(WEIGHTS_HASH) == weights
            ]
            what = f"version {newer[-1].number}" if newer else "not registered; `kronos train` registers what it trains"
            lines.append(f"a newer training is in {folder}, {age_of(trained, now)} ago: {what}")
        return lines


def _gate_lines(champion: Version, targets: Sequence[Target]) -> list[str]:
    """Return the gate's verdicts in short; targets with the same verdicts share a line."""
    from kronos_pipeline.tracking.version_page import rivals_by_verdict

    by_verdict: dict[str, list[Target]] = {}
    for target in targets:
        rivals = rivals_by_verdict(champion, target)
        whole = "every rival"
        parts = [f"{verdict} against {whole if len(rivals) == 1 else ', '.join(of)}" for verdict, of in rivals.items()]
        by_verdict.setdefault("; ".join(parts) or "not decided", []).append(target)
    return [f"{join(together)}: {verdict}" for verdict, together in by_verdict.items()]


class Rollback(_ModelCommand):
    """Restore the previous champion of one target or of all.

    Without a previous champion, forecasts come from the base model or the best rival.
    """

    def run(self) -> int:
        """Restore the champions, and print them."""
        step("loading MLflow")
        from kronos_pipeline.tracking.known_champions import KnownChampions

        reason = self.reason or "rolled back by hand, no reason given"
        registry = self._registry
        rolled_back = registry.rollback(self._name, reason, self._targets)
        KnownChampions(registry).refresh(self._name)
        by_champion: dict[str, list[Target]] = {}
        for target, champion in rolled_back.champions.items():
            by_champion.setdefault(str(champion or ""), []).append(target)
        for name, targets in by_champion.items():
            restored = f"{name} is the champion of {join(targets)} again"
            print(restored if name else f"{self._name} has no champion of {join(targets)} now")
        if rolled_back.completed:
            print("this completes the rollback that was interrupted; run the command again to go back one step further")
        print(self._served(registry.champion(self._name)))
        return 0

    def _served(self, serving: Version | None) -> str:
        """Say which model serves a forecast, on the command line and over HTTP."""
        address = f"models:/{self._name}@"
        if serving is not None:
            return f"served now: {serving}, by `kronos forecast` and at {address}champion"
        return (
            "served now: the base model or the best rival, by `kronos forecast`; nothing at "
            f"{address}champion until `kronos promote {self.adapter}`"
        )
