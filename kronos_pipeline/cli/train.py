"""`kronos train`: fine-tune, evaluate and promote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from kronos_pipeline.cli.command import CLI, FAILED, Command, run_command, verbose_flag
from kronos_pipeline.cli.tickers import folder_groups
from kronos_pipeline.config import KronosTrainingConfig


class Train(Command, KronosTrainingConfig):
    """Fine-tune a base model on a folder of CSVs and measure it on each ticker's last days, which it has never seen."""

    seeds: int = Field(
        1,
        ge=1,
        le=20,
        description="trainings with different seeds; above 1, the spread of their losses on the holdout and the losses "
        "of their ensemble are shown",
    )
    verbose: bool = verbose_flag("print all tables, and a line per ticker; `kronos report` prints the tables later")
    shares: ClassVar[bool] = True
    makes_anew: ClassVar[bool] = True

    def groups(self) -> list[str]:
        """Return the symbols of the data folder, and the name of the adapter."""
        return folder_groups(Path(self.data_dir), self.reading, self.adapter_name)

    def run(self) -> int:
        """Run the whole pipeline."""
        from kronos_pipeline.pipeline.run import run_pipeline

        return 0 if run_pipeline(self, self.seeds, self.verbose) else FAILED


class RunTraining(Train):
    """Fine-tune a Kronos base model on a folder of CSVs, one per ticker.

    Measure it on each ticker's last days, which it has never seen.
    """

    model_config = SettingsConfigDict(cli_prog_name="python -m kronos_pipeline.run_training", extra="forbid", **CLI)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m kronos_pipeline.run_training` and return its exit code."""
    return run_command(RunTraining, arguments)
