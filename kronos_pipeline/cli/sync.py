"""`kronos sync`: exchange the artifacts of the output folder with the store of `KRONOS_ARTIFACT_STORE`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal, Optional

from pydantic import Field
from pydantic_settings import CliPositionalArg

from kronos_pipeline.cli.command import FAILED, Command
from kronos_pipeline.config import KronosTrainingConfig
from kronos_pipeline.errors import SettingsError, count
from kronos_pipeline.names import Name
from kronos_pipeline.training.progress import step


class Sync(Command):
    """Fetch what other machines published to the artifact store, and deliver what this machine made.

    Other commands do so by themselves, for their tickers. This command fills a new store from an output folder, copies
    a store to a new machine, and says who wins where two machines trained a ticker at once.
    """

    names: CliPositionalArg[list[Name]] = Field([], description="tickers and names of adapters; by default all")
    output_dir: str = Field("artifacts", description=KronosTrainingConfig.model_fields["output_dir"].description)
    keep: Optional[Literal["store", "folder"]] = Field(
        None,
        description="store: where both have changed, take the store's; folder: write everything of this folder again, "
        "also over models of other machines and damaged objects",
    )

    def run(self) -> int:
        """Exchange, and print what went each way; return 2 if something could not be exchanged."""
        from kronos_pipeline.artifact_store.objects import STORE
        from kronos_pipeline.artifact_store.sharing import shared_folder

        folder = shared_folder(Path(self.output_dir))
        if folder is None:
            raise SettingsError(f"{STORE} is not set; set it to s3://BUCKET/PREFIX or file:///FOLDER.")
        if self.keep == "folder" and not self.names:
            raise SettingsError("--keep folder replaces what other machines published; name the tickers.")
        groups = list(dict.fromkeys([*map(str.upper, self.names), *self.names])) or None
        step("asking the artifact store")
        fetched = folder.fetch(groups, self.keep)
        delivered = folder.deliver(groups, self.keep)
        errors = fetched.errors | delivered.errors
        if self.keep == "folder":  # what was damaged in the store is written again
            errors = {group: error for group, error in errors.items() if group in delivered.errors}
        for note in (*fetched.notes, *delivered.notes):
            print(note)
        print(
            f"{folder.store.url}: {count(len(fetched.fetched), 'artifact')} fetched, "
            f"{len(delivered.delivered)} delivered"
        )
        for error in errors.values():
            print(f"error: {error}", file=sys.stderr)
        return FAILED if errors else 0
