"""`kronos doctor`: check whether a folder of CSVs is fit for training and has enough data."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from kronos_pipeline.cli.command import FAILED, Command
from kronos_pipeline.config import KronosTrainingConfig, Recipe


class Doctor(Command, Recipe):
    """Check whether a folder of CSVs is fit for training and has enough data.

    Print every invalid line with its file, line and column, and the number of windows that the settings give. Nothing
    is written.
    """

    data_dir: str = Field("trainingdata", description=KronosTrainingConfig.model_fields["data_dir"].description)

    def run(self) -> int:
        """Print the report; return 2 if a ticker is not fit for training."""
        from rich.console import Console

        from kronos_pipeline.data.doctor import doctor_table, examine_folder

        report = examine_folder(Path(self.data_dir), Recipe.model_validate(self.model_dump(exclude={"data_dir"})))
        Console().print(doctor_table(report))
        print("\n".join(report.lines()))
        return 0 if report.fit else FAILED
