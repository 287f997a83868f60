"""`kronos train`: fine-tune, evaluate and promote."""

from __future__ import annotations

from pydantic import Field

from kronos_pipeline.cli.command import FAILED, Command
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

    def run(self) -> int:
        """Run the whole pipeline."""
        from kronos_pipeline.pipeline.run import run_pipeline

        return 0 if run_pipeline(self, self.seeds) else FAILED
