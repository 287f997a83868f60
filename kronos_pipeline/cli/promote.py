"""`kronos promote` and `kronos rollback`: choose the champions by hand; the version records the reason."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Optional

from pydantic import Field
from pydantic_settings import CliPositionalArg

from kronos_pipeline.cli.command import Command
from kronos_pipeline.config import NAME
from kronos_pipeline.errors import SettingsError
from kronos_pipeline.training.progress import step

if TYPE_CHECKING:
    from kronos_pipeline.evaluation.scoring.targets import Target
    from kronos_pipeline.tracking.registry import Registry

CHECKPOINT = "all"
"""The name of the checkpoint over all tickers on the command line."""


class _ModelCommand(Command):
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

    @property
    def _name(self) -> str:
        from kronos_pipeline.tracking.version_store import registered_name

        if not NAME.fullmatch(self.adapter.removesuffix("~adapter")):
            raise SettingsError(f"No adapter is called {self.adapter!r}: a name has letters, digits and .-_^= only.")
        return registered_name(None if self.adapter == CHECKPOINT else self.adapter)

    @property
    def _targets(self) -> tuple[Target, ...]:
        from kronos_pipeline.evaluation.scoring.targets import TARGETS

        return TARGETS if self.target is None else (self.target,)

    @property
    def _registry(self) -> Registry:
        from kronos_pipeline.tracking.registry import Registry
        from kronos_pipeline.tracking.runs import Tracker

        return Registry(Tracker(None, Path(self.output_dir)))


class Promote(_ModelCommand):
    """Make a version of a registered model the champion of one target or of all, whatever the gate decided."""

    version: Optional[int] = Field(None, ge=1, description="number of the version; by default the challenger")

    def run(self) -> int:
        """Set the champion, and print it with the gate's decisions."""
        from kronos_pipeline.errors import join

        step("loading MLflow")
        reason = self.reason or "promoted by hand, no reason given"
        champion = self._registry.promote(self._name, self.version, reason, self._targets)
        print(f"{champion} is the champion of {join(self._targets)}")
        for target in self._targets:
            gate = champion.decision("gate_reason", target)
            print(f"{target}, by the gate: {gate or 'not decided'}")
        return 0


class Rollback(_ModelCommand):
    """Restore the previous champion of one target or of all.

    Without a previous champion, forecasts come from the base model or the best rival.
    """

    def run(self) -> int:
        """Restore the champions, and print them."""
        from kronos_pipeline.errors import join

        step("loading MLflow")
        reason = self.reason or "rolled back by hand, no reason given"
        champions = self._registry.rollback(self._name, reason, self._targets)
        by_champion: dict[str, list[Target]] = {}
        for target, champion in champions.items():
            by_champion.setdefault(str(champion or ""), []).append(target)
        for name, targets in by_champion.items():
            restored = f"{name} is the champion of {join(targets)} again"
            print(restored if name else f"{self._name} has no champion of {join(targets)} now")
        return 0
