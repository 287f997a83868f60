"""`kronos promote` and `kronos rollback`: choose the champion by hand; the version records the reason."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Optional

from pydantic import Field
from pydantic_settings import CliPositionalArg

from kronos_pipeline.cli.command import Command
from kronos_pipeline.config import NAME
from kronos_pipeline.errors import SettingsError

if TYPE_CHECKING:
    from kronos_pipeline.tracking.registry import Registry

CHECKPOINT = "all"
"""The name of the checkpoint over all tickers on the command line."""


class _ModelCommand(Command):
    adapter: CliPositionalArg[str] = Field(
        description="a ticker or the name of an adapter; all, in lower case, means the checkpoint over all tickers"
    )
    reason: Optional[str] = Field(None, min_length=1, description="the reason, in your words; the version records it")
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
    def _registry(self) -> Registry:
        from kronos_pipeline.tracking.registry import Registry
        from kronos_pipeline.tracking.runs import Tracker

        return Registry(Tracker(None, Path(self.output_dir)))


class Promote(_ModelCommand):
    """Make a version of a registered model the champion, which makes the forecasts, whatever the gate decided."""

    version: Optional[int] = Field(None, ge=1, description="number of the version; by default the challenger")

    def run(self) -> int:
        """Set the champion, and print it."""
        champion = self._registry.promote(self._name, self.version, self.reason or "promoted by hand, no reason given")
        print(f"{champion} is the champion")
        gate = champion.tags.get("gate_reason")
        print(f"decision of the gate: {gate}" if gate else "the gate has not decided on this version")
        return 0


class Rollback(_ModelCommand):
    """Restore the previous champion; without a previous champion, forecasts come from the base model or naive."""

    def run(self) -> int:
        """Restore the champion, and print it."""
        champion = self._registry.rollback(self._name, self.reason or "rolled back by hand, no reason given")
        print(f"{champion} is the champion again" if champion else f"{self._name} has no champion now")
        return 0
