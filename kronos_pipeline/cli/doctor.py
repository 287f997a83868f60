"""`kronos doctor`: check a folder of CSVs, or the machine and the output folder."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from kronos_pipeline.cli.command import FAILED, Command
from kronos_pipeline.config import KronosTrainingConfig, Recipe, Role
from kronos_pipeline.names import Name
from kronos_pipeline.training.progress import step


class Doctor(Command, Recipe):
    """Check whether a folder of CSVs is fit for training and has enough data.

    Print what was read and how, every problem with its file, line and column, and the number of windows that the
    settings give; then propose settings that fit. Nothing is written.

    With --system, check the machine and the output folder instead: packages, GPU, base model, MLflow's store,
    champions, disk, clock, locks and Dagster, a line each, and what to do about it.
    """

    relevant: ClassVar[Role | None] = Role.BARS | Role.MODEL | Role.WINDOWS | Role.HOLDOUT

    ticker: list[Name] = Field([], description="tickers to show in full (comma-separated); by default all, if few")
    data_dir: str = Field("trainingdata", description=KronosTrainingConfig.model_fields["data_dir"].description)
    output_dir: str = Field("artifacts", description=KronosTrainingConfig.model_fields["output_dir"].description)
    system: bool = Field(False, description="check the machine and the output folder, and not the CSVs")
    json_output: bool = Field(False, alias="json", description="with --system: print JSON, for scripts")
    list_columns: bool = Field(
        False, description="print the names of columns that are known, by meaning; --columns without a value does too"
    )

    def run(self) -> int:
        """Print the report; return 2 if a ticker is not fit for training."""
        from rich.console import Console

        from kronos_pipeline.data.doctor import column_names_table, doctor_table, examine_folder
        from kronos_pipeline.pipeline.propose import conclusion_lines, proposal_lines

        if self.system:
            return self._check_system()
        if self.list_columns:
            Console().print(column_names_table())
            return 0
        step("reading CSVs")
        recipe = Recipe.model_validate(self.model_dump(include=set(Recipe.model_fields)))
        report = examine_folder(Path(self.data_dir), recipe)
        shown = report.of(self.ticker) if self.ticker else report
        Console().print(doctor_table(shown))
        if recipe.lookback_note:
            print(recipe.lookback_note)
        print("\n".join(shown.lines()))
        windows = [ticker.windows for ticker in shown.tickers if ticker.windows is not None]
        if conclusions := conclusion_lines(windows, recipe):
            print("\n".join(conclusions))
        if not self.ticker:
            bars = [ticker.bars for ticker in report.tickers if ticker.bars is not None]
            step("measuring the speed of this machine")
            print("\n".join(proposal_lines(bars, recipe, self.data_dir)))
        return 0 if report.fit else FAILED

    def _check_system(self) -> int:
        """Print a line for each check; return 2 on an error."""
        from kronos_pipeline.artifacts import ArtifactLayout
        from kronos_pipeline.pipeline.system_checks import ERROR, OK, check_system, worst

        step("checking the machine and the output folder")
        layout = ArtifactLayout(Path(self.output_dir).absolute())
        findings = check_system(Path(self.data_dir), layout, self.model_name, datetime.now(UTC))
        if self.json_output:
            print(json.dumps([vars(finding) for finding in findings], indent=2))
        else:
            for finding in findings:
                remedy = f"; {finding.remedy}" if finding.remedy and finding.state != OK else ""
                print(f"{finding.state:<8} {finding.subject:<16} {finding.text}{remedy}")
        return FAILED if worst(findings) == ERROR else 0
